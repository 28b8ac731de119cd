"""Time per id against the length of the context, ours and transformers' `generate` with its dynamic cache.

    python benchmarks/decode_context.py [--contexts 256 1024 2048 4096] [--rounds 5] [--plot docs/decode_context.png]

The shape is that of the shipped model with random weights and a longer context. Both hold the same prompt in their
cache and continue it greedily by the same few ids, in turns within a round; medians of the rounds. `attention` is what
our step spends on attention alone, measured in the same rounds: the growth of the step should not exceed its own.
`--clock processor` counts processor time, for a busy machine and one thread.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from anygpt.engine import DEFAULT_MODEL
from anygpt.generation.llama import LlamaDecoder, LlamaShape
from anygpt.generation.loop import prefill, step
from anygpt.paths import resource

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
COLUMNS = ("ours", "attention", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    parser.add_argument("--ids", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options.contexts, options.ids, options.rounds, CLOCKS[options.clock])
    print("| context | ours, ms | of it attention, ms | transformers, ms | transformers / ours |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for context, (ours, attention, theirs) in rows.items():
        print(f"| {context} | {ours:.2f} | {attention:.2f} | {theirs:.2f} | {theirs / ours:.1f}x |")
    if options.plot is not None:
        plot(rows, options.plot)


def measure(contexts: list[int], count: int, rounds: int, clock: Callable[[], float]) -> dict[int, list[float]]:
    """Milliseconds per id by context: ours, its attention, transformers."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shipped = json.loads(Path(resource("models", DEFAULT_MODEL), "config.json").read_text())
    config = LlamaConfig(
        **shipped | {"max_position_embeddings": max(contexts) + count + 1, "use_cache": True, "dtype": "float32"}
    )
    model = LlamaForCausalLM(config).eval()
    weights = model.state_dict()
    decoder = LlamaDecoder(LlamaShape.from_config(config.to_dict(), "benchmark"), weights.__getitem__)
    prompts = {context: torch.randint(config.vocab_size, (context,)).tolist() for context in contexts}
    ours = {context: decoder.new_cache() for context in contexts}
    theirs = {context: DynamicCache(config=config) for context in contexts}
    with torch.inference_mode():
        for context, ids in prompts.items():
            prefill(decoder, ids, ours[context])
            model(torch.tensor([ids]), past_key_values=theirs[context], use_cache=True, logits_to_keep=1)

    def run_ours(context: int) -> list[int]:
        ids = [7]
        for _ in range(count):
            ids.append(int(decoder.logits(step(decoder, ids[-1], ours[context])).argmax()))
        ours[context].truncate(context)
        return ids[1:]

    def run_theirs(context: int) -> list[int]:
        ids = torch.tensor([[*prompts[context], 7]])
        limits: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            answer = model.generate(
                ids, attention_mask=mask, past_key_values=theirs[context], eos_token_id=None, pad_token_id=0, **limits
            )
        theirs[context].crop(context - theirs[context].get_seq_length())  # negative: so many are removed
        return answer[0, context + 1 :].tolist()

    @torch.inference_mode()
    def run_attention(context: int) -> None:
        shape = decoder.shape
        query = torch.ones(1, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_width)
        for _ in range(count):
            for layer in range(shape.layers):
                keys, values = ours[context].keys_values[:, layer, :, :context]
                F.scaled_dot_product_attention(query, keys[None], values[None])

    ways: dict[str, Callable[[int], Any]] = dict(zip(COLUMNS, (run_ours, run_attention, run_theirs), strict=True))
    for context in contexts:
        assert run_ours(context) == run_theirs(context), f"other ids at a context of {context}"
    took: dict[int, list[list[float]]] = {context: [[] for _ in ways] for context in contexts}
    for _ in range(rounds):
        for context in contexts:
            for times, way in zip(took[context], ways.values(), strict=True):
                began = clock()
                way(context)
                times.append((clock() - began) * 1e3 / count)
    return {context: [median(times) for times in columns] for context, columns in took.items()}


def plot(rows: dict[int, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    labels = ("AnyGPT", "of it attention", "transformers, dynamic cache")
    for column, (label, style) in enumerate(zip(labels, ("o-", "o:", "s-"), strict=True)):
        axes.plot(list(rows), [row[column] for row in rows.values()], style, label=label)
    axes.set(xlabel="positions in the cache", ylabel="ms per id", ylim=(0, None), title="Cost of an id, batch 1, CPU")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
