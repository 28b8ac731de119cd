"""Text tokenizer against transformers' own on the same mixed text, in one run.

    python benchmarks/tokenization.py [--checkpoint FOLDER] [--rounds 7]

Prints tokens per second and load times, their ratios, and how many texts transformers encodes otherwise than the
released checkpoints were trained with. Exit status 1 when ours is less than 4 times as fast, takes a second or more
to load, or gives other ids than the parity data.
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from transformers import AutoTokenizer, LlamaTokenizer  # noqa: E402
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend  # noqa: E402

from anygpt.code_strings import codes_to_string  # noqa: E402
from anygpt.vocabulary import Vocabulary  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
Encode = Callable[[Sequence[str]], list[list[int]]]


def ours(folder: Path) -> Encode:
    vocab = Vocabulary.from_pretrained(folder)
    return lambda texts: [[vocab.bos_id, *vocab.encode_marked(text)] for text in texts]


def auto(folder: Path) -> Encode:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda texts: tokenizer(list(texts)).input_ids


def llama(folder: Path) -> Encode:
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    return lambda texts: [tokenizer(text).input_ids for text in texts]


def slow(folder: Path) -> Encode:
    """The Python twin that transformers keeps for sentencepiece models, set up like the old LlamaTokenizer."""
    tokenizer = SentencePieceBackend.from_pretrained(folder)
    bos = tokenizer.convert_tokens_to_ids("<s>")
    return lambda texts: [[bos, *tokenizer(text, add_special_tokens=False).input_ids] for text in texts]


CANDIDATES: dict[str, Callable[[Path], Encode]] = {
    "ours": ours,
    "transformers AutoTokenizer, one batch": auto,
    "transformers LlamaTokenizer, text by text": llama,
    "transformers slow (Python, sentencepiece)": slow,
}


def mixed_texts(vocab: Vocabulary, words: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Pre-training strings of true proportions: an instruction and a caption of new words, and a span of codes.

    Nothing repeats, since tokenizers cache the words that they have met.
    """
    texts = []
    for number in range(count):
        spec = list(vocab.specs.values())[number % len(vocab.specs)]
        frames = spec.frames or rng.randint(50, 250)
        codes = torch.randint(spec.codebook_size, (spec.num_codebooks, frames))
        instruction, caption = (" ".join(rng.choices(words, k=rng.randint(8, 20))) for _ in range(2))
        span = codes_to_string(spec, codes)
        texts.append(f"[Human]: {instruction}. {span}<eoh> [MMGPT]: {caption} {rng.randint(0, 9999)}.<eos>")
    return texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "tests/golden/tokenization/checkpoint")
    parser.add_argument("--cases", type=Path, default=REPOSITORY / "tests/golden/tokenization/cases.json")
    parser.add_argument("--rounds", type=int, default=7, help="every round has new texts, the same for all tokenizers")
    parser.add_argument("--texts", type=int, default=120, help="texts in a round")
    options = parser.parse_args()
    cases = json.loads(options.cases.read_text(encoding="utf-8"))["cases"]
    encoders: dict[str, Encode] = {}
    load_s: dict[str, float] = {}
    wrong: dict[str, int] = {}
    for name, load in CANDIDATES.items():
        start = time.perf_counter()
        encoders[name] = load(options.checkpoint)
        load_s[name] = time.perf_counter() - start
        got = encoders[name]([case["text"] for case in cases])
        wrong[name] = sum(ids != case["ids"] for ids, case in zip(got, cases, strict=True))

    rng = random.Random(0)
    torch.manual_seed(0)
    vocab = Vocabulary.from_pretrained(options.checkpoint)
    words = sorted({word for case in cases for word in re.findall(r"\b[a-z]+\b", case["text"])})
    took_s: dict[str, list[float]] = {name: [] for name in encoders}
    tokens = 0
    for _ in range(options.rounds):
        texts = mixed_texts(vocab, words, options.texts, rng)
        tokens = sum(map(len, encoders["ours"](texts)))
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode(texts)
            took_s[name].append(time.perf_counter() - start)

    print(f"{options.rounds} rounds of {options.texts} texts, {tokens:,} tokens in the last; medians\n")
    print("| tokenizer | tokens/s | ours is faster by | load, s | parity cases with other ids |")
    print("| --- | ---: | ---: | ---: | ---: |")
    ratios: dict[str, float] = {}
    for name in encoders:
        # Round by round, so that a busy machine slows both sides of a ratio.
        ratios[name] = statistics.median(a / b for a, b in zip(took_s[name], took_s["ours"], strict=True))
        rate = tokens / statistics.median(took_s[name])
        print(f"| {name} | {rate:,.0f} | {ratios[name]:.1f}x | {load_s[name]:.2f} | {wrong[name]} of {len(cases)} |")
    ratio = min(ratio for name, ratio in ratios.items() if name != "ours")
    print(f"\nours / fastest of transformers: {ratio:.1f}x (target 4x); load {load_s['ours']:.2f} s (target under 1 s)")
    return 0 if ratio >= 4 and load_s["ours"] < 1 and wrong["ours"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
