"""Tokens per second of our decoding loop and of transformers' `generate`, at batch 1 on the shipped model.

    python benchmarks/decode.py [--model FOLDER] [--rounds 5] [--threads N] [--dtype bfloat16] [--clock processor]

Per modality, with its own policy: both continue the same prompt for the same number of ids with the same weights in the
same type, `generate` with its dynamic and its static cache. Ours has the grammar besides, `generate` draws from all
ids. The ways take turns within a round; printed are medians of the rounds.

`memory` is the share of the speed at which a step would take no longer than reading its weights and its keys and
values, at the bandwidth at which torch sums up a large tensor (measured in the same rounds); `products` the share of
the speed that the step's matrix products alone have; both count of the head what is multiplied with, the ids from the
first to the last that the grammar allows, on average. The weights of a small model may stay in the processor's cache,
so that `memory` can exceed 1. The last columns are the milliseconds of a step, and what of it goes into grammar and
policy (all but the drawing itself): how many, and which share.

`--clock processor` counts processor time, for a busy machine and one thread.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from anygpt import AnyGPT
from anygpt.engine import Task, find_model
from anygpt.generation.loop import Answer, generate
from anygpt.generation.matrices import Matrix, outputs, times
from anygpt.generation.policies import Policy
from anygpt.paths import resource

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROMPTS = {
    "text": ("image", "data/pretrain/image/media/000.jpg", 30),
    "image": ("text", "a large red apple on a white background", 32),
    "speech": ("text", "the quick brown fox jumps over the lazy dog", 150),
    "music": ("text", "slow calm piano", 300),
}
"""Of each modality of the answer: that of the question, the question, and the ids to be drawn."""
SUMMED_BYTES = 1 << 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AnyGPT.from_pretrained(options.model, device="cpu", dtype=options.dtype)
    llama = baseline(find_model(options.model), DTYPES[options.dtype])
    print(
        "| answer | ours, ids/s | dynamic | static | ours / dynamic | ours / static "
        "| memory | products | step, ms | grammar and policy, ms | share |\n"
        f"| --- {'| ---: ' * 10}|"
    )
    for name in PROMPTS:
        row = measure(model, llama, name, options.rounds, CLOCKS[options.clock])
        print(
            "| {} | {:.0f} | {:.0f} | {:.0f} | {:.1f}x | {:.1f}x | {:.2f} | {:.2f} | {:.2f} | {:.4f} | {:.1%} |".format(
                name, *row
            ),
            flush=True,
        )


def measure(model: AnyGPT, llama: Any, name: str, rounds: int, clock: Callable[[], float]) -> list[float]:
    """The numbers of one row of the table."""
    source, content, count = PROMPTS[name]
    if source != "text":
        content = str(Path(resource("data")).parent / content)
    limits = {"max_new_tokens": count, "guidance_scale": 1.0}  # which `generate` would need a second prompt for
    if name != "image":
        limits["min_new_tokens"] = count
    task = model.prepare(source, name, content, 1, limits)
    sequence = [*generate(model.decoder, task.ids, **model.rules(task))]
    begun = [*task.ids, *sequence[: name != "text"]]  # with the start tag, which isn't drawn
    drawn = len(sequence) - (name != "text")
    allowed = mean_head(model, task, sequence)
    head = outputs(model.decoder.head, range(allowed))
    hidden = model.decoder.append([7], model.decoder.new_cache(1))
    summed = torch.ones(SUMMED_BYTES // 4)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: [*generate(model.decoder, task.ids, **model.rules(task))],
        "dynamic": lambda: theirs(llama, begun, task.policies[name], drawn),
        "static": lambda: theirs(llama, begun, task.policies[name], drawn, cache_implementation="static"),
        "prefill": lambda: model.decoder.forward(begun, model.decoder.new_cache()),
        "products": lambda: [products(model, hidden, head) for _ in range(20)],
        "sum": summed.sum,
        "rules": lambda: replay(model, task, sequence),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for way, run in ways.items():
            began = clock()
            run()
            seconds[way].append(clock() - began)
    took = {way: median(values) for way, values in seconds.items()}

    def ratio(way: str) -> float:
        return median(theirs / ours for theirs, ours in zip(seconds[way], seconds["ours"], strict=True))

    # The first id comes with the prefill: what is left are the steps.
    step = (took["ours"] - took["prefill"]) / (drawn - 1)
    shape = model.decoder.shape
    positions = len(task.ids) + drawn / 2
    cached = 2 * shape.layers * shape.kv_heads * shape.head_width * positions
    read = took["sum"] * model.decoder.dtype.itemsize * (weights(model, allowed) + cached) / SUMMED_BYTES
    rules = took["rules"] / drawn
    speeds = [drawn / took[way] for way in ("ours", "dynamic", "static")]
    return [
        *(*speeds, ratio("dynamic"), ratio("static")),
        *(read / step, took["products"] / 20 / step, step * 1e3, rules * 1e3, rules / step),
    ]


def baseline(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def theirs(llama: Any, prompt_ids: list[int], policy: Policy, count: int, **more: Any) -> None:
    """`generate` under the same settings; it can't switch them, and draws from all ids."""
    settings: dict[str, Any] = {"do_sample": not policy.is_greedy}
    if not policy.is_greedy:
        settings |= {"temperature": policy.temperature, "top_k": policy.top_k, "top_p": policy.top_p}
    ids = torch.tensor([prompt_ids])
    torch.manual_seed(1)
    with torch.inference_mode():
        llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
            **settings,
            **more,
        )


def weights(model: AnyGPT, allowed: int) -> int:
    """Numbers in the matrices that a step reads."""
    shape = model.decoder.shape
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_width
    return shape.hidden_size * (shape.layers * (attention + 3 * shape.inner_size) + allowed)


def mean_head(model: AnyGPT, task: Task, sequence: list[int]) -> int:
    """Outputs of the head that a step of this answer computes, on average."""
    answer = new_answer(model, task)
    counts = []
    for index in sequence[len(answer.ids) :]:
        allowed = answer.automaton.allowed()
        counts.append(allowed[-1].stop - allowed[0].start)
        answer.push(index)
    return round(mean(counts))


@torch.inference_mode()
def products(model: AnyGPT, hidden: Tensor, head: Matrix) -> None:
    """The matrix products of a step, and nothing between them."""
    shape = model.decoder.shape
    inner, mixed = (hidden.new_ones(1, size) for size in (shape.inner_size, shape.heads * shape.head_width))
    for layer in model.decoder.layers:
        times(hidden, layer.qkv)
        times(mixed, layer.out)
        times(hidden, layer.gate_up)
        times(inner, layer.down)
    times(hidden, head)


def replay(model: AnyGPT, task: Task, sequence: list[int]) -> None:
    """All that grammar and policy do for an answer, with its ids known: nothing is computed and nothing drawn."""
    answer = new_answer(model, task)
    for index in sequence[len(answer.ids) :]:
        _ = answer.policy, tuple(answer.automaton.allowed())
        answer.push(index)


def new_answer(model: AnyGPT, task: Task) -> Answer:
    rules = {key: value for key, value in model.rules(task).items() if key != "unconditional_ids"}
    return Answer(task.ids, **rules, context=model.decoder.shape.context)


if __name__ == "__main__":
    main()
