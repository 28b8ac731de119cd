"""Words of the command line to arguments, on a command that exists for the test."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from anygpt.cli.flags import bind, describe
from anygpt.errors import AnyGPTError


def command(
    manifest: Path,
    second: str = "b",
    *,
    out_dir: Path = Path("x"),
    tag: list[str] | None = None,
    steps: int = 3,
    rate: float | None = None,
    dry_run: bool = False,
) -> None:
    """Do a thing.

    At length.

    Args:
        manifest: What to read.
        out_dir: Where to
            write.
    """


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A group of flags.

    Args:
        lens: What to look through.
        zoom: How near.
    """

    lens: Path | None = None
    zoom: int = 1


CAMERA = Camera()


def photograph(subject: str, *, camera: Camera = CAMERA, flash: bool = False) -> None:
    """Take a picture.

    Args:
        zoom: How near; without it from where you stand.
        flash: Make light.
    """


def test_a_group_of_flags_is_one_argument() -> None:
    assert bind(photograph, ["cat"], "anygpt shoot") == {"subject": "cat"}
    bound = bind(photograph, ["cat", "--zoom", "3", "--flash", "--lens=wide"], "anygpt shoot")
    assert bound == {"subject": "cat", "camera": Camera(lens=Path("wide"), zoom=3), "flash": True}
    with pytest.raises(AnyGPTError, match="--zoom is 'x', expected a whole number"):
        bind(photograph, ["cat", "--zoom", "x"], "anygpt shoot")
    text = describe(photograph, "anygpt shoot")
    assert "--lens PATH\n      What to look through." in text and "--camera" not in text
    assert "--zoom N\n      How near; without it from where you stand. [1]" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.jsonl"], {"manifest": Path("a.jsonl")}),
        (["a", "c", "--steps", "5"], {"manifest": Path("a"), "second": "c", "steps": 5}),
        (["--manifest=a"], {"manifest": Path("a")}),
        (["a", "--out-dir", "007"], {"manifest": Path("a"), "out_dir": Path("007")}),
        (["a", "--out_dir=y=z"], {"manifest": Path("a"), "out_dir": Path("y=z")}),
        (["a", "--tag", "1", "--tag=two,2", "--tag", "[3]"], {"manifest": Path("a"), "tag": ["1", "two,2", "[3]"]}),
        (["a", "--tag", "text|x|'\"é\\|"], {"manifest": Path("a"), "tag": ["text|x|'\"é\\|"]}),
        (["a", "--rate", "1e-3", "--dry-run"], {"manifest": Path("a"), "rate": 0.001, "dry_run": True}),
        (["a", "--dry-run=false"], {"manifest": Path("a"), "dry_run": False}),
        (["a", "--steps", "-1"], {"manifest": Path("a"), "steps": -1}),
    ],
)
def test_words_become_arguments(words: list[str], expected: dict[str, object]) -> None:
    assert bind(command, words, "anygpt thing") == {"second": "b", **expected}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--stepz", "5"], r"unknown flag --stepz \(did you mean '--steps'\?\); see anygpt thing --help"),
        (["a", "--steps"], "--steps needs a value"),
        (["a", "--steps", "--dry-run"], "--steps needs a value"),
        (["a", "--steps", "many"], "--steps is 'many', expected a whole number"),
        (["a", "--rate", "fast"], "--rate is 'fast', expected a number"),
        (["a", "--dry-run=maybe"], "--dry-run takes no value, got 'maybe'"),
        (["a", "b", "c"], "unexpected argument c"),
        ([], "manifest"),
        (["a", "--"], "unknown flag --"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AnyGPTError, match=message) as caught:
        bind(command, words, "anygpt thing")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_help_shows_every_parameter() -> None:
    text = describe(command, "anygpt thing")
    assert text.startswith("Do a thing.\n\nusage: anygpt thing MANIFEST SECOND [flags]\n\nAt length.\n")
    for part in (
        "MANIFEST\n      What to read.",
        "--out-dir PATH\n      Where to write. [x]",
        "--tag VALUE (repeatable)",
    ):
        assert part in text
    assert "--steps N\n" in text and "--rate X\n" in text and "--dry-run\n" in text


def test_a_required_flag_is_named_as_it_is_typed() -> None:
    def needy(what: str, *, out_dir: Path, count: int) -> None:
        """Needs flags."""

    with pytest.raises(AnyGPTError, match="^--out-dir, --count missing; see anygpt do --help$"):
        bind(needy, ["x"], "anygpt do")
    assert bind(needy, ["x", "--out-dir", "a", "--count=2"], "anygpt do")["count"] == 2
