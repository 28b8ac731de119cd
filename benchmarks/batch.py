"""Total tokens per second of a batch against one prompt at a time, with all that a step costs: model, grammar, draw.

    python benchmarks/batch.py [--model FOLDER] [--batch-size 16] [--prompts 32] [--rounds 5]

Both make the same answers' ids, of the same seeds, in turns within a run; no media are decoded. Without a modality in
--modality the prompts are mixed. Prints medians and their ratio.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from anygpt import AnyGPT
from anygpt.generation.grammar import Request
from anygpt.generation.loop import Answer, decode, generate

CAPTIONS = ("a large red apple on a white background", "two small cats", "slow calm piano", "a blue car and a tree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--modality", default=None, choices=["image", "speech", "music", "audio"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AnyGPT.from_pretrained(options.model)
    names = [options.modality] if options.modality else list(model.specs)
    tasks = [task(model, names[i % len(names)], CAPTIONS[i % len(CAPTIONS)], i) for i in range(options.prompts)]

    def one_by_one() -> int:
        ids = ([*generate(model.decoder, prompt, **rules, generator=seeded(model, i))] for i, (prompt, rules) in tasks)
        return sum(map(len, ids))

    def batched() -> int:
        context = model.decoder.shape.context
        answers = [Answer(prompt, **rules, context=context, generator=seeded(model, i)) for i, (prompt, rules) in tasks]
        return sum(1 for _ in decode(model.decoder, answers, batch_size=options.batch_size))

    runs = {"one_by_one": one_by_one, "batched": batched}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            rates[name].append(rate(run))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = statistics.median(many / one for one, many in zip(rates["one_by_one"], rates["batched"], strict=True))
    print(
        json.dumps(
            {
                "modality": options.modality or "mixed",
                "batch_size": options.batch_size,
                "threads": options.threads,
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


def rate(run: Callable[[], int]) -> float:
    began = time.perf_counter()
    return run() / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
