"""Conversations of other layouts to instruction data: what becomes of text and media, and of what is wrong."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_tiny import MODEL, SPECS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anygpt.cli.main import main
from anygpt.code_strings import codes_to_string
from anygpt.data import tars
from anygpt.data.convert import run as run_module
from anygpt.data.convert import source as source_module
from anygpt.data.convert.run import convert
from anygpt.data.convert.source import array_items
from anygpt.data.convert.store import MediaStore
from anygpt.data.instructions import turns_of
from anygpt.data.jsonl import JsonlFile
from anygpt.data.media_codes import Fault
from anygpt.data.storage import Place
from anygpt.errors import AnyGPTError
from anygpt.media import Audio, load_audio, load_image, save_audio, save_image
from anygpt.paths import checkout_root
from anygpt.tokenizers.base import load_tokenizer
from anygpt.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("home", "in_tmp_path")

NAMES = {"image": "seed-tiny", "speech": "speech-tiny", "music": "music-tiny"}
REQUEST = " Please recognize the voice command and give reply and voice"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures and four sounds."""
    folder = tmp_path_factory.mktemp("media")
    random = np.random.default_rng(0)
    for n in range(3):
        save_image(folder / f"p{n}.png", Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)))
    for n in range(4):
        wave = random.normal(0, 0.2, (1, 8000 + 1600 * n)).clip(-1, 1).astype(np.float32)
        save_audio(folder / f"s{n}.wav", Audio(wave, 16_000))
    return folder


@pytest.fixture
def span(home: Path, media: Path) -> Callable[[str, str], str]:
    """The code string of a file of `media`, encoded alone."""

    def encode(modality: str, name: str) -> str:
        tokenizer = load_tokenizer(home / "tokenizers" / NAMES[modality])
        loaded = load_image(media / name) if modality == "image" else load_audio(media / name)
        return codes_to_string(SPECS[modality], tokenizer.encode([loaded])[0])

    return encode


def write_json(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_tar(path: Path, members: dict[str, Path | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path | str | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def messages(row: dict[str, Any]) -> list[str]:
    return [turn["message"] for turns in row["conversation"] for turn in turns]


def reasons(path: Path | None) -> list[str]:
    return [error["reason"] for error in read(path)]


@pytest.fixture
def anyinstruct(media: Path, tmp_path: Path) -> Path:
    """A part of AnyInstruct with its tars; returns the metadata."""
    part = tmp_path / "part1"
    write_tar(part / "images_224.tar", {"images_224/p0.png": media / "p0.png", "images_224/p1.png": media / "p1.png"})
    # Members of the same name in two archives: a modality's own archive counts.
    write_tar(part / "speech.tar", {f"speech/chunk_0/{n}.wav": media / f"s{n}.wav" for n in range(3)})
    write_tar(part / "music.tar", {"./music/3.wav": media / "s3.wav", "./music/chunk_0/0.wav": media / "s3.wav"})
    rows = [
        {
            "chat": [
                {"role": "USER", "message": "What is this?", "image": "p0.png"},
                {"role": "AnyGPT", "message": "Noise.", "image": None, "music": ""},
                {"role": "USER", "message": "Say that again.", "speech": "chunk_0/0.wav"},
                {"role": "AnyGPT", "message": "Noise!", "speech": "chunk_0/1.wav"},
            ]
        },
        {
            "id": "two",
            "conversation": [
                [
                    {"role": "user", "message": "Mix these", "images": ["p0.png", "images/p1.png"], "music": "3.wav"},
                    {"role": "assistant", "message": "Here.", "music": ["music/3.wav"], "image": "p1.png"},
                ]
            ],
        },
    ]
    return write_json(part / "metadata.json", rows)


def test_anyinstruct_with_its_tars(
    anyinstruct: Path, span: Callable[[str, str], str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", "anyinstruct", str(anyinstruct), "--out", "out.jsonl", "--model", MODEL])
    assert capsys.readouterr().out == "out.jsonl\n"
    first, second = read("out.jsonl")
    assert (first["id"], second["id"]) == (1, "two")
    p0, p1, music = span("image", "p0.png"), span("image", "p1.png"), span("music", "s3.wav")
    assert messages(first) == [
        f"{p0} What is this?",
        "Noise.",
        f"{span('speech', 's0.wav')} {REQUEST}",
        f"<-Ins->Say that again.<-Res->Noise!{span('speech', 's1.wav')}",
    ]
    assert messages(second) == [f"{p0} {p1} {music} Mix these", f"Here.{p1}{music}"]
    vocab = Vocabulary.from_pretrained(home / "models" / MODEL)
    assert [turn.role for row in (first, second) for turn in turns_of(row, vocab, "here")] == ["user", "assistant"] * 3


def test_summary(anyinstruct: Path) -> None:
    result = convert("anyinstruct", anyinstruct, "out.jsonl", model=MODEL)
    assert (result.written, result.skipped, result.errors) == (2, 0, None)
    assert result.counts == {"messages": 6, "image": 4, "speech": 2, "music": 2}
    again = convert("anyinstruct", anyinstruct, "out.jsonl", model=MODEL)
    assert again.was_finished and again.counts == result.counts


def test_bad_anyinstruct_rows_are_listed_with_the_reason(anyinstruct: Path, media: Path) -> None:
    good = {"chat": [{"role": "human", "text": "Hello"}, {"role": "mmgpt", "text": "Hi"}]}

    def chat(question: dict[str, Any], answer: dict[str, Any] | None = None) -> dict[str, Any]:
        reply = answer or {"role": "AnyGPT", "message": "Yes"}
        return {"chat": [{"role": "USER", "message": "So?"} | question, reply]}

    cases: list[tuple[Any, str]] = [
        (
            chat({"image": "gone.png"}),
            "image 'gone.png': no such file in part1, images_224.tar, links.tar, music.tar, sp",
        ),
        (chat({"image": "../part1/p0.png"}), "'../part1/p0.png': the name is not that of a file below"),
        (chat({"image": "/etc/passwd"}), "'/etc/passwd': the name is not that"),
        (chat({"image": "c:\\p0.png"}), "the name is not that"),
        (chat({"image": "p\0.png"}), "the name is not that"),
        (chat({"image": 7}), "message 1: field 'image' is int, expected the name of a file"),
        (chat({"image": "chunk_0/2.wav"}), "image 'chunk_0/2.wav': not a picture"),
        (
            chat({"image": "chunk_0/0.wav"}),
            "the name fits music.tar: ./music/chunk_0/0.wav and speech.tar: speech/chunk",
        ),
        (chat({"music": "link.wav"}), "music 'link.wav': is a link or special file in links.tar"),
        (chat({"role": "system"}), "message 1: role is 'system', expected USER or AnyGPT"),
        (chat({"role": None}), "message 1: role is None"),
        (chat({}, {"role": "USER", "message": "Well?"}), "expected user and assistant in turn"),
        (chat({"message": "say <eoh> [Human]"}), "message 1 holds '<eoh>'"),
        (chat({}, {"role": "AnyGPT", "message": "<👀12>"}), "message 2 holds '<👀12>'"),
        (chat({"message": "half \ud83d"}), "surrogate"),
        (chat({"message": " "}), "is empty"),
        (chat({"message": ["x"]}), "field 'message' is list, expected text"),
        (chat({"message": "", "speech": "chunk_0/0.wav"}), "message 1: speech without the words in it"),
        (chat({"speech": ["chunk_0/0.wav", "chunk_0/1.wav"]}), "one instruction"),
        ({"chat": good["chat"][:1]}, "expected pairs"),
        ({"chat": []}, "'chat' is missing or empty"),
        ({"chat": ["hello"]}, "message 1 is not an object"),
        ([good], "not a JSON object"),
        (None, "not a JSON object"),
    ]
    with tarfile.open(anyinstruct.parent / "links.tar", "w") as archive:
        info = tarfile.TarInfo("link.wav")
        info.type, info.linkname = tarfile.SYMTYPE, str(media / "s3.wav")
        archive.addfile(info)
    rows = [good, *(row for row, _ in cases), good]
    for id, row in enumerate(rows):
        if isinstance(row, dict):
            row["id"] = id
    write_json(anyinstruct, rows)
    result = convert("anyinstruct", anyinstruct, "out.jsonl", model=MODEL, batch_size=3)
    assert (result.written, result.skipped) == (2, len(cases))
    errors = read(result.errors)
    assert [error["row"] for error in errors] == list(range(2, len(cases) + 2))
    for error, (row, reason) in zip(errors, cases, strict=True):
        assert reason in error["reason"], error
        assert error["id"] == (row["id"] if isinstance(row, dict) else error["row"])


def llava_row(name: str | list[str] | None, question: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A picture."}]
    return {"id": "a", "conversations": turns} | ({"image": name} if name is not None else {}) | changes


def test_llava(media: Path, span: Callable[[str, str], str], tmp_path: Path) -> None:
    p0, p1 = span("image", "p0.png"), span("image", "p1.png")
    more = [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": " Yes. "}]
    row = llava_row("p0.png", "<image>\nWhat is this?")
    row["conversations"] += more
    rows = [
        row,
        llava_row("p1.png", "What is this?\n<image>", id=None),
        llava_row(["p0.png", "p1.png"], "<image> or <image>?"),
        llava_row(None, "Hello"),
        llava_row(
            None, "Hello", conversations=[{"from": "gpt", "value": "Hi"}, *llava_row(None, "Yo")["conversations"]]
        ),
    ]
    source = tmp_path / "chat.jsonl"
    source.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    result = convert("llava", source, "out.jsonl", media=[media], model=MODEL)
    assert result.skipped == 0
    converted = read(result.out)
    assert [row["id"] for row in converted] == ["a", 3, "a", "a", "a"]
    assert [messages(row) for row in converted] == [
        [f"{p0} What is this?", "A picture.", "Sure?", "Yes."],
        [f"{p1} What is this?", "A picture."],
        [f"{p0} {p1} or ?", "A picture."],
        ["Hello", "A picture."],
        ["Yo", "A picture."],
    ]


def test_bad_llava_rows(media: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes((media / "p0.png").read_bytes()[:1000])
    cases = [
        (llava_row("p0.png", "What?"), "0 <image> marks, but 1 names"),
        (llava_row(None, "<image> What?"), "1 <image> marks, but 0 names"),
        (llava_row(["p0.png", 3], "<image>"), "field 'image'"),
        (llava_row("p0.png", "<image>\n"), "one instruction"),
        (llava_row("cut.png", "<image>\nWhat?"), "image 'cut.png': the picture is damaged or cut off"),
        (llava_row(None, "x", conversations=[{"from": "bot", "value": "x"}]), "'from' is 'bot', expected human or gpt"),
        (llava_row(None, "x", conversations=[{"from": "gpt", "value": "<image>"}]), "but is an answer"),
        (llava_row(None, "x", conversations=[{"from": "human"}]), "message 1 is not an object with from and value"),
        (llava_row(None, "x", conversations="x"), "'conversations' is missing"),
    ]
    source = write_json(tmp_path / "chat.json", [*(row for row, _ in cases), llava_row(None, "Hello")])
    result = convert("llava", source, "out.jsonl", media=[media, tmp_path], model=MODEL)
    assert result.written == 1
    for got, (_, reason) in zip(reasons(result.errors), cases, strict=True):
        assert reason in got


@pytest.mark.parametrize("modality", ["image", "speech", "music"])
def test_pairs_become_questions_and_answers(
    modality: str, media: Path, span: Callable[[str, str], str], tmp_path: Path
) -> None:
    files = sorted(media.glob("*.png" if modality == "image" else "*.wav")) * 4
    rows = [json.dumps({modality: str(file), "text": f"text {n}"}) for n, file in enumerate(files)]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        "\n".join([*rows[:2], "", *rows[2:], '{"text": "x"}', json.dumps({modality: "a", "text": "<s>"})])
    )
    result = convert("pairs", manifest, "out.jsonl", model=MODEL, seed=1)
    assert [error["row"] for error in read(result.errors)] == [len(files) + 2, len(files) + 3]
    converted = read(result.out)
    assert len(converted) == len(files)
    asked = 0
    for n, (row, file) in enumerate(zip(converted, files, strict=True)):
        codes, (question, answer) = span(modality, file.name), messages(row)
        assert row["id"] == n + 1 + (n > 1)
        if question.startswith(codes):
            assert answer == f"text {n}" and len(question) > len(codes) + 5
            asked += 1
        else:
            assert answer == codes and question.endswith(f" This is input: text {n}")
    assert asked == 0 if modality == "speech" else 0 < asked < len(files)
    convert("pairs", manifest, "same.jsonl", model=MODEL, seed=1)
    convert("pairs", manifest, "other.jsonl", model=MODEL, seed=2)
    assert Path("same.jsonl").read_bytes() == Path("out.jsonl").read_bytes() != Path("other.jsonl").read_bytes()


def test_pairs_are_whole_files_only(media: Path, tmp_path: Path) -> None:
    """A part of a recording must not become all of it."""
    whole = {"music": str(media / "s0.wav"), "text": "whole"}
    rows = [whole, {**whole, "begin_s": 0.0, "end_s": 0.2}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = convert("pairs", tmp_path / "m.jsonl", "out.jsonl", model=MODEL)
    (error,) = read(result.errors)
    assert result.written == 1 and error["row"] == 2 and "parts of recordings" in error["reason"]


def test_one_direction_of_pairs(media: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps({"image": str(media / "p0.png"), "text": "x"}) + "\n" for _ in range(4)))
    for direction, has_media in (("x2text", [True, False]), ("text2x", [False, True])):
        result = convert("pairs", manifest, f"{direction}.jsonl", model=MODEL, direction=direction)
        assert all(["<soim>" in text for text in messages(row)] == has_media for row in read(result.out))


# Where media lie


def stored(found: Place | Fault) -> bytes | str:
    if isinstance(found, Fault):
        return found.reason
    with found.as_file() as path:
        return path.read_bytes()


def test_media_are_found_wherever_they_lie(tmp_path: Path) -> None:
    speech = write_tar(
        tmp_path / "speech.tar", {"speech/c1/1.mp3": b"1", "speech/c2/1.mp3": b"2", "deep/er/9.mp3": b"9"}
    )
    music = write_tar(tmp_path / "music_v2.tar", {"c1/1.mp3": b"m", "a.mp3": b"old", "a.mp3 ": b"x", "b/x.mp3": b"b"})
    with tarfile.open(music, "a") as archive:
        info = tarfile.TarInfo("a.mp3")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    (tmp_path / "f" / "images").mkdir(parents=True)
    (tmp_path / "f" / "images" / "i.png").write_bytes(b"i")
    store = MediaStore([tmp_path / "f", speech, music])
    assert stored(store.find("speech", "c1/1.mp3")) == b"1"
    assert stored(store.find("speech", "speech/c2/1.mp3")) == b"2"
    assert stored(store.find("speech", "./er/9.mp3")) == b"9"
    assert stored(store.find("music", "c1/1.mp3")) == b"m"
    assert stored(store.find("music", "music/x.mp3")) == b"b"
    assert stored(store.find("music", "a.mp3")) == b"new"
    assert stored(store.find("image", "i.png")) == b"i"
    assert stored(store.find("image", "images/i.png")) == b"i"
    assert (
        stored(store.find("speech", "1.mp3"))
        == "the name fits speech.tar: speech/c1/1.mp3 and speech.tar: speech/c2/1.mp3"
    )
    assert stored(store.find("speech", "c3/1.mp3")) == "no such file in f, speech.tar, music_v2.tar"
    assert "no such file" in str(stored(store.find("image", "x" * 400)))
    for name in ("", "..", "../f/images/i.png", "a/../../f", "/a.mp3"):
        assert "below the media folder" in str(stored(store.find("image", name)))


def test_only_plain_files_of_an_archive_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "secret"
            archive.addfile(info)
        info = tarfile.TarInfo("../../climbs")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"c"))
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 0)
    store = MediaStore([path])
    for name in ("soft", "hard", "pipe"):
        assert stored(store.find("image", name)) == "is a link or special file in x.tar; only plain files are read"
    assert stored(store.find("image", "climbs")) == "has 1 bytes in x.tar, the limit is 0"
    monkeypatch.undo()
    assert stored(store.find("image", "climbs")) == b"c"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "x.tar"]


def test_damaged_archives(tmp_path: Path, media: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {f"{n}.png": media / "p0.png" for n in range(3)}).read_bytes()
    broken = bytearray(whole)
    second = 512 + -(-(media / "p0.png").stat().st_size // 512) * 512
    broken[second + 148 : second + 156] = b"99999999"  # the checksum of the second header
    info = tarfile.TarInfo("@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    huge = info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    cases = {
        "cut.tar": (whole[: second + 700], "damaged near byte"),
        "header.tar": (whole[: second + 100], f"damaged at byte {second}"),
        "broken.tar": (bytes(broken), f"damaged at byte {second}: no header where one is due"),
        "huge.tar": (huge, "a header of 1099511627776 bytes"),
        "text.tar": (b"no archive" * 200, "not a tar archive"),
        "empty.tar": (b"", "not a tar archive"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AnyGPTError, match=message) as raised:
            MediaStore([tmp_path / name])
        assert str(raised.value).startswith(str(tmp_path / name))
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        archive.add(media / "p0.png", "0.png")
    with pytest.raises(AnyGPTError, match="unpack a compressed one first"):
        MediaStore([tmp_path / "packed.tar.gz"])
    with pytest.raises(AnyGPTError, match="no such folder or archive"):
        MediaStore([tmp_path / "gone"])


# Rows


@given(
    items=st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=4,
        ),
        max_size=4,
    ),
    chunk=st.integers(1, 30),
    indent=st.none() | st.integers(0, 3),
)
@settings(max_examples=40)
def test_an_array_read_in_pieces_is_what_json_reads(items: list[Any], chunk: int, indent: int | None) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "CHUNK_CHARS", chunk)
        assert list(array_items(io.StringIO(f" \n{text} \n"))) == items


@pytest.mark.parametrize(
    "text", ["[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]]", "[1] x", '["a', "[tru]", "{}", "[" * 9000]
)
def test_damaged_arrays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "CHUNK_CHARS", 4)
    with pytest.raises(AnyGPTError, match="damaged"):
        list(array_items(io.StringIO(text)))


def test_mistakes(anyinstruct: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "cut.json").write_text(anyinstruct.read_text()[:-30])
    (tmp_path / "latin.json").write_bytes(b'[{"chat": "caf\xe9"}]')
    (tmp_path / "lines.jsonl").write_text("a\nb\n")
    write_json(tmp_path / "m.jsonl", {"speech": str(media / "s0.wav"), "text": "x"})
    cases: list[tuple[Sequence[str], str]] = [
        (["anyinstrcut", str(anyinstruct)], "unknown layout 'anyinstrcut' (did you mean 'anyinstruct'?)"),
        (["llava", "gone.json"], "gone.json: no such file"),
        (["llava", "part1"], "part1: is a directory"),
        (["llava", "empty"], "empty: has no rows"),
        (["llava", "cut.json"], "cut.json: the JSON array is damaged or cut off after item 1"),
        (["llava", "latin.json"], "latin.json: not UTF-8 text"),
        (["llava", "lines.jsonl"], "no row could be converted; the first: row 1: not JSON"),
        (["llava", str(anyinstruct)], "no row could be converted; the first: row 1: field 'conversations'"),
        (["anyinstruct", str(anyinstruct), "--media", "gone.tar"], "gone.tar: no such folder or archive"),
        (["anyinstruct", str(anyinstruct), "--workers", "0"], "--workers is 0"),
        (["anyinstruct", str(anyinstruct), "--model", "anygpt-mini-bas"], "did you mean 'anygpt-mini-base'"),
        (["anyinstruct", str(anyinstruct), "--model", "part1"], "no anygpt.json"),
        (["anyinstruct", str(anyinstruct), "--image-tokenizer-path", "music-tiny"], "made for music"),
        (["anyinstruct", str(anyinstruct), "--direction", "x2text"], "belong to pairs"),
        (["pairs", "m.jsonl", "--direction", "text2speech"], "--direction is 'text2speech', expected both"),
        (["pairs", "m.jsonl", "--direction", "x2text"], "a user's speech is an instruction itself"),
        (["pairs", "m.jsonl", "--media", "."], "has paths of its own"),
    ]
    for words, message in cases:
        with_model = words if "--model" in words else [*words, "--model", MODEL]
        with pytest.raises(SystemExit) as exit:
            main(["convert", *with_model, "--out", "out.jsonl"])
        out, err = capsys.readouterr()
        line = err.strip().splitlines()[-1]
        assert exit.value.code == 2 and out == "" and line.startswith("anygpt: ") and message in line, (words, err)
        assert not Path("out.jsonl").exists()


# Stopped and gone on with


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_run_stopped_at_any_step_ends_like_an_undisturbed_one(
    anyinstruct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(anyinstruct.read_text())
    bad = {"chat": [{"role": "USER", "message": "x", "image": "gone.png"}, {"role": "AnyGPT", "message": "y"}]}
    write_json(anyinstruct, [bad, *rows, bad, *rows])
    whole = convert("anyinstruct", anyinstruct, tmp_path / "whole.jsonl", model=MODEL, batch_size=2)
    assert (whole.written, whole.skipped) == (4, 2) and whole.errors is not None
    steps = 0
    replace, fsync = os.replace, os.fsync

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            nonlocal steps
            steps -= 1
            if steps < 0:
                raise Killed
            function(*args)

        return call

    for stop_at in range(100):
        out, steps = tmp_path / str(stop_at) / "out.jsonl", stop_at
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(fsync))
            patch.setattr(os, "replace", counted(replace))
            try:
                convert("anyinstruct", anyinstruct, out, model=MODEL, batch_size=2)
            except Killed:
                assert not out.exists()
        finished = out.exists()
        result = convert("anyinstruct", anyinstruct, out, model=MODEL)
        assert result.was_finished == finished and out.read_bytes() == whole.out.read_bytes()
        assert result.errors is not None and result.errors.read_bytes() == whole.errors.read_bytes()
        if finished:
            break
    assert stop_at > 8


def test_several_workers_give_the_same(anyinstruct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to worker processes and back pickles; that they keep the order is the test of `ordered_map`."""

    def pickled_map(setup: Any, tasks: Any, *, workers: int) -> Any:
        assert workers == 2
        function = pickle.loads(pickle.dumps(setup))(1)
        for task in tasks:
            yield pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(task)))))

    one = convert("anyinstruct", anyinstruct, "one.jsonl", model=MODEL, batch_size=1)
    monkeypatch.setattr(run_module, "ordered_map", pickled_map)
    two = convert("anyinstruct", anyinstruct, "two.jsonl", model=MODEL, batch_size=1, workers=5)
    assert two.out.read_bytes() == one.out.read_bytes()


def test_what_an_output_was_made_from_must_not_change(anyinstruct: Path, media: Path, tmp_path: Path) -> None:
    convert("anyinstruct", anyinstruct, "out.jsonl", model=MODEL)
    with pytest.raises(AnyGPTError, match="out.jsonl: was made with --batch-size 8; remove it"):
        convert("anyinstruct", anyinstruct, "out.jsonl", model=MODEL, batch_size=2)
    manifest = write_json(tmp_path / "m.jsonl", {"image": str(media / "p0.png"), "text": "x"})
    with pytest.raises(AnyGPTError, match="was made from anyinstruct conversations, not image pairs, x2text, seed 0"):
        convert("pairs", manifest, "out.jsonl", model=MODEL, direction="x2text")
    write_json(anyinstruct, json.loads(anyinstruct.read_text())[:1] * 2)
    with pytest.raises(AnyGPTError, match="fingerprints|another source, or the source has changed"):
        convert("anyinstruct", anyinstruct, "out.jsonl", model=MODEL)


@pytest.mark.parametrize("name", ["world", "llava"])
def test_bundled_samples_are_small_and_whole(name: str) -> None:
    root = checkout_root()
    assert root is not None
    path = root / "data" / "instruction" / f"{name}.jsonl"
    vocab = Vocabulary.from_pretrained(root / "models" / "anygpt-mini-base")
    rows = JsonlFile(path)
    assert len(rows) == {"world": 30, "llava": 8}[name] and path.stat().st_size < 300_000
    for number in range(len(rows)):
        assert turns_of(rows[number], vocab, f"{path}: line {number + 1}")
