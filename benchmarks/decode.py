"""Tokens per second of our decoding loop and of transformers' `generate`, on the same random weights.

    python benchmarks/decode.py [--threads N] [--tokens N]

Both decode greedily at batch 1 after the same prompt; the ids are compared too.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from anygpt.generation.llama import LlamaDecoder, LlamaShape
from anygpt.generation.loop import prefill, step

SIZES = {
    "mini (d256, 8 layers, 4.5k ids)": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8},
    "d512, 8 layers, 4.5k ids": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, size in SIZES.items():
        print(json.dumps({"model": name, "threads": options.threads, **compare(size, options.tokens, options.repeats)}))


def compare(size: dict[str, int], tokens: int, repeats: int) -> dict[str, float | bool]:
    """Best of `repeats` for each, taken in turns so that other load on the machine hits both."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=4500, num_attention_heads=4, max_position_embeddings=1024, **size)
    model = LlamaForCausalLM(config).eval()
    decoder = LlamaDecoder(LlamaShape.from_config(config.to_dict(), "benchmark"), model.state_dict().__getitem__)
    prompt = torch.randint(config.vocab_size, (40,)).tolist()

    def ours() -> list[int]:
        cache = decoder.new_cache(len(prompt) + tokens)
        ids = [int(prefill(decoder, prompt, cache).argmax())]
        while len(ids) < tokens:
            ids.append(int(step(decoder, ids[-1], cache).argmax()))
        return ids

    def theirs() -> list[int]:
        ids = torch.tensor([prompt])
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            answer = model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **limits)
        return answer[0, len(prompt) :].tolist()

    equal = ours() == theirs()
    best = {"ours": 0.0, "transformers": 0.0}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("transformers", theirs)):
            best[name] = max(best[name], tokens / seconds(run))
    rates = {f"{name}_tokens_per_s": round(rate, 1) for name, rate in best.items()}
    return {**rates, "ratio": round(best["ours"] / best["transformers"], 2), "same_ids": equal}


def seconds(run: Callable[[], list[int]]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
