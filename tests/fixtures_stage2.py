"""A toy run of stage 2: conversations about one-coloured pictures, on the model of the toy stage 1."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from fixtures_stage1 import COLOURS, SPEC

from anygpt.data.instructions import instruction_row
from anygpt.prompts.segments import Media, Turn
from anygpt.vocabulary import Text


def write_conversations(path: Path, count: int = 120) -> None:
    """Two rounds each: name the colour of a picture, then make it another colour."""
    rng = random.Random(1)
    with path.open("w") as file:
        for number in range(count):
            old, new = rng.sample(range(len(COLOURS)), 2)
            pictures = [Media("image", torch.full((1, 32), code)) for code in (old, new)]
            turns = [
                Turn("user", [pictures[0], Text(f" number {number}")]),
                Turn("assistant", [Text(f"a {COLOURS[old]} square")]),
                Turn("user", [Text(f"a {COLOURS[new]} square")]),
                Turn("assistant", [pictures[1]]),
            ]
            row = instruction_row(number, turns, {"image": SPEC}) | {"scenario": ("edit", "name it!")[number % 2]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_stage2_config(folder: Path, base: Path, **changes: Any) -> Path:
    """A run on `base`, the model folder of a toy stage 1, and on its pairs. A change to None drops a section."""
    write_conversations(folder / "chat.jsonl")
    pairs = base.parents[1] / "image.jsonl"
    config: dict[str, Any] = {
        "model": {"path": str(base), "attention": "plain_matmul"},
        "data": [{"path": str(folder / "chat.jsonl"), "weight": 0.7, "text_weight": 2.0}],
        "pairs": [{"path": str(pairs), "modality": "image", "weight": 0.3}],
        "packing": {"row_lengths": [256], "tokens_per_micro_batch": 512},
        "optimizer": {"lr": 5e-3, "muon_lr": 1e-2},
        "validation_fraction": 0.2,
        "validation_limit": 6,
        "scenario_limit": 2,
        "trainer": {
            "max_steps": 10, "gradient_accumulation_steps": 2, "logging_steps": 1, "eval_strategy": "steps",
            "eval_steps": 5, "save_steps": 5, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        },
    }  # fmt: skip
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    path = folder / "stage2.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
