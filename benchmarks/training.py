"""Processor seconds of a training step's forward and backward pass, by attention function, row length and precision.

    python benchmarks/training.py [--threads N] [--rounds N] [--lengths 80 256 704]

The model and the rows are those of config/stage1-mini.yaml, the weights random; all functions take the same
micro-batch in turns, and the fastest round counts.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from anygpt.config import read_mapping
from anygpt.data.packing import Example, attention_mask, collate_rows
from anygpt.paths import resource
from anygpt.training import attention

FUNCTIONS = (attention.NAME, "sdpa", "eager")
VOCABULARY = 4200
EXAMPLE = 70
"""Ids of an example: about an instruction, a caption and a picture."""


def main() -> None:
    stage1 = read_mapping(resource("config", "stage1-mini.yaml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=stage1["packing"]["row_lengths"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    attention.register()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **stage1["model"]["init"]))
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        for length in options.lengths:
            batch = micro_batch(length, stage1["packing"]["tokens_per_micro_batch"])
            best = dict.fromkeys(FUNCTIONS, float("inf"))
            for _ in range(options.rounds):
                for name in FUNCTIONS:
                    model.set_attn_implementation(name)
                    best[name] = min(best[name], seconds(model, batch, dtype))
            rounded = {name: round(value, 3) for name, value in best.items()}
            print(json.dumps({"dtype": str(dtype).removeprefix("torch."), "row_length": length, **rounded}), flush=True)


def micro_batch(length: int, tokens: int) -> dict[str, Tensor]:
    """Rows of `length`, full of examples of `EXAMPLE` ids."""
    example = Example(ids=torch.randint(1, VOCABULARY, (EXAMPLE,)).tolist(), weights=[1.0] * EXAMPLE)
    return collate_rows([[example] * (length // EXAMPLE)] * (tokens // length), length, pad_id=0)


def seconds(model: LlamaForCausalLM, batch: dict[str, Tensor], dtype: torch.dtype) -> float:
    began = time.process_time()
    mask = attention_mask(batch["segment_ids"], dtype)
    logits = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"]).logits
    counted = batch["loss_weights"][:, 1:] > 0
    F.cross_entropy(logits[:, :-1][counted].float(), batch["input_ids"][:, 1:][counted]).backward()
    model.zero_grad()
    return time.process_time() - began


if __name__ == "__main__":
    main()
