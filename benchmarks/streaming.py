"""Time to the first sound of an answer, as a share of the time of the whole answer.

    python benchmarks/streaming.py [--model NAME] [--seconds N] [--repeats N] [--threads N]

The whole answer is that of `AnyGPT.run`: all codes, then the sound. `AnyGPT.stream` gives the first chunk, and all of
them; its last column is what streaming costs in all. Clips have a fixed length. Times are wall-clock, medians over
the repeats; the two ways alternate, so that load on the machine hits both.
"""

import argparse
import time
from statistics import median

import torch

from anygpt import AnyGPT
from anygpt.streaming import AudioChunk

PROMPTS = {
    "music": "text|music|slow piano, calm and soft",
    "speech": "text|speech|the quick brown fox jumps over the lazy dog and runs away",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name; by default the shipped base model")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AnyGPT.from_pretrained(options.model, device="cpu")
    print("| answer | whole (s) | first sound (s) | share | first sound lasts (s) | streamed in all (s) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in PROMPTS:
        row = measure(model, name, options.seconds, options.repeats)
        print("| {} | {:.2f} | {:.3f} | {:.1%} | {:.2f} | {:.2f} |".format(name, *row))


def measure(model: AnyGPT, name: str, seconds: float, repeats: int) -> tuple[float, ...]:
    """Medians in seconds: the whole answer, the first sound, its share, its own length, the streamed answer."""
    spec = model.specs[name]
    assert spec.frame_rate_hz is not None
    ids = round(seconds * spec.frame_rate_hz) * spec.num_codebooks
    # Streams have no candidates to choose from, so the whole answer is one, too.
    limits = {"max_new_tokens": ids, "min_new_tokens": ids, "best_of": 1}
    rows: list[tuple[float, ...]] = []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        model.run(PROMPTS[name], seed=repeat, **limits)
        whole = time.perf_counter() - began
        first = length = None
        began = time.perf_counter()
        for event in model.stream(PROMPTS[name], seed=repeat, **limits):
            if first is None and isinstance(event, AudioChunk):
                first, length = time.perf_counter() - began, event.audio.duration_s
        assert first is not None and length is not None
        rows.append((whole, first, first / whole, length, time.perf_counter() - began))
    return tuple(median(column) for column in zip(*rows[1:], strict=True))  # the first round loads and warms up


if __name__ == "__main__":
    main()
