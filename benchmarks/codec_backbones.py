"""Reconstruction of held-out speech by processor time spent on training, for the spectral backbone and for SEANet.

    OMP_NUM_THREADS=1 python benchmarks/codec_backbones.py [--minutes 6] [--plot docs/codec_backbones.png]

Both are trained by the recipe of the speech codec, in turns in one process: the one that has used less processor time
takes the next step. Steps of the same number have the same batch, and the losses are the same: spectra, commitment and
the phonemes of level 1, without the disturbed sounds that only the spectral network can use. The spectral network has
the sizes, precision and optimizers of config/tokenizers/speechtokenizer-mini.yaml, SEANet about as many weights. Rates
fall over the last part of the budget for both. Rendering and validation are not counted.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from anygpt.config import from_dict, read_mapping
from anygpt.media import atomic_write
from anygpt.paths import resource
from anygpt.tokenizers.audio_codec import as_module
from anygpt.training.recipes import audio
from anygpt.training.recipes.speech_codec import SpeechCodecRecipe
from anygpt.training.tokenizer_loop import LoopConfig, TokenizerLoop
from anygpt.world.speech import SpeechWorld

SHIPPED = read_mapping(resource("config", "tokenizers/speechtokenizer-mini.yaml"))
CODECS: dict[str, dict[str, Any]] = {
    "spectral": SHIPPED["recipe"]["codec"],
    "seanet": {
        "n_filters": 16,
        "strides": [8, 5, 4, 2],
        "dimension": 64,
        "semantic_dimension": 64,
        "bidirectional": True,
        "dilation_base": 2,
        "residual_kernel_size": 3,
        "n_residual_layers": 1,
        "lstm_layers": 1,
        "activation": "ELU",
        "codebook_size": 256,
        "n_q": 8,
        "sample_rate": 16_000,
    },
}
RECIPE: dict[str, Any] = {
    "batch_size": 8,
    "crop_frames": 50,
    "pool_size": 64,
    "fresh_per_step": 1,
    "quantize_from": 50,
    "disturb": False,
    "semantic_until": None,
    "semantic_restart_below": 0.1,
}
SENTENCES = 16


class Contestant:
    """A backbone in training, with the processor seconds that it has used and its scores by those."""

    def __init__(self, name: str, loop: LoopConfig, budget_s: float, folder: Path):
        torch.manual_seed(0)
        self.name, self.budget_s = name, budget_s
        self.recipe = SpeechCodecRecipe({**RECIPE, "backbone": name, "codec": CODECS[name]}, folder)
        self.loop = TokenizerLoop(self.recipe, loop, folder)
        self.cpu_s = 0.0
        self.curve: list[dict[str, float]] = []

    @property
    def weights(self) -> int:
        return sum(parameter.numel() for parameter in as_module(self.recipe.model.codec).parameters())

    def step(self) -> None:
        """One update. The rate's schedule goes by processor time: how many steps fit is known at the end only."""
        self.recipe.batch(self.loop.step)  # renders; the same call within the step then only cuts crops
        if self.cpu_s:
            fitting = self.loop.step * self.budget_s / self.cpu_s
            self.loop.config = dataclasses.replace(self.loop.config, steps=max(self.loop.step + 1, round(fitting)))
        began = time.process_time()
        self.loop.train_step()
        self.cpu_s += time.process_time() - began

    def judge(self, waves: list[torch.Tensor]) -> None:
        self.recipe.model.eval()
        with self.loop.weights.in_float32(), torch.no_grad():
            scores = audio.reconstruction_quality(self.recipe.model.codec, waves, (1, 8))
        self.curve.append({"cpu_s": round(self.cpu_s, 1), "step": self.loop.step, **scores})
        print(json.dumps({"backbone": self.name, **self.curve[-1]}), flush=True)

    def at(self, seconds: float, measure: str) -> float:
        return float(np.interp(seconds, [row["cpu_s"] for row in self.curve], [row[measure] for row in self.curve]))

    def seconds_to(self, mel: float) -> float:
        """Processor seconds at the first validation whose mel distance is as low as that; nan if none is."""
        return next((row["cpu_s"] for row in self.curve if row["mel_8"] <= mel), float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6, help="processor minutes for each")
    parser.add_argument("--validate-every", type=float, default=30, help="processor seconds between validations")
    parser.add_argument("--seanet-lr", type=float, default=1e-3)
    parser.add_argument("--only", choices=list(CODECS), help="train one of them alone")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shipped = from_dict(LoopConfig, SHIPPED["loop"], "loop")
    loops = {
        "spectral": shipped,
        "seanet": dataclasses.replace(shipped, precision="float32", lr=options.seanet_lr),
    }
    world = SpeechWorld("heldout_sentences", 0)
    waves = [torch.from_numpy(world.sample(i).wave) for i in range(SENTENCES)]
    with tempfile.TemporaryDirectory() as folder:
        names = [options.only] if options.only else list(CODECS)
        contestants = [Contestant(name, loops[name], 60 * options.minutes, Path(folder)) for name in names]
        for contestant in contestants:
            print(json.dumps({"backbone": contestant.name, "weights": contestant.weights}), flush=True)
        train(contestants, waves, options.validate_every)
    if not options.only:
        print(table(*contestants, options.minutes))
        if options.plot:
            plot(contestants, options.plot)


def train(contestants: list[Contestant], waves: list[torch.Tensor], validate_every_s: float) -> None:
    while running := [c for c in contestants if c.cpu_s < c.budget_s]:
        contestant = min(running, key=lambda c: c.cpu_s)
        contestant.step()
        due = validate_every_s * (len(contestant.curve) + 1)
        if contestant.cpu_s >= min(due, contestant.budget_s):
            contestant.judge(waves)


def table(spectral: Contestant, seanet: Contestant, minutes: float) -> str:
    """Both by processor minutes, and when the spectral network was as good as SEANet is at the end."""
    lines = [
        "| processor minutes | steps, spectral / SEANet | mel distance, both | ratio | STOI, both |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for minute in [m for m in (1, 2, 4) if m < minutes] + [minutes]:
        seconds = 60 * minute
        step, mel, stoi = ([c.at(seconds, key) for c in (spectral, seanet)] for key in ("step", "mel_8", "stoi_8"))
        cells = [f"{minute:g}", f"{step[0]:.0f} / {step[1]:.0f}", f"{mel[0]:.3f} / {mel[1]:.3f}"]
        cells += [f"{mel[1] / mel[0]:.2f}", f"{stoi[0]:.3f} / {stoi[1]:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    reached = spectral.seconds_to(seanet.curve[-1]["mel_8"])
    used = seanet.curve[-1]["cpu_s"]
    lines += [
        "",
        f"SEANet's last mel distance, after {used:.0f} s, is reached by the first spectral validation at or before "
        f"{reached:.0f} s: at least {used / reached:.1f}x",
    ]
    return "\n".join(lines)


def plot(contestants: list[Contestant], path: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("mel_8", "stoi_8"),
        ("mel distance (lower is better)", "STOI (higher is better)"),
        strict=True,
    ):
        for contestant in contestants:
            minutes = [row["cpu_s"] / 60 for row in contestant.curve]
            axes.plot(minutes, [row[key] for row in contestant.curve], marker=".", label=contestant.name)
        axes.set(xlabel="processor minutes of training", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
