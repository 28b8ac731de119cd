"""The base command as a user meets it: what it prints, what it saves, its exit codes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_cli import Ran, Terminal, run_module
from fixtures_tiny import MODEL
from PIL import Image

from anygpt.cli.main import COMMANDS
from anygpt.media import load_audio, load_image

pytestmark = pytest.mark.usefixtures("home", "in_tmp_path")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.linear_gradient("L").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_several_prompts(picture: Path) -> None:
    ran = Ran(
        "base", "--prompt", "text|image|a red apple", "--prompt", f"image|text|{picture}", "--prompt=text|music|x"
    )
    assert ran.code == 0 and ran.err == []
    assert len(ran.out) >= 3
    assert re.fullmatch(r"infer_output/base/a-red-apple-\d{8}-\d{6}\.jpg", ran.out[0])
    assert load_image(ran.out[0]).size == (32, 32)
    assert load_audio(ran.out[-1]).rate_hz == 16_000


def test_json_lines(picture: Path, tmp_path: Path) -> None:
    prompts = ["text|speech|héllo", f"image|text|{picture}", "image|text|nowhere.png"]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    ran = Ran("base", "--json", "--seed", "5", "--output-dir", str(tmp_path / "out"), *flags)
    assert ran.code == 2
    spoken, read, failed = map(json.loads, ran.out)
    assert load_audio(spoken["path"]).duration_s == pytest.approx(spoken["duration_s"])
    assert (spoken["prompt"], spoken["modality"], spoken["seed"]) == (prompts[0], "speech", 5)
    assert read["modality"] == "text" and isinstance(read["text"], str) and "path" not in read
    assert failed == {"prompt": prompts[2], "error": "nowhere.png: no such file"}
    assert ran.err == ["anygpt: nowhere.png: no such file"]


def test_same_seed_same_file() -> None:
    first, second = (Ran("base", "--seed", "3", "--prompt", "text|image|x").out[0] for _ in range(2))
    assert first != second and Path(first).read_bytes() == Path(second).read_bytes()


def test_standard_input() -> None:
    ran = Ran("base", stdin="text|image|one\n\n  \nbad\ntext|image|two\n")
    assert ran.code == 2
    assert [Path(line).name.split("-")[0] for line in ran.out] == ["one", "two"]
    assert len(ran.err) == 1 and ran.err[0].startswith("anygpt: unknown form 'bad'")


def test_help_and_quit_of_standard_input() -> None:
    ran = Ran("base", stdin="help\nquit\nbad\n")
    assert ran.code == 0 and ran.err == []
    assert [line for line in ran.out if not line.startswith("  ")] == [] and "  speech|text|<speech file>" in ran.out
    ran = Ran("base", "--json", stdin="help\n")
    assert "image|text|<image file>" in json.loads(ran.out[0])["notes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base", "--prompt", "hello"], "unknown form 'hello'"),
        (["base", "--prompt", "text|image|"], "the text is empty"),
        (["base", "--prompt", ""], "unknown form ''"),
        (["base", "--prompt", "image|text|/no/such.png"], "/no/such.png: no such file"),
        (["base", "--prompt", "image|text|/"], "/: is a directory"),
        (["base", "--prompt", "text|image|" + "w " * 500], "shorten the prompt"),
        (["base", "--prompt", "text|image|x", "--output-dir", "/proc/nowhere"], "/proc/nowhere"),
        (["base", "--prompt", "text|image|x", "--model-name-or-path", "/no/model"], "/no/model: no such model folder"),
        (["base", "--prompt", "text|image|x", "--seed", "x"], "--seed is 'x'"),
        (["base", "--prompt", "text|image|x", "--device", "gpu"], "device 'gpu'"),
        (["base", "--promt", "text|image|x"], "unknown flag --promt (did you mean '--prompt'?)"),
        (["base", "text|image|x"], "unexpected argument text|image|x"),
        (["bass"], "unknown command 'bass' (did you mean 'base'?)"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words: list[str], message: str) -> None:
    ran = Ran(*words)
    assert ran.code == 2 and ran.out == []
    assert len(ran.err) == 1 and ran.err[0].startswith("anygpt: ") and message in ran.err[0]


def test_help() -> None:
    overview = Ran("--help")
    assert overview.code == 0 and any(line.startswith("  base ") for line in overview.out)
    base = Ran("base", "--help")
    assert base.code == 0 and base.err == []
    released = "model-name-or-path image-tokenizer-path speech-tokenizer-path speech-tokenizer-config soundstorm-path"
    for flag in [*released.split(), "output-dir", "prompt", "seed", "device", "dtype", "json"]:
        assert any(line.split()[:1] == [f"--{flag}"] for line in base.out), flag


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    ran = Ran(name, "--help")
    assert ran.code == 0 and f"usage: anygpt {name}" in ran.out[2]


def test_module_entry_point() -> None:
    ran = run_module("base", "--prompt", "nonsense")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1


@pytest.fixture
def terminal(home: Path) -> Iterator[Terminal]:
    terminal = Terminal("base", "--model-name-or-path", MODEL, "--seed", "1")
    yield terminal
    terminal.close()


def test_session_on_a_terminal(terminal: Terminal) -> None:
    """Mistakes and Ctrl-C keep the prompt; `help` shows the forms; `quit` leaves with 0."""
    ready = "anygpt> $"
    terminal.wait_for(ready)
    terminal.type("help")
    assert "text|speech|<text>|<voice file>" in terminal.wait_for(ready)
    terminal.type("nonsense")
    assert "unknown form 'nonsense'" in terminal.wait_for(ready)
    terminal.interrupt_until("stopped")
    terminal.type("text|image|a red apple")
    terminal.wait_for(r"infer_output/base/a-red-apple-\d{8}-\d{6}\.jpg\r\n")
    terminal.type("quit")
    assert terminal.exit_code() == 0
