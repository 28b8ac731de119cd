"""The flags of the page's command, up to where it would begin to serve."""

from pathlib import Path
from typing import Any

import pytest
from fixtures_cli import Ran
from fixtures_tiny import MODEL

from anygpt.cli import web as web_command
from anygpt.web import app


@pytest.fixture(autouse=True)
def home(tiny_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home with a base model alone; it hides the models of the checkout."""
    home = tmp_path / "home"
    home.mkdir()
    for path in tiny_home.iterdir():
        if path.name != "models":
            (home / path.name).symlink_to(path)
    (home / "models").mkdir()
    (home / "models" / web_command.BASE_MODEL).symlink_to(tiny_home / "models" / MODEL)
    monkeypatch.setenv("ANYGPT_HOME", str(home))
    monkeypatch.setattr("anygpt.paths.checkout_root", lambda: None)
    return home


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been served."""
    calls: list[dict[str, Any]] = []

    def serve(_: object, name: str, settings: app.PageSettings, **where: Any) -> None:
        calls.append({"name": name, "is_chat": settings.is_chat, **where})

    monkeypatch.setattr(app, "serve", serve)
    return calls


def test_the_base_model_answers_single_questions(served: list[dict[str, Any]]) -> None:
    ran = Ran("web")
    assert ran.code == 0 and len(ran.err) == 1 and "no chat model is installed" in ran.err[0]
    assert [call["is_chat"] for call in served] == [False]
    assert [call["host"] for call in served] == ["127.0.0.1"]


def test_a_chat_model_converses_unless_told_otherwise(home: Path, served: list[dict[str, Any]]) -> None:
    (home / "models" / web_command.CHAT_MODEL).symlink_to(home / "models" / web_command.BASE_MODEL)
    for words in ((), ("--single-questions",), ("--model-name-or-path", web_command.BASE_MODEL, "--port", "8001")):
        assert Ran("web", *words).code == 0
    assert [call["is_chat"] for call in served] == [True, False, True]
    assert served[-1]["port"] == 8001


@pytest.mark.parametrize(
    "words", [("--port", "70000"), ("--batch-size", "0"), ("--max-media-mb", "nan"), ("--request-timeout-s", "-1")]
)
def test_flags_out_of_range(words: tuple[str, str]) -> None:
    ran = Ran("web", *words)
    assert ran.code == 2 and len(ran.err) == 1 and words[0] in ran.err[0]
