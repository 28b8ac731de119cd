"""Conversations as files: what is saved comes back, a failed save leaves nothing, a hostile file is one line."""

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_tiny import MODEL, SPECS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anygpt import AnyGPT, conversation
from anygpt.conversation import load_conversation, save_conversation
from anygpt.errors import AnyGPTError
from anygpt.media import save_image
from anygpt.prompts.segments import Media, Turn
from anygpt.vocabulary import Control, Text


@pytest.fixture(scope="module")
def model(tiny_home: Path) -> AnyGPT:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYGPT_HOME", str(tiny_home))
        return AnyGPT.from_pretrained(tiny_home / "models" / MODEL)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def codes(name: str, frames: int = 7) -> torch.Tensor:
    spec = SPECS[name]
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(spec.codebook_size, (spec.num_codebooks, spec.frames or frames), generator=generator)


@pytest.fixture
def turns(folder: Path) -> list[Turn]:
    """Two exchanges with every modality, files for some of it."""
    picture = save_image("photo.JPG", Image.linear_gradient("L"))
    sound = folder / "out" / "reply.wav"
    sound.parent.mkdir()
    sound.write_bytes(b"RIFF of some kind")
    return [
        Turn("user", [Media("image", codes("image"), picture), Text(" what | is\n \U0001f34e <soim> this? ")]),
        Turn("assistant", [Text("a picture "), Media("speech", codes("speech"), sound)]),
        Turn("user", [Media("speech", codes("speech", 3)), Text(" Please answer")]),
        Turn(
            "assistant",
            [Control("<-Ins->"), Text("more"), Control("<-Res->"), Text("yes"), Media("music", codes("music"))],
        ),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_paths(turns: list[Turn]) -> list[Turn]:
    bare = [[Media(s.modality, s.codes_KT) if isinstance(s, Media) else s for s in turn.segments] for turn in turns]
    return [Turn(turn.role, segments) for turn, segments in zip(turns, bare, strict=True)]


def test_what_is_saved_comes_back(turns: list[Turn], model: AnyGPT, folder: Path) -> None:
    path = save_conversation("talk", turns, model)
    assert path == Path("talk.json")
    assert sorted(name.name[:8] for name in Path("talk.media").iterdir()) == ["01-image", "02-speec"]
    Path("photo.JPG").unlink()
    for name in ("talk.json", "talk"):
        loaded = load_conversation(name, model)
        assert without_paths(loaded) == without_paths(turns)
    assert [media.path.read_bytes()[:4] for turn in loaded for media in turn.media if media.path] == [
        b"\xff\xd8\xff\xe0",
        b"RIFF",
    ]
    os.rename(folder / "talk.json", folder / "other.json")
    assert [media.path for turn in load_conversation("other.json", model) for media in turn.media][0] is not None


@settings(max_examples=20)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.text(min_size=1, max_size=9).map(Text),
                st.sampled_from([Media(name, codes(name, frames)) for name in SPECS for frames in (1, 4)]),
            ),
            min_size=1,
            max_size=4,
        ),
        min_size=2,
        max_size=6,
    ).filter(lambda rows: len(rows) % 2 == 0)
)
def test_any_conversation_comes_back(model: AnyGPT, tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "talk.json"
    turns = [Turn("assistant" if number % 2 else "user", row) for number, row in enumerate(rows)]
    assert load_conversation(save_conversation(path, turns, model), model) == turns
    assert not path.with_suffix(".media").exists()


def test_saving_again_replaces_and_tidies(turns: list[Turn], model: AnyGPT, folder: Path) -> None:
    save_conversation("talk.json", turns, model)
    Path("talk.media/mine.txt").write_text("kept")
    loaded = load_conversation("talk.json", model)
    before = contents(folder)
    save_conversation("talk.json", loaded, model)
    assert contents(folder) == before
    save_conversation("talk.json", loaded[2:], model)
    assert [path.name for path in Path("talk.media").iterdir()] == ["mine.txt"]
    assert load_conversation("talk.json", model) == loaded[2:]


def test_saving_refuses_what_is_no_conversation(turns: list[Turn], model: AnyGPT, folder: Path) -> None:
    Path("package.json").write_text('{"name": "x"}')
    Path("blocked.media").write_text("a file")
    Path("linked.media").symlink_to(folder / "out")
    before = contents(folder)
    for name, message in (
        ("package.json", "exists and is no saved conversation"),
        ("out", "out.json"),
        ("blocked.json", "blocked.media: is no folder"),
        ("linked.json", "linked.media: is no folder"),
        ("/proc/nowhere/talk.json", "/proc/nowhere/talk.media"),
        ("x" * 300, "can't be"),
    ):
        if name == "out":
            Path("out.json").mkdir()
        with pytest.raises(AnyGPTError, match=message) as caught:
            save_conversation(name, turns, model)
        assert "\n" not in str(caught.value)
    with pytest.raises(AnyGPTError, match="the conversation is empty"):
        save_conversation("new.json", [], model)
    assert contents(folder) == before


@pytest.mark.parametrize("failing_write", range(3))
@pytest.mark.parametrize("has_earlier", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(
    turns: list[Turn],
    model: AnyGPT,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing_write: int,
    has_earlier: bool,
) -> None:
    """The disk fills up at the first picture, at the second file, or at the JSON file."""
    if has_earlier:
        save_conversation("talk.json", turns[2:], model)
    before = contents(folder)
    written: list[Path] = []

    def write(path: Path, data: Any, real: Callable[..., Any], **settings: Any) -> None:
        written.append(path)
        real(path, data[: len(data) // 2], **settings)
        if len(written) > failing_write:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data, **settings)

    for name in ("write_bytes", "write_text"):
        real = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda path, data, real=real, **s: write(path, data, real, **s))
    with pytest.raises(AnyGPTError, match="No space left on device") as caught:
        save_conversation("talk.json", turns, model)
    assert len(str(caught.value).splitlines()) == 1 and len(written) == failing_write + 1
    monkeypatch.undo()
    os.chdir(folder)
    assert contents(folder) == before and Path("talk.media").exists() == has_earlier * False
    assert without_paths(load_conversation("talk.json", model)) == turns[2:] if has_earlier else True


def test_a_real_limit_on_file_sizes_leaves_everything_as_it_was(turns: list[Turn], model: AnyGPT, folder: Path) -> None:
    """The error of the operating system itself, in a process of its own since the limit can't be lifted again."""
    before = contents(folder)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
            save_conversation("talk.json", turns, model)
        except AnyGPTError as error:
            code = 0 if "File too large" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert contents(folder) == before


def test_a_kill_while_saving_leaves_the_earlier_conversation(turns: list[Turn], model: AnyGPT, folder: Path) -> None:
    save_conversation("talk.json", turns[2:], model)
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os._exit(9)  # dies at the first rename
        save_conversation("talk.json", turns, model)
    os.waitpid(child, 0)
    assert load_conversation("talk.json", model) == without_paths(turns[2:])
    save_conversation("talk.json", turns, model)
    assert without_paths(load_conversation("talk.json", model)) == without_paths(turns)


def saved(turns: list[Turn], model: AnyGPT) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(save_conversation("talk.json", turns, model).read_text(encoding="utf-8"))
    return content


def refused(content: Any, model: AnyGPT) -> str:
    """The one line that loading this content gives."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    Path("bad.json").write_bytes(data)
    with pytest.raises(AnyGPTError) as caught:
        load_conversation("bad.json", model)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) <= 500 and message.startswith("bad.json")
    return message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x00\x01", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"{", "not JSON, or cut off"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"format": ' + b"9" * 100_000 + b"}", "can't be read"),
        (b'{"format": NaN}', "NaN is no number"),
        (b'{"format": "x", "format": "x"}', "a key is given twice"),
        (b"[]", "no saved conversation"),
        (b'{"format": "anygpt-conversation"}', "'version' is None"),
        (b'{"format": "anygpt-conversation", "version": true}', "'version' is True"),
        (b'{"format": "anygpt-conversation", "version": 2}', "this version of anygpt reads 1"),
        (b'{"format": "anygpt-conversation", "version": 1}', "missing key 'turns'"),
        (b'{"format": "anygpt-conversation", "version": 1, "turns": []}', "ends without an answer"),
        (b'{"format": "anygpt-conversation", "version": 1, "turns": [], "turn": 1}', "unknown key 'turn'"),
        (b'{"format": "anygpt-conversation", "version": 1, "turns": "' + b"x" * 9999 + b'"}', "'turns' is"),
        (b" " * (conversation.MAX_BYTES + 1), "a conversation has at most"),
    ],
)
def test_files_that_are_no_conversation(data: bytes, message: str, model: AnyGPT) -> None:
    assert message in refused(data, model)


def test_every_truncation_is_refused(turns: list[Turn], model: AnyGPT) -> None:
    whole = save_conversation("talk.json", turns, model).read_bytes().rstrip()
    for length in range(0, len(whole), 97):
        refused(whole[:length], model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(0), "turn 1 is by the assistant, expected the user"),
        (lambda rows: rows.insert(1, rows[0]), "turn 2 is by the user, expected the assistant"),
        (lambda rows: rows.pop(), "ends without an answer"),
        (lambda rows: rows[0].update(role="system"), "role' is 'system'"),
        (lambda rows: rows[1].update(message=[]), "turn 2 is empty"),
        (lambda rows: rows[1].update(message=["x"]), "expected keys and values"),
        (lambda rows: rows[1]["message"].append({}), "turn 2, part 3: expected one of 'text', 'control' and 'media'"),
        (lambda rows: rows[1]["message"][0].update(control="<-Res->"), "got 2 of them"),
        (lambda rows: rows[1]["message"][0].update(codes=[[1]]), "'codes' and 'file' belong to 'media'"),
        (lambda rows: rows[1]["message"][0].update(text=3), "text' is 3"),
        (lambda rows: rows[1]["message"][0].update(text="\ud800"), "not valid Unicode at character 0"),
        (lambda rows: rows[1]["message"].append({"control": "<eos>"}), "control token '<eos>' can't stand"),
        (lambda rows: rows[1]["message"].append({"control": "[Human]"}), "control token '[Human]' can't stand"),
        (lambda rows: rows[1]["message"].append({"control": "<soim>"}), "control token '<soim>' can't stand"),
        (lambda rows: rows[0]["message"].append({"control": "<-Res->"}), "can't stand in a message of the user"),
        (lambda rows: rows[0]["message"][0].update(media="imagee"), "no modality 'imagee' (did you mean 'image'?)"),
        (lambda rows: rows[0]["message"][0].update(media="audio"), "no modality 'audio'"),
        (lambda rows: rows[0]["message"][0].update(codes=None), "'codes' must be 1 lists"),
        (lambda rows: rows[0]["message"][0].update(codes=[]), "'codes' must be 1 lists"),
        (lambda rows: rows[0]["message"][0].update(codes=[[]]), "expected exactly 32"),
        (lambda rows: rows[0]["message"][0].update(codes=[[1] * 31]), "31 frames of codes; expected exactly 32"),
        (lambda rows: rows[0]["message"][0].update(codes=[[24] * 32]), "image code 24 at level 0, frame 0"),
        (lambda rows: rows[0]["message"][0].update(codes=[[-1] * 32]), "image code -1 at level 0"),
        (lambda rows: rows[0]["message"][0].update(codes=[[10**40] * 32]), "image code int at level 0"),
        (lambda rows: rows[0]["message"][0].update(codes=[[1.5] * 32]), "image code 1.5 at level 0"),
        (lambda rows: rows[0]["message"][0].update(codes=[[True] * 32]), "image code True at level 0"),
        (lambda rows: rows[0]["message"][0].update(codes=[["\n"] * 32]), "image code str at level 0"),
        (lambda rows: rows[3]["message"][4].update(codes=[[1], [1, 2], [1]]), "3 lists of equal length"),
        (lambda rows: rows[3]["message"][4].update(codes=[[1], [1]]), "2 levels of codes; expected 3"),
    ],
)
def test_turns_that_break_the_rules(
    change: Callable[[list[Any]], Any], message: str, turns: list[Turn], model: AnyGPT
) -> None:
    content = saved(turns, model)
    change(content["turns"])
    assert message in refused(content, model)


def test_codes_of_other_tokenizers_are_refused(turns: list[Turn], model: AnyGPT) -> None:
    content = saved(turns, model)
    content["tokenizers"]["music"] = "0" * 64
    message = refused(content, model)
    assert "its music codes were made by another tokenizer (fingerprint '000000000000'" in message
    del content["tokenizers"]["music"]
    assert "doesn't say which tokenizer made the music codes" in refused(content, model)


@pytest.mark.parametrize(
    "file",
    [
        "../secret.jpg",
        "talk.media/../../secret.jpg",
        "talk.media/..",
        "/etc/passwd",
        "secret.jpg",
        "talk.media",
        "talk.media/",
        "out/reply.wav",
        "talk.media/sub/x.jpg",
        "talk.media/link.jpg",
        "talk.media/loop.jpg",
        "talk.media/fifo",
        "linked.media/secret.jpg",
        "talk.media\\..\\x.jpg",
        "talk.media/\0",
        "talk.media/" + "x" * 999,
        "",
    ],
)
def test_media_outside_the_folder_are_refused(file: str, turns: list[Turn], model: AnyGPT, folder: Path) -> None:
    content = saved(turns, model)
    (folder / "secret.jpg").write_bytes(b"x")
    (folder / "talk.media" / "link.jpg").symlink_to(folder / "secret.jpg")
    (folder / "talk.media" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "linked.media").symlink_to(folder)
    os.mkfifo(folder / "talk.media" / "fifo")
    content["turns"][0]["message"][0]["file"] = file
    assert "is not in a media folder beside the conversation" in refused(content, model)


def test_a_missing_media_file_costs_nothing_but_the_file(turns: list[Turn], model: AnyGPT) -> None:
    save_conversation("talk.json", turns, model)
    for path in Path("talk.media").iterdir():
        path.unlink()
    loaded = load_conversation("talk.json", model)
    assert loaded == without_paths(turns)
    save_conversation("talk.json", loaded, model)
    assert load_conversation("talk.json", model) == loaded


@pytest.mark.parametrize("name", ["nowhere.json", ".", "fifo", "/dev/zero", "x" * 999, "no/such/folder", "\0"])
def test_paths_that_are_no_files(name: str, model: AnyGPT) -> None:
    os.mkfifo("fifo")
    with pytest.raises(AnyGPTError, match="no such file|is a directory|not a regular file|can't be read"):
        load_conversation(name, model)
