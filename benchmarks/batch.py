"""Total tokens per second of a batch against one prompt at a time, with all that a step costs: model, grammar, draw.

    python benchmarks/batch.py [--model FOLDER] [--batch-size 16] [--prompts 64] [--rounds 5] [--clock processor]

The batch is measured while all its places are taken: up to when the last prompt gets one. One at a time are the first
of the prompts, as many as there are kinds of them, each with the seed that it has in the batch; both take turns. No
media are decoded. Without --modality the prompts are mixed. Prints medians and their ratio. `--clock processor` is for
a busy machine and one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from anygpt import AnyGPT
from anygpt.generation.grammar import Request
from anygpt.generation.loop import Answer, decode, generate

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
CAPTIONS = ("a large red apple on a white background", "two small cats", "slow calm piano", "a blue car and a tree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--modality", default=None, choices=["image", "speech", "music", "audio"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AnyGPT.from_pretrained(options.model)
    names = [options.modality] if options.modality else list(model.specs)
    tasks = [task(model, names[i % len(names)], CAPTIONS[i % len(CAPTIONS)], i) for i in range(options.prompts)]

    def one_by_one() -> int:
        first = tasks[: max(len(names), 3)]
        ids = ([*generate(model.decoder, prompt, **rules, generator=seeded(model, i))] for i, (prompt, rules) in first)
        return sum(map(len, ids))

    def batched() -> int:
        context = model.decoder.shape.context
        waiting = list(reversed(tasks))

        def answers() -> Iterator[Answer]:
            while waiting:
                seed, (prompt, rules) = waiting.pop()
                yield Answer(prompt, **rules, context=context, generator=seeded(model, seed))

        made = 0
        for _ in decode(model.decoder, answers(), batch_size=options.batch_size):
            made += 1
            if not waiting:
                break
        return made

    clock = CLOCKS[options.clock]
    runs = {"one_by_one": one_by_one, "batched": batched}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            rates[name].append(rate(run, clock))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = statistics.median(many / one for one, many in zip(rates["one_by_one"], rates["batched"], strict=True))
    print(
        json.dumps(
            {
                "modality": options.modality or "mixed",
                "batch_size": options.batch_size,
                "threads": options.threads,
                "clock": options.clock,
                "rounds": options.rounds,
                **{f"{name}_tokens_per_s": round(value, 1) for name, value in medians.items()},
                "ratio": round(ratio, 2),
            }
        )
    )


def task(model: AnyGPT, name: str, caption: str, number: int) -> tuple[int, tuple[list[int], dict[str, object]]]:
    """A seed, and the prompt and rules that `AnyGPT.run` would use."""
    prompt = model.prepare("text", name, caption, number, {})
    rules = {"grammar": model._grammar, "request": Request.only(name), "policies": prompt.policies}
    return number, (prompt.ids, rules)


def seeded(model: AnyGPT, seed: int) -> torch.Generator:
    return torch.Generator(model.decoder.device).manual_seed(seed)


def rate(run: Callable[[], int], clock: Callable[[], float]) -> float:
    began = clock()
    return run() / (clock() - began)


if __name__ == "__main__":
    main()
