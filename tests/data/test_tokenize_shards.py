"""Folders of shards: what may be given, what comes out, what a killed run leaves to do."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fixtures_media import picture_bytes, read_jsonl, samples, save_noise, tar_bytes, tree_bytes
from fsspec.implementations.memory import MemoryFileSystem

from anygpt.cli.main import main
from anygpt.data.sources import open_source
from anygpt.data.storage import find_files
from anygpt.data.tokenize import tokenize_batches, tokenize_manifest
from anygpt.data.tokenize_shards import ShardsResult, tokenize_shards
from anygpt.errors import AnyGPTError
from anygpt.tokenizers.base import load_tokenizer

pytestmark = pytest.mark.usefixtures("home", "in_tmp_path")


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three WebDataset shards of five pictures, one of them cut off, beside the list that a downloader leaves."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number:05d}.tar").write_bytes(tar_bytes(samples(5 * number, 5, bad=[7])))
        (folder / f"{number:05d}_stats.json").write_text("{}")
    return folder


def run(source: Path | str, out: Path | str, **options: Any) -> ShardsResult:
    return tokenize_shards(source, out, **{"tokenizer": "seed-tiny", "batch_size": 2, **options})


def texts(path: Path) -> list[str]:
    return [row["text"] for row in read_jsonl(path)]


def test_tars_become_shards_with_counts_and_checksums(tars: Path, tmp_path: Path) -> None:
    result = run(tars, "out")
    assert (result.shards, result.made, result.written, result.skipped) == (3, 3, 14, 1)
    assert sorted(tree_bytes(Path("out"))) == [
        "00000.jsonl", "00001.errors.jsonl", "00001.jsonl", "00002.jsonl", "manifest.json",
    ]  # fmt: skip
    manifest = json.loads(result.manifest.read_text())
    assert (manifest["modality"], manifest["rows"], manifest["skipped"]) == ("image", 14, 1)
    for shard in manifest["shards"]:
        content = (Path("out") / shard["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert content.count(b"\n") == shard["rows"]
    assert texts(Path("out/00001.jsonl")) == [f"picture {n} é" for n in (5, 6, 8, 9)]
    assert [(e["line"], e["path"]) for e in read_jsonl(Path("out/00001.errors.jsonl"))] == [(3, "000007.png")]
    # The same pictures as files, listed in a manifest, give the same rows.
    for name, content in samples(0, 5).items():
        (tmp_path / name).write_bytes(content)
    rows = [{"image": f"{n:06d}.png", "text": f"picture {n} é"} for n in range(5)]
    (tmp_path / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenize_manifest("m.jsonl", "one.jsonl", tokenizer="seed-tiny", batch_size=2)
    assert Path("one.jsonl").read_bytes() == Path("out/00000.jsonl").read_bytes()
    tokenize_manifest(tars / "00000.tar", "tar.jsonl", tokenizer="seed-tiny", batch_size=2)
    assert Path("tar.jsonl").read_bytes() == Path("out/00000.jsonl").read_bytes()


def test_parquet_shards_hold_the_same_rows(tars: Path) -> None:
    run(tars, "out")
    run(tars, "columns", format="parquet")
    for number in range(3):
        table = pyarrow.parquet.read_table(f"columns/{number:05d}.parquet")
        assert table.column_names == ["text", "image"]
        assert table.to_pylist() == read_jsonl(Path(f"out/{number:05d}.jsonl"))
    again = tree_bytes(Path("columns"))
    shutil.rmtree("columns")
    run(tars, "columns", format="parquet")
    assert tree_bytes(Path("columns")) == again


def test_a_manifest_is_cut_into_pieces(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": picture_bytes(n), "path": f"{n}.png"}, "text": f"p{n}"} for n in range(7)]
    rows.append({"image": {"bytes": b"no picture", "path": "bad.png"}, "text": "bad"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet", row_group_size=3)
    result = run("rows.parquet", "out", shard_rows=3)
    assert (result.shards, result.written, result.skipped) == (3, 7, 1)
    pieces = [texts(Path(f"out/rows-{n:05d}.jsonl")) for n in range(3)]
    assert pieces == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6"]]
    (error,) = read_jsonl(Path("out/rows-00002.errors.jsonl"))
    assert (error["line"], error["path"]) == (8, "bad.png") and error["reason"].startswith("not a picture")
    for n in range(7):
        Path(f"{n}.png").write_bytes(picture_bytes(n))
    lines = [json.dumps({"image": f"{n}.png", "text": f"p{n}"}) for n in range(7)]
    Path("rows.jsonl").write_text("\n".join(["", *lines]))
    run("rows.jsonl", "out2", shard_rows=4)
    joined = b"".join(Path(f"out/rows-{n:05d}.jsonl").read_bytes() for n in range(3))
    assert b"".join(Path(f"out2/rows-{n:05d}.jsonl").read_bytes() for n in range(2)) == joined


def test_urls_folders_and_patterns(tars: Path, tmp_path: Path) -> None:
    expected = {name: content for name, content in tree_bytes(run(tars, "out").manifest.parent).items()}
    memory = fsspec.filesystem("memory")
    for path in tars.iterdir():
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    try:
        for number, source in enumerate(("memory://set", "memory://set/*.tar", f"file://{tars}", f"{tars}/*.tar")):
            assert tree_bytes(run(source, f"out{number}").manifest.parent) == expected
        assert tree_bytes(run(f"{tars}/{{00000..00002}}.tar", "braces").manifest.parent) == expected
        # A manifest there with a file beside it, a file here and one that is missing.
        memory.pipe("/set/pictures/a.png", picture_bytes(0))
        Path("b.png").write_bytes(picture_bytes(1))
        names = ["pictures/a.png", f"file://{tmp_path}/b.png", "memory://set/gone.png", "s9://a/b.png"]
        lines = [json.dumps({"image": name, "text": name}) for name in names]
        memory.pipe("/set/m.jsonl", "\n".join(lines).encode())
        result = tokenize_manifest("memory://set/m.jsonl", "m.jsonl", tokenizer="seed-tiny")
        assert texts(Path("m.jsonl")) == names[:2]
        assert result.errors is not None
        reasons = [error["reason"] for error in read_jsonl(result.errors)]
        assert reasons[0] == "no such file" and "s9" in reasons[1]
    finally:
        memory.rm("/set", recursive=True)


def test_an_archive_that_can_t_be_read_for_a_while_loses_no_row(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tree_bytes(run(tars, "out").manifest.parent)
    memory = fsspec.filesystem("memory")
    for path in tars.glob("*.tar"):
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    try:
        cat_file, left = MemoryFileSystem.cat_file, 8

        def cut_off(*args: Any, **settings: Any) -> bytes:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionError("the network is down")
            return cat_file(*args, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "cat_file", cut_off)
            with pytest.raises(
                AnyGPTError, match=r"00001.tar: can't be read \(the network is down\); the same command"
            ):
                run("memory://set", "out2")
        assert run("memory://set", "out2").made == 2 and tree_bytes(Path("out2")) == expected
    finally:
        memory.rm("/set", recursive=True)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_run_stopped_at_any_step_ends_like_an_undisturbed_one(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        Path(f"{number}.tar").write_bytes(tar_bytes(samples(2 * number, 2, bad=[1])))
    expected = tree_bytes(run("*.tar", "whole", format=format, batch_size=1).manifest.parent)
    steps = 0

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            nonlocal steps
            steps -= 1
            if steps < 0:
                raise Killed
            function(*args)

        return call

    fsync, replace = os.fsync, os.replace
    for stop_at in range(0, 100, 5):
        steps, out = stop_at, tmp_path / str(stop_at)
        finished = False
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(fsync))
            patch.setattr(os, "replace", counted(replace))
            try:
                run("*.tar", out, format=format, batch_size=1)
                finished = True
            except Killed:
                assert not (out / "manifest.json").exists()
        result = run("*.tar", out, format=format, batch_size=1)
        assert tree_bytes(out) == expected
        if finished:
            assert result.made == 0
            break
    assert stop_at > 20


def test_only_what_is_missing_is_done_again(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tree_bytes(run(tars, "out").manifest.parent)
    assert run(tars, "out").made == 0
    Path("out/00001.jsonl").unlink()
    result = run(tars, "out", workers=2, batch_size=None)
    assert (result.made, result.shards) == (1, 3) and tree_bytes(Path("out")) == expected
    (tars / "00003.tar").write_bytes(tar_bytes(samples(15, 2)))
    result = run(tars, "out")
    assert (result.made, result.written) == (1, 16)


def test_several_processes_give_the_same(tars: Path) -> None:
    expected = tree_bytes(run(tars, "out").manifest.parent)
    assert tree_bytes(run(tars, "out2", workers=2).manifest.parent) == expected


def test_loading_ahead_changes_nothing(tars: Path, home: Path) -> None:
    source = open_source(tars / "00001.tar")
    tokenizer = load_tokenizer(home / "tokenizers" / "seed-tiny")
    for size in (1, 2, 9):
        expected = list(tokenize_batches(tokenizer, source.batches(size), device="cpu"))
        assert list(tokenize_batches(tokenizer, source.batches(size), device="a GPU")) == expected
        assert sum(part.lines for part in expected) == 5


def test_what_shards_were_made_from_must_not_change(tars: Path) -> None:
    run(tars, "out")
    with pytest.raises(AnyGPTError, match=r"00000.jsonl: was made with --batch-size 2; remove it"):
        run(tars, "out", batch_size=3)
    (tars / "00001.tar").write_bytes(tar_bytes(samples(0, 5)))
    with pytest.raises(AnyGPTError, match="00001.jsonl: was made from another manifest"):
        run(tars, "out")
    Path("out/00000.jsonl").write_text("edited")
    with pytest.raises(AnyGPTError, match="00000.jsonl: was changed since"):
        run(tars, "out")
    shutil.rmtree("out/.progress")
    with pytest.raises(AnyGPTError, match="00000.jsonl: exists, and not from this command"):
        run(tars, "out")


def broken_tars() -> Iterator[Any]:
    whole = tar_bytes(samples(0, 4))
    yield pytest.param(whole[: len(whole) // 2], 2, "damaged", id="cut off")
    third = whole.index(b"000002.png")
    yield pytest.param(whole[:third] + b"\7" * 512 + whole[third + 512 :], 1, "damaged at byte", id="broken header")
    lacking = {name: content for name, content in samples(0, 4).items() if name not in ("000001.txt", "000002.png")}
    yield pytest.param(tar_bytes(lacking), 2, "'text' is missing", id="no text")
    named = {"a/0.jpg": picture_bytes(0), "a/0.json": b'{"caption": "one"}', "b/0.jpg": b"", "b/0.txt": b"two"}
    yield pytest.param(tar_bytes(named), 1, "0 bytes", id="empty picture")


@pytest.mark.parametrize(("content", "good", "reason"), broken_tars())
def test_broken_archives_and_samples_cost_themselves_only(content: bytes, good: int, reason: str) -> None:
    Path("s.tar").write_bytes(content)
    result = run("s.tar", "out")
    assert result.written == good and result.skipped >= 1
    assert reason in read_jsonl(Path("out/s.errors.jsonl"))[0]["reason"]


def test_sounds_in_tars_and_parts_of_recordings(tmp_path: Path) -> None:
    sound = save_noise(tmp_path / "long.flac", 1, duration_s=2.0)
    Path("s.tar").write_bytes(tar_bytes({"0.flac": sound.read_bytes(), "0.txt": b"words"}))
    with pytest.raises(AnyGPTError, match="s.tar: holds sounds; choose --modality speech, music or audio"):
        tokenize_shards("s.tar", "out")
    assert tokenize_shards("s.tar", "out", modality="speech", tokenizer="speech-tiny").written == 1
    part = {"speech": "long.flac", "text": "part", "begin_s": 0.5, "end_s": 1.0}
    rows = [part, {**part, "end_s": 9.0}, {**part, "end_s": 0.25}]
    Path("m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = tokenize_manifest("m.jsonl", "m.out.jsonl", tokenizer="speech-tiny")
    import soundfile

    wave, rate_hz = soundfile.read(sound)
    soundfile.write("part.flac", wave[8000:16_000], rate_hz)
    Path("p.jsonl").write_text(json.dumps({"speech": "part.flac", "text": "part"}))
    tokenize_manifest("p.jsonl", "p.out.jsonl", tokenizer="speech-tiny")
    assert Path("m.out.jsonl").read_bytes() == Path("p.out.jsonl").read_bytes()
    assert result.errors is not None
    assert [word in e["reason"] for word, e in zip(("lasts 2.00 s", "end_s"), read_jsonl(result.errors), strict=True)]


@pytest.mark.parametrize(
    ("files", "source", "options", "message"),
    [
        ({}, "no/*.tar", {}, r"no/\*.tar: no such manifest or shards"),
        ({}, "s9://bucket/a.tar", {}, "s9://bucket/a.tar: can't be read"),
        ({}, "memory://none/a.jsonl", {}, "memory://none/a.jsonl: no such file"),
        ({"a.zip": b"PK\3\4" + bytes(600)}, "a.zip", {}, "a.zip: is a zip archive; expected JSONL, Parquet"),
        ({"a.tar": b"\x1f\x8b" + bytes(600)}, "a.tar", {}, "a.tar: is compressed with gzip"),
        ({"a": bytes(600)}, "a", {}, "a: is of an unknown format"),
        ({"a.jsonl": b""}, "a.jsonl", {}, "a.jsonl: has no rows"),
        ({"a.tar": tar_bytes({"a.txt": b"x"})}, "a.tar", {}, "a.tar: no member is a picture or sound"),
        ({"a.tar": tar_bytes({"a.png": b"x", "a.txt": b"x"})}, "a.tar", {}, "no row could be tokenized"),
        ({"a.jsonl": b'{"image": "a", "text": "b"}'}, "a.jsonl", {"format": "csv"}, "--format is 'csv'"),
        ({"a.jsonl": b'{"image": "a", "text": "b"}'}, "a.jsonl", {"shard_rows": 0}, "--shard-rows is 0"),
    ],
)
def test_mistakes(files: dict[str, bytes], source: str, options: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        Path(name).write_bytes(content)
    with pytest.raises(AnyGPTError, match=message) as caught:
        run(source, "out", **options)
    assert "\n" not in str(caught.value) and not Path("out/manifest.json").exists()


def test_a_parquet_file_without_the_column_is_named() -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"]}), "m.parquet")
    with pytest.raises(AnyGPTError, match="m.parquet: no column 'text'; it has: image"):
        run("m.parquet", "out")


def test_command(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tokenize", str(tars), "--out", "out", "--format", "jsonl", "--tokenizer", "seed-tiny"])
    assert capsys.readouterr().out == "out/manifest.json\n"
    for words, message in (
        (["--out", "out.jsonl"], "3 files; give --format"),
        (["--out", "out.jsonl", "--shard-rows", "3"], "--shard-rows makes a folder"),
        (["--out", "out.jsonl", "--ray-address", "auto"], "--ray-address makes a folder"),
        (["--out", "out", "--format", "jsonl", "--engine", "rya"], "did you mean 'ray'"),
        (["--out", "out", "--format", "jsonl", "--ray-address", "auto"], "--engine ray with it"),
    ):
        with pytest.raises(SystemExit):
            main(["tokenize", str(tars / "*.tar"), *words])
        assert message in capsys.readouterr().err
    assert find_files(f"{tars}/0000{{0..1}}.tar") == [str(tars / f"0000{n}.tar") for n in range(2)]
