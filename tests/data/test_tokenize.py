"""Raw media to training data: order, bad files, resuming after a kill at any moment."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from fixtures_tiny import SPECS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anygpt.cli.main import main
from anygpt.code_strings import string_to_codes
from anygpt.data import media_codes
from anygpt.data.jsonl import JsonlFile, pair_of
from anygpt.data.resumable import ResumableJsonl
from anygpt.data.tokenize import TokenizeJob, TokenizeResult, tokenize_manifest
from anygpt.errors import AnyGPTError
from anygpt.media import Audio, load_audio, load_image, save_audio, save_image
from anygpt.paths import checkout_root
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.sources import DEFAULT_TOKENIZERS, TokenizerPaths

pytestmark = pytest.mark.usefixtures("home", "in_tmp_path")

NAMES = {"image": "seed-tiny", "speech": "speech-tiny", "music": "music-tiny"}
GOOD = tuple(f"p{n}.png" for n in range(5))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures and three sounds."""
    folder = tmp_path_factory.mktemp("media")
    random = np.random.default_rng(0)
    for name in GOOD:
        save_image(folder / name, Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)))
    for n in range(3):
        wave = random.normal(0, 0.2, (1 + n % 2, 8000 + 1600 * n)).clip(-1, 1).astype(np.float32)
        save_audio(folder / f"s{n}.wav", Audio(wave, 16_000))
    return folder


def write_manifest(path: Path, rows: Sequence[Any]) -> Path:
    """Rows that are strings are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tokenize_images(manifest: Path, out: Path, **options: Any) -> TokenizeResult:
    return tokenize_manifest(manifest, out, tokenizer="seed-tiny", **options)


def picture_rows(media: Path, count: int) -> list[dict[str, str]]:
    return [{"image": str(media / GOOD[n % len(GOOD)]), "text": f"picture {n}"} for n in range(count)]


@pytest.mark.parametrize(("modality", "load"), [("image", load_image), ("speech", load_audio), ("music", load_audio)])
def test_each_modality_gives_the_tokenizer_s_codes_in_order(
    modality: str, load: Callable[[Path], Any], media: Path, home: Path, tmp_path: Path
) -> None:
    files = sorted(media.glob("*.png" if modality == "image" else "*.wav"))
    rows = [{"id": n, modality: file.name, "text": f"text {n} é"} for n, file in enumerate(files)]
    shutil.copytree(media, tmp_path / "m")
    manifest = write_manifest(tmp_path / "m" / "manifest.jsonl", rows)
    out = tmp_path / "new" / "out.jsonl"
    result = tokenize_manifest(manifest, out, tokenizer=NAMES[modality])
    assert (result.written, result.skipped, result.errors, result.was_finished) == (len(files), 0, None, False)
    expected = load_tokenizer(home / "tokenizers" / NAMES[modality]).encode([load(file) for file in files])
    data = JsonlFile(out)
    assert len(data) == len(files)
    for n, codes_KT in enumerate(expected):
        assert list(data[n]) == ["text", modality]
        text, string = pair_of(data[n], SPECS[modality], "row")
        assert text == f"text {n} é" and torch.equal(string_to_codes(SPECS[modality], string), codes_KT)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl", "out.jsonl.progress.json"]


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def test_bad_pictures_and_rows_are_listed_and_skipped(media: Path, tmp_path: Path) -> None:
    whole = (media / "p0.png").read_bytes()
    bad = {"cut.png": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"no picture", "huge.png": b""}
    bad["huge.png"] = png_that_claims(30_000, 30_000)
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "folder").mkdir()
    good = {"image": str(media / "p1.png"), "text": "good"}
    cases: list[tuple[Any, str]] = [
        ({"image": "nowhere.png", "text": "x"}, "no such file"),
        ({"image": "folder", "text": "x"}, "directory"),
        ({"image": "empty.png", "text": "x"}, "0 bytes"),
        ({"image": "cut.png", "text": "x"}, "cut off"),
        ({"image": "text.png", "text": "x"}, "not a picture"),
        ({"image": "huge.png", "text": "x"}, "the limit of 80 million pixels"),
        ({"image": "dot.png", "text": "x"}, "1x1"),
        ({"image": "bad\0name.png", "text": "x"}, "no such file"),
        ({"image": "\udcff.png", "text": "x"}, "no such file"),
        ({"image": good["image"]}, "'text' is missing"),
        ({"image": good["image"], "text": " "}, "'text' is missing"),
        ({"image": good["image"], "text": "half \ud83d"}, "surrogate"),
        ({"image": 3, "text": "x"}, "'image' is missing"),
        ({"text": "x"}, "'image' is missing"),
        ('{"image": "p1.png", "te', "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 50_000, "not JSON"),
    ]
    manifest = write_manifest(tmp_path / "m.jsonl", [good, "", *(row for row, _ in cases), good])
    result = tokenize_images(manifest, tmp_path / "out.jsonl", batch_size=4)
    assert [row["text"] for row in read(result.out)] == ["good", "good"]
    assert result.skipped == len(cases) and result.errors == tmp_path / "out.jsonl.errors.jsonl"
    errors = read(result.errors)
    assert [error["line"] for error in errors] == list(range(3, len(cases) + 3))
    for error, (row, reason) in zip(errors, cases, strict=True):
        assert reason in error["reason"], error
        assert str(tmp_path) not in error["reason"]
        path = row.get("image") if isinstance(row, dict) else None
        assert error["path"] == (path if isinstance(path, str) else None)


def test_bad_sounds_are_listed_and_skipped(media: Path, tmp_path: Path) -> None:
    save_audio(tmp_path / "silent.wav", Audio(np.zeros((1, 16_000), np.float32), 16_000))
    save_audio(tmp_path / "short.wav", Audio(np.ones((1, 80), np.float32), 16_000))
    (tmp_path / "cut.wav").write_bytes((media / "s0.wav").read_bytes()[:5000])
    names = ["silent.wav", "short.wav", "cut.wav", str(media / "p0.png"), str(media / "s1.wav")]
    manifest = write_manifest(tmp_path / "m.jsonl", [{"speech": name, "text": name} for name in names])
    result = tokenize_manifest(manifest, "out.jsonl", tokenizer="speech-tiny")
    assert [row["text"] for row in read(result.out)] == names[-1:]
    assert result.errors is not None
    reasons = [error["reason"] for error in read(result.errors)]
    assert [
        word in reason for word, reason in zip(("silent", "0.005 s", "cut off", "not a sound"), reasons, strict=True)
    ]


def test_when_nothing_can_be_used_it_is_an_error(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", [{"image": "a.png", "text": "x"}] * 3)
    for _ in range(2):
        with pytest.raises(AnyGPTError, match=r"no row could be tokenized; the first: line 1, a.png: no such file"):
            tokenize_images(manifest, tmp_path / "out.jsonl")
        assert {path.name for path in tmp_path.iterdir()} == {"m.jsonl", "out.jsonl.errors.jsonl"}
        assert len(read(tmp_path / "out.jsonl.errors.jsonl")) == 3


def test_parquet_gives_the_same_as_jsonl(media: Path, tmp_path: Path) -> None:
    rows = [*picture_rows(media, 7), {"image": "gone.png", "text": "x"}, {"image": None, "text": "y"}]
    by_line = tokenize_images(write_manifest(tmp_path / "m.jsonl", rows), tmp_path / "a.jsonl", batch_size=3)
    columns = {name: [row[name] for row in rows] for name in ("text", "image")} | {"score": [0.5] * 9}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet", row_group_size=2)
    by_column = tokenize_images(tmp_path / "m.parquet", tmp_path / "b.jsonl", batch_size=3)
    assert by_column.out.read_bytes() == by_line.out.read_bytes()
    assert by_column.errors is not None and by_line.errors is not None
    assert by_column.errors.read_bytes() == by_line.errors.read_bytes()


@given(
    kinds=st.lists(st.sampled_from([*GOOD, "gone.png", "", "not JSON"]), min_size=1, max_size=12),
    batch_size=st.integers(1, 6),
    group_bytes=st.sampled_from([1, 12_000, 2**28]),
    ends_with_newline=st.booleans(),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_manifest_is_kept(
    kinds: list[str],
    batch_size: int,
    group_bytes: int,
    ends_with_newline: bool,
    media: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(media_codes, "GROUP_BYTES", group_bytes)
    folder = tmp_path_factory.mktemp("order")
    rows = [
        json.dumps({"image": str(media / kind), "text": f"{n} {kind}"}) if kind.endswith(".png") else kind
        for n, kind in enumerate(kinds)
    ]
    manifest = folder / "m.jsonl"
    manifest.write_text("\n".join(rows) + "\n" * ends_with_newline, encoding="utf-8")
    good = [f"{n} {kind}" for n, kind in enumerate(kinds) if kind in GOOD]
    bad = [n + 1 for n, kind in enumerate(kinds) if kind and kind not in GOOD]
    if not good:
        with pytest.raises(AnyGPTError):
            tokenize_images(manifest, folder / "out.jsonl", modality="image", batch_size=batch_size)
        return
    result = tokenize_images(manifest, folder / "out.jsonl", modality="image", batch_size=batch_size)
    assert [row["text"] for row in read(result.out)] == good
    assert [row["line"] for row in read(result.errors)] == bad if result.errors else not bad
    codes = {row["text"].split()[1]: row["image"] for row in read(result.out)}
    assert all(row["image"] == codes[row["text"].split()[1]] for row in read(result.out))


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_run_stopped_at_any_step_ends_like_an_undisturbed_one(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = picture_rows(media, 6)
    rows[0]["image"] = rows[3]["image"] = "gone.png"
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    whole = tokenize_images(manifest, tmp_path / "whole.jsonl", batch_size=2)
    assert whole.errors is not None
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
    for stop_at in range(100):
        out = tmp_path / str(stop_at) / "out.jsonl"
        steps = stop_at
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(fsync))
            patch.setattr(os, "replace", counted(replace))
            try:
                tokenize_images(manifest, out, batch_size=2)
            except Killed:
                assert not out.exists()
        finished = out.exists()
        if not finished:
            for path in (out.with_name("out.jsonl.partial"), out.with_name("out.jsonl.errors.jsonl")):
                with path.open("a") as file:  # a half-written line
                    file.write('{"text": "half')
        result = tokenize_images(manifest, out)
        assert result.was_finished == finished
        assert (result.written, result.skipped) == (4, 2)
        assert out.read_bytes() == whole.out.read_bytes()
        assert result.errors is not None and result.errors.read_bytes() == whole.errors.read_bytes()
        left = {path.name for path in out.parent.iterdir()} - {"out.jsonl.progress.json.tmp"}
        assert left == {"out.jsonl", "out.jsonl.progress.json", "out.jsonl.errors.jsonl"}
        if finished:
            break
    assert stop_at > 10


def test_a_killed_run_with_several_workers_ends_like_an_undisturbed_one(media: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((1200, 1200), 60).save(large)
    rows = picture_rows(media, 40)
    for n in range(0, 40, 2):
        rows[n]["image"] = str(large)
    rows[7]["image"] = rows[33]["image"] = "gone.png"
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    whole = tokenize_images(manifest, tmp_path / "whole.jsonl", batch_size=2)
    out = tmp_path / "out.jsonl"
    words = [str(manifest), "--out", str(out), "--tokenizer", "seed-tiny", "--batch-size", "2", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "anygpt", "tokenize", *words],
        env={**os.environ, "PYTHONPATH": str(checkout_root())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    files = ResumableJsonl(out, TokenizeJob)
    deadline = time.monotonic() + 300
    while (progress := files.recorded()) is None or progress.lines_done < 4:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    result = tokenize_images(manifest, out, workers=2)
    assert not result.was_finished
    assert out.read_bytes() == whole.out.read_bytes()
    assert result.errors is not None and whole.errors is not None
    assert result.errors.read_bytes() == whole.errors.read_bytes()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived the run that was killed"
        time.sleep(0.02)


def test_a_finished_output_is_left_alone(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", picture_rows(media, 3))
    words = ["tokenize", str(manifest), "--out", "out.jsonl", "--tokenizer", "seed-tiny"]
    main(words)
    assert capsys.readouterr().out == "out.jsonl\n"
    before = Path("out.jsonl").stat()
    assert tokenize_images(manifest, "out.jsonl", workers=3).was_finished
    assert Path("out.jsonl").stat() == before
    Path("out.jsonl").unlink()
    assert not tokenize_images(manifest, "out.jsonl", batch_size=2).was_finished


def test_what_an_output_was_made_from_must_not_change(media: Path, home: Path, tmp_path: Path) -> None:
    rows = picture_rows(media, 3)
    manifest, out = write_manifest(tmp_path / "m.jsonl", rows), tmp_path / "out.jsonl"
    tokenize_images(manifest, out)
    with pytest.raises(AnyGPTError, match="out.jsonl: was made with --batch-size 32; remove it"):
        tokenize_images(manifest, out, batch_size=2)
    other = shutil.copytree(home / "tokenizers" / "seed-tiny", tmp_path / "other")
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["query_tokens"] = weights["query_tokens"] + 1
    save_file(weights, other / "model.safetensors")
    with pytest.raises(AnyGPTError, match=r"another tokenizer \('seed-tiny'\) than 'other'; remove it"):
        tokenize_manifest(manifest, out, tokenizer=str(other))
    write_manifest(manifest, rows[:2])
    with pytest.raises(AnyGPTError, match="the manifest has changed since; remove it"):
        tokenize_images(manifest, out)
    write_manifest(manifest, rows)
    out.write_text("edited")
    with pytest.raises(AnyGPTError, match="was changed since"):
        tokenize_images(manifest, out)
    (tmp_path / "out.jsonl.progress.json").unlink()
    with pytest.raises(AnyGPTError, match="not from this command"):
        tokenize_images(manifest, out)
    with pytest.raises(AnyGPTError, match="not from this command"):
        tokenize_images(manifest, manifest)


def test_two_runs_don_t_write_the_same_output(media: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", picture_rows(media, 3))
    out = tmp_path / "out.jsonl"
    fcntl = pytest.importorskip("fcntl")
    with Path(f"{out}.partial").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AnyGPTError, match="another run is writing it"):
            tokenize_images(manifest, out)
    assert tokenize_images(manifest, out).written == 3


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "has no rows"),
        ([{"picture": "a.png", "text": "x"}], {}, "no row has a field 'image'"),
        (["a,b", "c,d"], {}, "no row has a field"),
        ([{"image": "a", "speech": "b", "text": "x"}], {}, "has image and speech; choose one with --modality"),
        ([{"image": "a", "text": "x"}], {"modality": "imgae"}, "did you mean 'image'"),
        ([{"image": "a", "text": "x"}], {"tokenizer": "music-tiny"}, "made for music, but the manifest has image"),
        ([{"image": "a", "text": "x"}], {"tokenizer": "seed-tniy"}, "did you mean 'seed-tiny'"),
        ([{"audio": "a", "text": "x"}], {}, "no tokenizer for audio is shipped"),
        ([{"image": "a", "text": "x"}], {"batch_size": 0}, "--batch-size is 0"),
        ([{"image": "a", "text": "x"}], {"workers": -1}, "--workers is -1"),
        ([{"image": "a", "text": "x"}], {"device": "cuda:99"}, "'cuda:99' is not available"),
        (
            [{"image": "a", "text": "x"}],
            {"tokenizer": "seed-tiny", "paths": TokenizerPaths(image_tokenizer="seed-tiny")},
            "two image tokenizers are given",
        ),
    ],
)
def test_mistakes(rows: list[Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    with pytest.raises(AnyGPTError, match=message):
        tokenize_manifest(manifest, tmp_path / "out.jsonl", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_mistakes_about_files(media: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", picture_rows(media, 1))
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")
    several = (tmp_path, "2 files; give --format")
    for path, message in (several, (tmp_path / "no", "no such"), ("half.parquet", "damaged")):
        with pytest.raises(AnyGPTError, match=message):
            tokenize_images(Path(path), tmp_path / "out.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"]}), tmp_path / "m.parquet")
    with pytest.raises(AnyGPTError, match="no column 'text'"):
        tokenize_images(tmp_path / "m.parquet", tmp_path / "out.jsonl")
    with pytest.raises(AnyGPTError, match="is a directory"):
        tokenize_images(manifest, tmp_path)
    with pytest.raises(AnyGPTError, match="can't be written"):
        tokenize_images(manifest, manifest / "out.jsonl")


def test_the_shipped_tokenizer_is_the_default_and_flags_are_those_of_the_base_command(
    media: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "tokenizers" / "seed-tiny", tmp_path / "tokenizers" / DEFAULT_TOKENIZERS["image"])
    manifest = write_manifest(tmp_path / "m.jsonl", picture_rows(media, 2))
    main(["tokenize", str(manifest), "--out", "a.jsonl", "--image-tokenizer-path", str(home / "tokenizers/seed-tiny")])
    monkeypatch.setenv("ANYGPT_HOME", str(tmp_path))
    main(["tokenize", str(manifest), "--out", "b.jsonl"])
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()


def test_bundled_samples_are_small_whole_and_held_out() -> None:
    from anygpt.world.images import parse_caption as parse_scene
    from anygpt.world.music import parse_caption as parse_piece
    from anygpt.world.sentences import is_held_out

    root = checkout_root()
    assert root is not None
    folder = root / "data" / "pretrain"
    rows = {name: read(folder / name / "manifest.jsonl") for name in NAMES}
    assert {name: len(items) for name, items in rows.items()} == {"image": 8, "speech": 6, "music": 6}
    scenes = [parse_scene(row["text"]) for row in rows["image"]]
    pieces = [parse_piece(row["text"]) for row in rows["music"]]
    assert all(scene is not None and scene.is_held_out for scene in scenes)
    assert all(piece is not None and piece.is_held_out for piece in pieces)
    assert all(is_held_out(row["text"]) for row in rows["speech"])
    for row in rows["image"]:
        assert load_image(folder / "image" / row["image"]).size == (96, 96)
    for name in ("speech", "music"):
        for row in rows[name]:
            audio = load_audio(folder / name / row[name], reject_silence=True)
            assert (audio.rate_hz, audio.channels) == (16_000, 1)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_500_000
