"""Small raw media, and the files that list or hold them."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anygpt.media import Audio, save_audio


def picture_bytes(seed: int, side_px: int = 24) -> bytes:
    """A noisy PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def save_noise(path: Path, seed: int, duration_s: float = 0.5, rate_hz: int = 16_000) -> Path:
    """A WAV file, or what the suffix says that libsndfile writes."""
    wave = np.random.default_rng(seed).normal(0, 0.2, (1, round(duration_s * rate_hz))).clip(-1, 1).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".wav":
        return save_audio(path, Audio(wave, rate_hz))
    import soundfile

    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, wave[0], rate_hz, **kind)
    return path


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """A plain tar of these members in order."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def samples(first: int, count: int, *, bad: Sequence[int] = ()) -> dict[str, bytes]:
    """The members of a WebDataset shard: pictures with captions, of which those in `bad` are cut off."""
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        picture = picture_bytes(number)
        members[f"{number:06d}.png"] = picture[: len(picture) // 2] if number in bad else picture
        members[f"{number:06d}.txt"] = f"picture {number} é".encode()
    return members


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without the records of how they were made."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in sorted(names.items()) if not name.startswith(".progress/")}
