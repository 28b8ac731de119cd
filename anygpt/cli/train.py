"""`anygpt train`: train the language model."""

import json
import logging
from pathlib import Path


def train(stage: str, *, config: Path, out: Path, trainer: list[str] | None = None) -> None:
    """Train the language model: STAGE is stage1 (pairs of text and media) or stage2 (conversations).

    The same command goes on where a stopped run ended. Run it under torchrun for several processes
    (scripts/stage1_pretrain.sh and scripts/stage2_sft.sh do). The output folder receives checkpoints, curves.png,
    TensorBoard logs, log.json and model/, the trained model (or adapter).

    Args:
        stage: Which stage to run.
        config: The YAML file of the run, such as config/stage1-mini.yaml.
        out: Output folder.
        trainer: KEY=VALUE to replace in the `trainer` section, several times for several; VALUE is read as JSON.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from anygpt.errors import AnyGPTError, nearest

    stages = ("stage1", "stage2")
    if stage not in stages:
        raise AnyGPTError(f"unknown stage '{stage}'{nearest(stage, stages)}; known: {', '.join(stages)}")
    overrides = {}
    for item in trainer or []:
        key, separator, value = item.partition("=")
        if not separator:
            raise AnyGPTError(f"--trainer {item}: expected KEY=VALUE")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    if stage == "stage1":
        from anygpt.training.stage1 import train_stage1

        print(train_stage1(config, out, overrides=overrides))
    else:
        from anygpt.training.stage2 import train_stage2

        print(train_stage2(config, out, overrides=overrides))
