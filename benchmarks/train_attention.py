"""Processor seconds of a training step's forward and backward pass: attention, torch.compile, logits, row lengths.

    python benchmarks/train_attention.py [--threads N] [--rounds N] [--lengths 80 256 704] [--ways plain_matmul ...]
        [--weighted SHARE] [--vocabulary N]

The model and the rows are those of config/stage1-mini.yaml, the weights random; all ways take the same micro-batch in
turns, and the fastest round counts. `compiled` is the first function through torch.compile (`compile: true` in the
configuration of a run), `first_call_s` the wall-clock seconds that it takes to compile. `weighted` is the first
function where only SHARE of the positions, the ends of the examples, have a loss weight, as answers in stage 2 have;
in all other ways every position has one, so that logits are computed everywhere.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from anygpt.config import read_mapping
from anygpt.data.packing import Example, attention_mask, collate_rows
from anygpt.paths import resource
from anygpt.training import attention
from anygpt.training.loss import NextIdLoss

FUNCTIONS = (attention.NAME, "sdpa", "eager")
WAYS = (*FUNCTIONS, "compiled", "weighted")
EXAMPLE = 70
"""Ids of an example: about an instruction, a caption and a picture."""


def main() -> None:
    stage1 = read_mapping(resource("config", "stage1-mini.yaml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=stage1["packing"]["row_lengths"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--weighted", type=float, default=0.3, help="share of the positions that have a loss weight")
    parser.add_argument("--vocabulary", type=int, default=4200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    attention.register()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=options.vocabulary, **stage1["model"]["init"]))
    eager, compiled = NextIdLoss(model), NextIdLoss(model, compiles=True)
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        for length in options.lengths:
            tokens = stage1["packing"]["tokens_per_micro_batch"]
            batch = micro_batch(length, tokens, options.vocabulary)
            answers = micro_batch(length, tokens, options.vocabulary, weighted=options.weighted)
            ways = {name: (name, eager, batch) for name in FUNCTIONS}
            ways |= {"compiled": (attention.NAME, compiled, batch), "weighted": (attention.NAME, eager, answers)}
            measured: dict[str, float] = {}
            if "compiled" in options.ways:
                model.set_attn_implementation(attention.NAME)
                began = time.perf_counter()
                seconds(model, batch, dtype, compiled)
                measured["first_call_s"] = time.perf_counter() - began
            for _ in range(options.rounds):
                for way in options.ways:
                    function, loss, rows = ways[way]
                    model.set_attn_implementation(function)
                    measured[way] = min(measured.get(way, float("inf")), seconds(model, rows, dtype, loss))
            rounded = {way: round(value, 3) for way, value in measured.items()}
            print(json.dumps({"dtype": str(dtype).removeprefix("torch."), "row_length": length, **rounded}), flush=True)


def micro_batch(length: int, tokens: int, vocabulary: int, *, weighted: float = 1.0) -> dict[str, Tensor]:
    """Rows of `length`, full of examples of `EXAMPLE` ids; `weighted` of them, the last ones, have a loss weight."""
    answer = round(weighted * EXAMPLE)
    weights = [0.0] * (EXAMPLE - answer) + [1.0] * answer
    example = Example(ids=torch.randint(1, vocabulary, (EXAMPLE,)).tolist(), weights=weights)
    return collate_rows([[example] * (length // EXAMPLE)] * (tokens // length), length, pad_id=0)


def seconds(
    model: LlamaForCausalLM, batch: dict[str, Tensor], dtype: torch.dtype, loss: Callable[..., Tensor]
) -> float:
    began = time.process_time()
    mask = attention_mask(batch["segment_ids"], dtype)
    loss(model, batch["input_ids"], mask, batch["position_ids"], batch["loss_weights"]).backward()
    model.zero_grad()
    return time.process_time() - began


if __name__ == "__main__":
    main()
