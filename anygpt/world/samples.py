"""The world as raw media: picture and sound files with a manifest, as `anygpt tokenize` takes them."""

import itertools
import json
from pathlib import Path

from anygpt.errors import AnyGPTError
from anygpt.media import Audio, atomic_write, save_audio, save_image
from anygpt.video import Video, save_video
from anygpt.world.pairs import world_pairs


def write_samples(modality: str, out: Path, *, count: int, split: str = "heldout", seed: int = 0) -> Path:
    """Write `count` files `out/media/000.jpg` (or `.wav`, `.mp4`) and `out/manifest.jsonl`, whose path is returned.

    Raises AnyGPTError for a modality that the world has not, for a count below 1, and where the folder can't be
    written.
    """
    if count < 1:
        raise AnyGPTError(f"--count is {count}, expected at least 1")
    rows = []
    for number, pair in enumerate(itertools.islice(world_pairs(modality, split, seed), count)):
        if isinstance(pair.media, Audio):
            path = save_audio(out / "media" / f"{number:03}.wav", pair.media)
        elif isinstance(pair.media, Video):
            path = save_video(out / "media" / f"{number:03}.mp4", pair.media)
        else:
            path = save_image(out / "media" / f"{number:03}.jpg", pair.media)
        rows.append({modality: path.relative_to(out).as_posix(), "text": pair.caption})
    manifest = out / "manifest.jsonl"
    with atomic_write(manifest) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return manifest
