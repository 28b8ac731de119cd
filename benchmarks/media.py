"""Items per second and real-time factor of `anygpt tokenize`, and of a plain loop that takes one file at a time.

    python benchmarks/media.py [--workers N] [--items N] [--captions N] [--rounds N] [--profile]

Both use the shipped tokenizers on the same fresh files: JPEGs of 640x480, utterances of 2 to 16 seconds, music of ten
seconds. The loop does what the scripts released with the paper do: load a file, encode it, of speech all levels to keep
the first, write a line; it runs in one process with as many threads as ours has workers. The rounds of the two
alternate, so that other load hits both. Loading the tokenizer and starting processes is left out: it is measured with a
manifest of one row for each worker and subtracted.
"""

import argparse
import cProfile
import json
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from anygpt.code_strings import codes_to_string
from anygpt.data.media_codes import spec_of
from anygpt.data.tokenize import tokenize_manifest
from anygpt.media import Audio, load_audio, load_image, save_audio, save_image
from anygpt.modality import MODALITIES
from anygpt.paths import resource
from anygpt.tokenizers.base import ModalityTokenizer, load_tokenizer
from anygpt.tokenizers.sources import DEFAULT_TOKENIZERS
from anygpt.tokenizers.speechtokenizer.tokenizer import SpeechTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--items", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--captions", type=int, default=1, help="of each picture or sound")
    parser.add_argument("--modality", action="append", choices=list(DEFAULT_TOKENIZERS))
    parser.add_argument("--profile", action="store_true", help="also say where the time of one process goes")
    options = parser.parse_args()
    print("| modality | plain, items/s | ours, items/s | ratio | plain, CPU ms/item | ours | ratio | real time, CPU |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for modality in options.modality or list(DEFAULT_TOKENIZERS):
        with tempfile.TemporaryDirectory() as folder:
            measure(modality, Path(folder), options)


def measure(modality: str, folder: Path, options: argparse.Namespace) -> None:
    """Print a row of the table."""
    manifest, duration_s = make_media(modality, folder, options.items, options.captions)
    lines = manifest.read_text(encoding="utf-8").splitlines()
    first = folder / "first.jsonl"
    first.write_text("".join(f"{line}\n" for line in lines[: options.workers]), encoding="utf-8")
    tokenizer = load_tokenizer(resource("tokenizers", DEFAULT_TOKENIZERS[modality]))
    out = folder / "out.jsonl"

    def ours(source: Path) -> None:
        for path in folder.glob("out.jsonl*"):
            path.unlink()
        size = options.batch_size if source == manifest else 1
        tokenize_manifest(source, out, workers=options.workers, batch_size=size)

    def plain() -> None:
        torch.set_num_threads(options.workers)
        one_at_a_time(manifest, folder / "plain.jsonl", modality, tokenizer)

    taken: dict[str, list[tuple[float, float]]] = {"plain": [], "start": [], "ours": []}
    for _ in range(options.rounds):
        for name, run in (("plain", plain), ("start", lambda: ours(first)), ("ours", lambda: ours(manifest))):
            taken[name].append(timed(run))
    wall, cpu = ({name: median(times[kind] for times in each) for name, each in taken.items()} for kind in (0, 1))
    rows = len(lines)
    for seconds in (wall, cpu):
        seconds["ours"] -= seconds["start"]
    factor = f"{duration_s / wall['ours']:.0f}x, {duration_s / cpu['ours']:.0f}x" if duration_s else "-"
    print(
        f"| {modality} | {rows / wall['plain']:.1f} | {rows / wall['ours']:.1f} | {wall['plain'] / wall['ours']:.1f}x "
        f"| {1000 * cpu['plain'] / rows:.1f} | {1000 * cpu['ours'] / rows:.1f} | {cpu['plain'] / cpu['ours']:.1f}x "
        f"| {factor} |",
        flush=True,
    )
    if options.profile:
        options.workers = 1
        with cProfile.Profile() as profile:
            ours(manifest)
        pstats.Stats(profile).sort_stats("tottime").print_stats(8)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time with that of worker processes."""
    times = time.perf_counter(), cpu_seconds()
    run()
    return time.perf_counter() - times[0], cpu_seconds() - times[1]


def cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def one_at_a_time(manifest: Path, out: Path, modality: str, tokenizer: ModalityTokenizer) -> None:
    """The plain loop."""
    load = {"image": load_image, "audio": load_audio}[MODALITIES[modality].media]
    spec = spec_of(tokenizer)
    with out.open("w", encoding="utf-8") as file, manifest.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            media = load(manifest.parent / row[modality])
            (codes_KT,) = (
                [tokenizer.encode_all_levels(media)[:1]]
                if isinstance(tokenizer, SpeechTokenizer)
                else tokenizer.encode([media])
            )
            written = {"text": row["text"], modality: codes_to_string(spec, codes_KT)}
            file.write(json.dumps(written, ensure_ascii=False) + "\n")


def make_media(modality: str, folder: Path, items: int, captions: int) -> tuple[Path, float]:
    """A manifest of fresh media, and the seconds of sound in them."""
    random = np.random.default_rng(0)
    duration_s = 0.0
    rows = []
    for number in range(items):
        if modality == "image":
            coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
            name = f"{number}.jpg"
            save_image(folder / name, coarse.resize((640, 480), Image.Resampling.BICUBIC))
        else:
            seconds = 10.0 if modality == "music" else float(random.uniform(2, 16))
            rate_hz = 32_000 if modality == "music" else 16_000
            wave = random.normal(0, 0.1, (1, round(seconds * rate_hz))).astype(np.float32)
            name = f"{number}.wav"
            save_audio(folder / name, Audio(wave, rate_hz))
            duration_s += seconds * captions
        rows += [{modality: name, "text": f"caption {n} of {number}"} for n in range(captions)]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest, duration_s


if __name__ == "__main__":
    main()
