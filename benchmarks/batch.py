"""Total tokens per second of a batch against one prompt at a time, with all that a step costs: model, grammar, draw.

    python benchmarks/batch.py [--model FOLDER] [--batch-size 16] [--prompts 64] [--rounds 5] [--clock processor]
    python benchmarks/batch.py --whole --threads 1 [--modality image | caption | …]

The batch is measured while all its places are taken: up to when the last prompt gets one. One at a time are the first
of the prompts, as many as there are kinds of them, each with the seed that it has in the batch; both take turns. No
media are decoded. Without --modality the prompts are mixed. Prints medians and their ratio. `--clock processor` is for
a busy machine and one thread.

With --whole, `AnyGPT.run_batch` from prompts to results, pictures and sounds included, against the same with nothing
beside the drawing of ids: preparing, drawing, choosing and decoding in turn. Prints seconds of both by the clock and of
the processor, and how many of these the caller's thread had when the others helped: with a free core for each thread,
the greater of its part and the rest is what a run takes at best.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from anygpt import AnyGPT
from anygpt.engine import Task
from anygpt.generation.grammar import Request
from anygpt.generation.loop import Answer, decode, generate

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
CAPTIONS = ("a large red apple on a white background", "two small cats", "slow calm piano", "a blue car and a tree")
CAPTION = "caption"
"""Prompts that are pictures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--modality", default=None, choices=["image", "speech", "music", "audio", CAPTION])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--whole", action="store_true", help="run_batch, with and without threads beside the drawing")
    options = parser.parse_args()
    if options.modality == CAPTION and not options.whole:
        parser.error("captions are measured with --whole")
    torch.set_num_threads(options.threads)
    model = AnyGPT.from_pretrained(options.model)
    if options.whole:
        print(json.dumps(whole(model, options)))
        return
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


def whole(model: AnyGPT, options: argparse.Namespace) -> dict[str, object]:
    """What `run_batch` takes, and what it takes in turn."""
    names = [options.modality] if options.modality else list(model.specs)
    with tempfile.TemporaryDirectory() as folder:
        texts = [CAPTIONS[i % len(CAPTIONS)] for i in range(options.prompts)]
        if options.modality == CAPTION:
            drawn = {text: model.run(f"text|image|{text}", seed=0).save(Path(folder)) for text in CAPTIONS}
            prompts = [f"image|text|{drawn[text]}" for text in texts]
        else:
            prompts = [f"text|{names[i % len(names)]}|{text}" for i, text in enumerate(texts)]
        runs = {
            "in_turn": lambda: in_turn(model, prompts, options.batch_size),
            "beside": lambda: sum(1 for _ in model.run_batch(prompts, batch_size=options.batch_size, seed=0)),
        }
        for run in runs.values():  # loads tokenizers
            run()
        seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                clocks = (time.perf_counter, time.process_time, time.thread_time)
                began = [clock() for clock in clocks]
                run()
                seconds[name].append(tuple(clock() - start for clock, start in zip(clocks, began, strict=True)))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()
    }
    (wall, processor, _), (wall_beside, processor_beside, caller) = medians["in_turn"], medians["beside"]
    return {
        "modality": options.modality or "mixed",
        "batch_size": options.batch_size,
        "prompts": options.prompts,
        "threads": options.threads,
        "rounds": options.rounds,
        "in_turn_s": round(wall, 3),
        "beside_s": round(wall_beside, 3),
        "in_turn_processor_s": round(processor, 3),
        "beside_processor_s": round(processor_beside, 3),
        "caller_processor_s": round(caller, 3),
        "ratio": round(statistics.median(a[0] / b[0] for a, b in zip(*seconds.values(), strict=True)), 2),
        # torch's own threads count with the rest.
        "ratio_at_best": round(processor / max(caller, processor_beside - caller), 2) if options.threads == 1 else None,
    }


def in_turn(model: AnyGPT, prompts: list[str], batch_size: int) -> int:
    """`run_batch` in one thread."""
    making: dict[Answer, tuple[Task, list[Answer]]] = {}

    def answers() -> Iterator[Answer]:
        for seed, prompt in enumerate(prompts):
            task = model.task(prompt, seed=seed)
            candidates = model.making(task)
            making.update(dict.fromkeys(candidates, (task, candidates)))
            yield from candidates

    done = 0
    for answer, _ in decode(model.decoder, answers(), batch_size=batch_size):
        if answer.is_done:
            task, candidates = making.pop(answer)
            if not any(candidate in making for candidate in candidates):
                model.result(task, model.chosen(task, candidates).ids, 0.0)
                done += 1
    return done


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
