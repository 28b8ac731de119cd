"""What bfloat16 and int8 weights change about the shipped model's predictions, against float32.

    python benchmarks/quantisation.py [MODEL] [--pairs N]

Every type reads the same training examples of `data/pretrain`, whole, in both directions; compared are the predictions
of the answers' ids.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from anygpt.data.mixture import PairSource, SourceConfig
from anygpt.engine import find_model
from anygpt.generation.llama import load_decoder
from anygpt.paths import resource
from anygpt.prompts.tasks import TaskPrompts
from anygpt.vocabulary import Vocabulary

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=40, help="of each modality")
    options = parser.parse_args()
    folder = find_model(options.model)
    for modality, examples in answers(folder, options.pairs).items():
        of_type = {name: predictions(folder, dtype, examples) for name, dtype in TYPES.items()}
        targets = torch.cat([torch.tensor(ids)[mask] for ids, mask in examples])
        for name in ("bfloat16", "int8"):
            row = compare(of_type["float32"], of_type[name], targets)
            print(json.dumps({"answers in": modality, "dtype": name, "ids": len(targets), **row}))


def answers(folder: Path, pairs: int) -> dict[str, list[tuple[list[int], Tensor]]]:
    """By the answer's modality: ids, and which of them belong to the answer."""
    vocabulary, prompts = Vocabulary.from_pretrained(folder), TaskPrompts.load()
    found: dict[str, list[tuple[list[int], Tensor]]] = {}
    for name, spec in vocabulary.specs.items():
        path = resource("data", "pretrain") / name / "sample.jsonl"
        if not path.is_file():
            continue
        source = PairSource(SourceConfig(path=path, modality=name), vocabulary, prompts, validation_fraction=0.5)
        for direction in source.directions:
            instruction = prompts.canonical(spec.name, direction)
            for index in range(min(pairs, len(source.file))):
                example = source.example(index, direction, instruction, answer_only=True)
                is_answer = torch.tensor([weight > 0 for weight in example.weights])
                found.setdefault("text" if direction == "x2text" else name, []).append((example.ids, is_answer))
    return found


def predictions(folder: Path, dtype: torch.dtype, examples: list[tuple[list[int], Tensor]]) -> Tensor:
    """Log-probabilities [ids, V] of what stands at each position of the answers."""
    decoder = load_decoder(folder, dtype=dtype)
    parts = []
    for ids, is_answer in examples:
        logits_TV = decoder.forward(ids[:-1], decoder.new_cache(len(ids)), last_only=False)
        parts.append(logits_TV[is_answer[1:]].log_softmax(-1))
    return torch.cat(parts)


def compare(expected_NV: Tensor, got_NV: Tensor, targets_N: Tensor) -> dict[str, float]:
    own, other = (rows.gather(1, targets_N[:, None])[:, 0] for rows in (expected_NV, got_NV))
    divergence = (expected_NV.exp() * (expected_NV - got_NV)).sum(1)
    return {
        "same most likely id": round((expected_NV.argmax(1) == got_NV.argmax(1)).float().mean().item(), 4),
        "loss in float32": round(-own.mean().item(), 4),
        "loss added": round((own - other).mean().item(), 5),
        "mean difference of a log-probability": round((own - other).abs().mean().item(), 4),
        "divergence (nats)": round(divergence.mean().item(), 5),
    }


if __name__ == "__main__":
    main()
