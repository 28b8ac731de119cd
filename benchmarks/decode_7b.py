"""Tokens per second of the released shape (LLaMA-2 7B, 53,520 ids) at batch 1, in bfloat16 and int8, on a CPU.

    python benchmarks/decode_7b.py [--layers N] [--threads N] [--clock process|wall]

Layers are alike, so a few of them, with random weights, tell the time of all: it is that of the model with one layer
and so many times the difference. Beside it: the bandwidth of reading memory, torch's matrix-vector products
alone, and what the step makes of both. `--layers 32` holds the whole model, twice (21 GB).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from anygpt.generation.llama import LlamaDecoder, LlamaShape
from anygpt.generation.packed_matrix import PackedMatrix

CONFIG = {
    "model_type": "llama",
    "vocab_size": 53520,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
LAYER = {"qkv": (12288, 4096), "out": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)}
"""Outputs and inputs of a layer's products."""
HEAD = (53520, 4096)
TYPES = {"bfloat16": torch.bfloat16, "int8": torch.int8}

Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--clock", choices=["process", "wall"], default="wall", help="process: with one thread only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "process" else time.perf_counter
    alone = matrix_vector_products(clock, options.rounds)
    print(json.dumps({"matrix-vector product alone, GB/s": {name: rate for name, (rate, _) in alone.items()}}))
    for row in compare(clock, options.layers, options.rounds, options.context, alone):
        print(json.dumps(row))


def compare(
    clock: Clock, layers: int, rounds: int, context: int, alone: dict[str, tuple[float, float]]
) -> list[dict[str, object]]:
    """Medians over rounds, in each of which memory and both types take their turns."""
    decoders = {name: random_decoder(layers, dtype) for name, dtype in TYPES.items()}
    memory = torch.ones(100_000_000)
    seconds: dict[str, list[float]] = {}

    def measure(name: str, run: Callable[[], object]) -> None:
        began = clock()
        run()
        seconds.setdefault(name, []).append(clock() - began)

    steps = {}
    for name, decoder in decoders.items():
        for depth in (1, layers):
            steps[f"{name} {depth}"] = step_at(decoder, depth, context)
    for run in (memory.sum, *steps.values()):
        run()
    for _ in range(rounds):
        measure("memory", memory.sum)
        for name, step in steps.items():
            measure(name, step)
    limit = 4 * len(memory) / 1e9 / statistics.median(seconds["memory"])
    rows = []
    for name, dtype in TYPES.items():
        first, deep = (statistics.median(seconds[f"{name} {depth}"]) for depth in (1, layers))
        layer = (deep - first) / (layers - 1)
        whole = first + 31 * layer
        size = dtype.itemsize * (32 * sum(o * i for o, i in LAYER.values()) + HEAD[0] * HEAD[1]) / 1e9
        products = alone[f"{name}, best"][1]
        rows.append(
            {
                "dtype": name,
                "layers": layers,
                "milliseconds of a layer": round(1000 * layer, 2),
                "tokens/s of 32 layers": round(1 / whole, 2),
                "GB/s": round(size / whole, 1),
                "memory, GB/s": round(limit, 1),
                "of the memory limit": round(size / whole / limit, 2),
                "of the products alone": round(products / whole, 2),
            }
        )
    rates = [1 / float(row["tokens/s of 32 layers"]) for row in rows]  # type: ignore[arg-type]
    rows[1]["times bfloat16"] = round(rates[0] / rates[1], 2)
    return rows


def random_decoder(layers: int, dtype: torch.dtype) -> LlamaDecoder:
    values = torch.randn(1 << 28, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16) / 64
    shape = LlamaShape.from_config({**CONFIG, "num_hidden_layers": layers}, "benchmark")

    def take(key: str) -> Tensor:
        return values[: size_of(key)[0] * size_of(key)[1]].view(size_of(key)) if "norm" not in key else torch.ones(4096)

    return LlamaDecoder(shape, take, dtype=dtype)


def size_of(key: str) -> tuple[int, int]:
    name = key.split(".")[-2]
    return {"gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}.get(
        name, HEAD if name in ("embed_tokens", "lm_head") else (4096, 4096)
    )


def step_at(decoder: LlamaDecoder, depth: int, context: int) -> Callable[[], Tensor]:
    """One id more behind `context` ids, by the first layers of a decoder."""
    cache = decoder.new_cache(context + 1)
    layers = decoder.layers
    decoder.forward([7] * context, cache)

    def step() -> Tensor:
        cache.truncate(context)
        decoder.layers = layers[:depth]
        try:
            return decoder.forward([11], cache)
        finally:
            decoder.layers = layers

    return step


def matrix_vector_products(clock: Clock, rounds: int) -> dict[str, tuple[float, float]]:
    """GB/s of torch's own products of one row, and the seconds that all those of a 7B step take."""

    def without_onednn(row: Tensor, weight: Tensor) -> Tensor:
        torch.backends.mkldnn.enabled = False
        product = F.linear(row, weight)
        torch.backends.mkldnn.enabled = True
        return product

    seconds: dict[str, dict[str, float]] = {}
    for name, (outputs, inputs) in {**LAYER, "head": HEAD}.items():
        weight = torch.randn(outputs, inputs, dtype=torch.bfloat16)
        transposed = weight.t().contiguous()
        small = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        scales = torch.rand(outputs, dtype=torch.bfloat16)
        packed = PackedMatrix.pack(small, scales)
        row = torch.randn(1, inputs, dtype=torch.bfloat16)
        ways = {
            "bfloat16, linear": lambda row=row, weight=weight: F.linear(row, weight),
            "bfloat16, [in, out]": lambda row=row, transposed=transposed: row @ transposed,
            "bfloat16, linear without oneDNN": lambda row=row, weight=weight: without_onednn(row, weight),
            "int8, _weight_int8pack_mm": lambda row=row, small=small, scales=scales: torch.ops.aten._weight_int8pack_mm(
                row, small, scales
            ),
            "int8, packed (activations in 8 bits)": lambda row=row, packed=packed: [
                torch.ops.quantized.linear_dynamic(row.float(), block) for block in packed.blocks
            ],
        }
        with torch.inference_mode():
            for way, run in ways.items():
                run()
                times = []
                for _ in range(rounds):
                    began = clock()
                    run()
                    times.append(clock() - began)
                seconds.setdefault(way, {})[name] = statistics.median(times)
    for dtype in TYPES:
        own = [of for way, of in seconds.items() if way.startswith(dtype)]
        seconds[f"{dtype}, best"] = {name: min(of[name] for of in own) for name in own[0]}
    rates = {}
    for way, of in seconds.items():
        size = TYPES[way.split(",")[0]].itemsize * (32 * sum(o * i for o, i in LAYER.values()) + HEAD[0] * HEAD[1])
        whole = 32 * sum(of[name] for name in LAYER) + of["head"]
        rates[way] = (round(size / 1e9 / whole, 1), whole)
    return rates


if __name__ == "__main__":
    main()
