"""The chat command as a user meets it: what it prints, saves and keeps, at a terminal and without one."""

import errno
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_cli import Ran, Terminal
from fixtures_tiny import MODEL
from PIL import Image
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from anygpt.chat_lines import Message, find_attachments, parse_line
from anygpt.cli import chat as chat_command
from anygpt.cli.chat_page import read_script
from anygpt.cli.completion import LineCompleter
from anygpt.errors import AnyGPTError
from anygpt.media import Audio, kind_of_file, load_audio, load_image, save_audio
from anygpt.paths import checkout_root
from anygpt.session import Session

ROOT = checkout_root() or Path()
SCRIPT = ROOT / "docs" / "chat_script.txt"


@pytest.fixture(autouse=True)
def home(tiny_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home whose chat model is the tiny one, with short answers; the working folder has a picture and sounds."""
    home = tmp_path / "home"
    for name in ("tokenizers", "task_prompts"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).symlink_to(tiny_home / name)
    (home / "models").mkdir()
    (home / "models" / chat_command.DEFAULT_MODEL).symlink_to(tiny_home / "models" / MODEL)
    shutil.copytree(tiny_home / "config", home / "config")
    speech = {"max_new_tokens": 12, "min_new_tokens": 5, "vc_steps": 1}
    for name, settings in (("", {"max_new_tokens": 8}), ("speech_", speech)):
        (home / "config" / f"{name}generate_config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("ANYGPT_HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Image.linear_gradient("L").save("photo.png")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 16_000)).astype(np.float32)
    save_audio("voice.wav", Audio(noise, 16_000))
    save_audio("tune.wav", Audio(noise[:, :4000], 16_000))
    return home


def chat(*lines: str, flags: tuple[str, ...] = ()) -> Ran:
    return Ran("chat", "--seed", "1", *flags, *(word for line in lines for word in ("--prompt", line)))


def rows(*lines: str) -> list[dict[str, Any]]:
    """The JSON objects that the lines give; nothing else is printed."""
    ran = chat(*lines, flags=("--json",))
    return [json.loads(line) for line in ran.out]


def test_lines_are_one_conversation() -> None:
    ran = chat("interleaved|a red apple|image", "interleaved|what is it?|text|photo.png", "|history")
    assert ran.code == 0 and ran.err == []
    (path,) = [line for line in ran.out[:-4] if re.fullmatch(r"infer_output/chat/a-red-apple-\d{8}-\d{6}\.jpg", line)]
    assert load_image(path).size == (32, 32)
    first, answer, second, last = ran.out[-4:]
    assert (first, second) == ("you: a red apple", "you: [image: photo.png] what is it?")
    assert f"[image: {path}]" in answer and last.startswith("model: ")


def test_json_has_an_object_for_every_line() -> None:
    spoken, played, bad, notes = rows(
        "interleaved||speech||voice.wav|voice.wav", "interleaved|more|music||||tune.wav", "|unda", "|undo"
    )
    assert spoken["prompt"].startswith("interleaved||speech") and spoken["seconds"] >= 0
    (made,) = [part for part in spoken["answer"] if part.get("modality") == "speech"]
    assert load_audio(made["path"]).duration_s == pytest.approx(made["duration_s"], abs=0.001) and made["frames"] > 0
    assert spoken["text"] == "\n".join(part["text"] for part in spoken["answer"] if "text" in part)
    assert "music" in [part.get("modality") for part in played["answer"]]
    assert bad == {"prompt": "|unda", "error": bad["error"]} and "did you mean '|undo'?" in bad["error"]
    assert notes == {"prompt": "|undo", "notes": ["the last exchange is forgotten"]}


def test_the_same_seed_gives_the_same_conversation() -> None:
    lines = ("interleaved|draw|image", "hello")

    def without_paths_and_times(answers: list[dict[str, Any]]) -> list[Any]:
        return [[part.get("text", part.get("frames")) for part in row["answer"]] for row in answers]

    first, second = (without_paths_and_times(rows(*lines)) for _ in range(2))
    assert first == second


def test_standard_input_goes_on_after_a_mistake_and_stops_at_quit() -> None:
    ran = Ran("chat", stdin="interleaved|hi|text\n\n|hisory\n|history\n|quit\nnever|read\n")
    assert ran.code == 2
    assert len(ran.err) == 1 and ran.err[0].startswith("anygpt: unknown command '|hisory' (did you mean '|history'?)")
    assert [line for line in ran.out if line.startswith("you: ")] == ["you: hi"]


def test_clear_and_undo() -> None:
    ran = chat("interleaved|one|text", "interleaved|two|text", "|undo", "|history", "|clear", "|history", "|undo")
    assert ran.code == 2
    assert [line for line in ran.out if line.startswith("you: ")] == ["you: one"]
    assert ran.out[-2:] == ["the conversation is forgotten", "the conversation is empty"]
    assert ran.err == ["anygpt: nothing to undo: the conversation is empty"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "|unknown"], "unknown command '|unknown'"),
        (["--prompt", "a|b"], "unknown task 'a'"),
        (["--prompt", ""], "the line is empty"),
        (["--prompt", "interleaved|x||nowhere.png"], "nowhere.png: no such file"),
        (["--prompt", "interleaved|x|image|tune.wav,voice.wav"], "2 voice prompts"),
        (["--prompt", "interleaved|x|audio"], "unknown modality 'audio'"),
        (["--prompt", "w " * 999], "context"),
        (["--prompt", "hi", "--output-dir", "/proc/nowhere"], "/proc/nowhere"),
        (["--prompt", "hi", "--model-name-or-path", "/no/model"], "/no/model: no such model folder"),
        (["--prompt", "hi", "--script", "x"], "--prompt and --script"),
        (["--script", "nowhere.txt"], "nowhere.txt: can't be read as a script"),
        (["--script", "photo.png"], "photo.png: can't be read as a script"),
        (["--page", "x.md"], "--page needs --script or --prompt"),
        (["--prompt", "hi", "--sede", "1"], "unknown flag --sede (did you mean '--seed'?)"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words: list[str], message: str) -> None:
    ran = Ran("chat", *words)
    assert ran.code == 2 and ran.out == []
    assert len(ran.err) == 1 and ran.err[0].startswith("anygpt: ") and message in ran.err[0]


def test_without_the_chat_model_another_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_command, "DEFAULT_MODEL", "anygpt-nobody-has")
    ran = chat("hello")
    assert ran.code == 2 and ran.err[0].startswith("anygpt: models/anygpt-nobody-has not found") and len(ran.err) == 1


def test_the_flags_of_base_are_there() -> None:
    def flags(command: str) -> set[str]:
        return {line.split()[0] for line in Ran(command, "--help").out if line.startswith("  --")}

    assert flags("base") - flags("chat") == {"--input", "--output", "--batch-size", "--n"}
    assert flags("chat") - flags("base") == {"--script", "--page"}


def test_save_and_load_in_another_process() -> None:
    saved = chat("interleaved|a red apple|image", "interleaved|what?|text|photo.png", "|save my talk", "|history")
    assert saved.code == 0 and "saved to my talk.json" in saved.out
    assert sorted(path.suffix for path in Path("my talk.media").iterdir()) == [".jpg", ".png"]
    loaded = chat("|load my talk", "interleaved|and now?|text", "|undo", "|save my talk.json", "|load my talk.json")
    assert loaded.code == 0
    texts = [re.sub(r"\[(\w+): [^]]*\]", r"[\1]", line) for line in saved.out[-4:]]
    assert [re.sub(r"\[(\w+): [^]]*\]", r"[\1]", line) for line in loaded.out[-4:]] == texts


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[" * 100_000,
        b"\xff\x00",
        b'{"format": "anygpt-conversation", "version": 1, "turns": [{"role": "user", "message": [{"text": "hi"}]}]}',
        b'{"format": "anygpt-conversation", "version": 1, "turns": [{"role": "user", "message": [{"media": "image",'
        b' "codes": [[1]], "file": "/etc/passwd"}]}]}',
    ],
)
def test_loading_a_hostile_file_keeps_the_conversation(content: bytes) -> None:
    Path("bad.json").write_bytes(content)
    ran = chat("interleaved|hi|text", "|load bad.json", "|history")
    assert ran.code == 2 and ran.out[-2] == "you: hi"
    assert len(ran.err) == 1 and ran.err[0].startswith("anygpt: bad.json: ")


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(Path, "write_bytes", write)


def test_saving_to_a_full_disk_keeps_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    ran = chat("interleaved|hi|text|photo.png", "|save talk.json", "|history")
    assert ran.code == 2 and ran.out[-2] == "you: [image: photo.png] hi"
    assert len(ran.err) == 1 and "No space left on device" in ran.err[0]
    assert not Path("talk.json").exists() and not Path("talk.media").exists()


def test_an_answer_that_cant_be_saved_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    ran = chat("interleaved|hi|text", "interleaved|say it|speech", "|history")
    assert ran.code == 2 and [line for line in ran.out if line.startswith("you: ")] == ["you: hi"]
    assert len(ran.err) == 1 and "No space left on device" in ran.err[0]


def test_a_full_context_is_told() -> None:
    ran = chat(*["interleaved|the quick brown fox jumps over the lazy dog, again and again|text"] * 7)
    assert ran.code == 0 and ran.err
    told = r"anygpt: the conversation exceeds the model's context: the oldest \d messages are forgotten"
    assert all(re.fullmatch(told, line) for line in ran.err)


def test_heard_words_get_a_line_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from anygpt.generation.reading import TextPiece

    def send(self: Session, *_: Any, **__: Any) -> Iterator[Any]:
        yield TextPiece("draw", is_heard=True)
        yield TextPiece(" it", is_heard=True)
        yield TextPiece("Here it\x1b[2J")
        yield TextPiece(" is")

    monkeypatch.setattr(Session, "send", send)
    assert chat("hi").out == ["heard: draw it", "Here it\N{REPLACEMENT CHARACTER}[2J is"]
    (row,) = rows("hi")
    assert (row["heard"], row["text"]) == ("draw it", "Here it\x1b[2J is")


# At a terminal


@pytest.fixture
def start() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def begin(*words: str, **settings: str) -> Terminal:
        started.append(Terminal("chat", *words, **settings))
        return started[-1]

    yield begin
    for terminal in started:
        terminal.close()


READY = "anygpt> $"


def test_session_on_a_dumb_terminal(start: Callable[..., Terminal]) -> None:
    """Mistakes and Ctrl-C keep the conversation; nothing but text is printed."""
    terminal = start("--seed", "1")
    terminal.wait_for(READY)
    terminal.type("|help")
    assert "voice prompt" in terminal.wait_for(READY)
    terminal.type("interleaved|draw it|image")
    assert re.search(r"infer_output/chat/draw-it-\d{8}-\d{6}\.jpg\r\n", terminal.wait_for(READY))
    terminal.type("interleaved|a|image|nope.png")
    assert "nope.png: no such file" in terminal.wait_for(READY)
    terminal.interrupt_until("stopped; `|quit` leaves")
    terminal.type("|history")
    assert "you: draw it" in terminal.wait_for("model: ")
    terminal.type("|quit")
    assert terminal.exit_code() == 0


def test_editing_completion_and_history_on_a_terminal(start: Callable[..., Terminal], tmp_path: Path) -> None:
    """Lines are remembered from one run to the next.

    Each key waits for the prompt: until that stands the terminal is in line mode, where Ctrl-D is no key.
    """
    terminal = start(TERM="xterm", COLUMNS="200")
    terminal.wait_for("anygpt>")
    terminal.press("|hx\x7fist\t")
    terminal.wait_for("ory")
    terminal.press("\r")
    terminal.wait_for(r"the conversation is empty[\s\S]*anygpt>")
    terminal.press("\x03")
    terminal.wait_for(r"stopped[\s\S]*anygpt>")
    terminal.press("\x04")
    assert terminal.exit_code() == 0
    assert (tmp_path / "state" / "anygpt" / "chat_history").read_text().endswith("+|history\n")
    terminal = start(TERM="xterm", COLUMNS="200")
    terminal.wait_for("anygpt>")
    terminal.press("\x1b[A")
    terminal.wait_for("history")
    terminal.press("\r")
    terminal.wait_for("the conversation is empty")


def test_ctrl_c_stops_an_answer_and_takes_the_message_back(start: Callable[..., Terminal]) -> None:
    slow = "from anygpt.engine import AnyGPT; import time; AnyGPT.decode = lambda *_, **__: time.sleep(600)"
    terminal = start("--seed", "1", first=slow)
    terminal.wait_for(READY)
    terminal.type("interleaved|hi|text")
    terminal.wait_for(READY)
    terminal.type("interleaved|draw it|image")
    terminal.wait_for("making image")
    terminal.interrupt_until("stopped")
    terminal.type("|history")
    told = terminal.wait_for("model: ")
    assert "you: hi" in told and "draw it" not in told.partition("|history")[2]
    terminal.type("quit")
    assert terminal.exit_code() == 0


def test_ctrl_c_without_a_terminal_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("anygpt.engine.save_media", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ran = chat("interleaved|draw it|image", "never")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130 and ran.err == []


# Completion


def completions(line: str) -> list[str]:
    found = LineCompleter(["image", "speech", "text"]).get_completions(Document(line), CompleteEvent())
    return [line[: len(line) + item.start_position] + item.text for item in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("|", ["|clear", "|undo", "|save ", "|load ", "|history", "|help", "|quit"]),
        ("|Un", ["|undo"]),
        ("|save ph", ["|save photo.png"]),
        ("|undo ph", []),
        ("int", ["interleaved|"]),
        ("hello", []),
        ("interleaved|a red apple", []),
        ("interleaved|x|s", ["interleaved|x|speech"]),
        ("interleaved|x|image|ph", ["interleaved|x|image|photo.png"]),
        ("interleaved|x|image|photo.png,tu", ["interleaved|x|image|photo.png,tune.wav"]),
        (r"interleaved|a \| b|image|b", [r"interleaved|a \| b|image|b\,\|.png"]),
    ],
)
def test_completion(line: str, expected: list[str]) -> None:
    Path("b,|.png").touch()
    assert completions(line) == expected


# The page of a conversation


def test_a_script_becomes_a_page() -> None:
    see, hear = (
        "# To see\ninterleaved|*what* is it?|text|photo.png\n\n",
        "# To hear\ninterleaved|sing|music||||tune.wav",
    )
    Path("script.txt").write_text(f"{see}{hear}\n|undo\nhi\n")
    Path("docs/talk").mkdir(parents=True)
    Path("docs/talk/99-old.wav").touch()
    ran = Ran("chat", "--script", "script.txt", "--page", "docs/talk.md", "--seed", "1")
    assert ran.code == 0 and ran.err == ["docs/talk.md"]
    page = Path("docs/talk.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", page, flags=re.M) == ["1. To see", "2. To hear", "3.", "4."]
    assert "~~~text\ninterleaved|*what* is it?|text|photo.png\n~~~" in page and "the last exchange is forgotten" in page
    links = re.findall(r"\]\((.*?)\)", page)
    assert links[0] == "talk/01-1-user-image.jpg" and "talk/02-1-user-music.wav" in links
    assert any("assistant-music.wav" in link for link in links)
    assert {f"talk/{path.name}" for path in Path("docs/talk").iterdir()} == set(links)
    assert all(load_audio(Path("docs", link)).rate_hz <= 16_000 for link in links if link.endswith(".wav"))
    assert "by `anygpt-mini-chat` with seed 1" in page


def test_no_page_where_a_line_failed() -> None:
    ran = chat("interleaved|hi|text", "|unda", flags=("--page", "talk.md"))
    assert ran.code == 2 and not Path("talk.md").exists()


def test_empty_script() -> None:
    Path("script.txt").write_text("# nothing\n\n")
    with pytest.raises(AnyGPTError, match="holds no line"):
        read_script(Path("script.txt"))


def test_the_script_in_docs_has_everything_in_and_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    messages = [parse_line(line) for _, line in read_script(SCRIPT)]
    assert len(messages) == 10 and all(heading for heading, _ in read_script(SCRIPT))
    asked = [message for message in messages if isinstance(message, Message)]
    given = {name for message in asked for name, _ in find_attachments(message).media}
    assert given == {"image", "speech", "music"} <= {message.answer for message in asked}
    assert any(find_attachments(message).voice for message in asked)


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / "models" / chat_command.DEFAULT_MODEL).exists(), reason="the chat model is not in this tree"
)
def test_the_script_in_docs_on_the_shipped_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ten turns, each answered in the modality asked for."""
    monkeypatch.delenv("ANYGPT_HOME")
    monkeypatch.chdir(ROOT)
    ran = Ran("chat", "--script", str(SCRIPT), "--json", "--seed", "1", "--output-dir", str(tmp_path / "out"))
    assert ran.code == 0
    for answer in map(json.loads, ran.out):
        asked = parse_line(answer["prompt"])
        assert isinstance(asked, Message)
        names = [part.get("modality", "text") for part in answer["answer"]]
        assert asked.answer is None or asked.answer in names
        for part in answer["answer"]:
            if "path" in part:
                assert kind_of_file(part["path"]) == ("image" if part["modality"] == "image" else "audio")
