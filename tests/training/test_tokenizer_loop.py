"""The tokenizers' training loop: exact resume, float32 masters, schedule, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from anygpt.errors import ConfigError
from anygpt.training import tokenizer_loop
from anygpt.training.precision import MasterWeights
from anygpt.training.tokenizer_loop import LoopConfig, TokenizerLoop, TokenizerRecipe


class _Recipe(TokenizerRecipe):
    """Fits a random matrix; draws from the global generator as well, to see that its state is resumed."""

    def __init__(self, config: dict[str, Any], workdir: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 16))
        self.target = torch.randn(16, 16)

    def keeps_float32(self, name: str) -> bool:
        return name.startswith("2.")

    def batch(self, step: int) -> dict[str, Tensor]:
        return {"x": torch.randn(8, 16, generator=torch.Generator().manual_seed(step))}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        x = batch["x"] + 0.01 * torch.randn(8, 16)
        dtype = self.model[0].weight.dtype
        hidden = self.model[1](self.model[0](x.to(dtype))).float()
        y = self.model[3](self.model[2](hidden).to(dtype)).float()
        return (y - x @ self.target).square().mean(), {"one": 1.0}

    def validate(self) -> dict[str, float]:
        assert next(self.model.parameters()).dtype == torch.float32
        return {"zero": float(torch.rand(()) * 0)}

    def sample_sheet(self, folder: Path) -> None:
        (folder / "sample.txt").write_text("sample")

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.json").write_text(json.dumps(self.model[0].weight.tolist()))


def _loop(out: Path, precision: str, steps: int = 12) -> TokenizerLoop:
    out.mkdir(exist_ok=True)
    config = LoopConfig(steps=steps, warmup_steps=2, precision=precision, validate_every=5, sample_every=5, log_every=1)
    return TokenizerLoop(_Recipe({}, out), config, out)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, precision: str) -> None:
    _loop(tmp_path / "whole", precision).run()
    first = _loop(tmp_path / "halves", precision)
    while first.step < 6:
        first.train_step()
    first.evaluate(samples=False)  # what a run does between checkpoints must not disturb what follows
    first.save()
    second = _loop(tmp_path / "halves", precision)
    assert second.resume() and second.step == 6
    second.run()
    whole, halves = (tmp_path / name / "export/weights.json" for name in ("whole", "halves"))
    assert whole.read_text() == halves.read_text()


def test_it_learns_validates_samples_and_logs(tmp_path: Path) -> None:
    _loop(tmp_path, "bfloat16", steps=150).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert any("val_zero" in row for row in rows)
    assert (tmp_path / "samples/000005/sample.txt").is_file()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    loop = _loop(tmp_path, "float32")
    with torch.no_grad():
        loop.recipe.model[3].weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="step 0"):
        loop.run()


def test_updates_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    model = nn.Linear(4, 4, bias=False)
    nn.init.ones_(model.weight)
    weights = MasterWeights(model, torch.bfloat16)
    for _ in range(64):
        with torch.no_grad():
            weights.masters["weight"].add_(1e-3)
        weights.publish()
    assert model.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.weight.float(), torch.full((4, 4), 1.064), atol=4e-3, rtol=0)
    with weights.in_float32():
        torch.testing.assert_close(model.weight, torch.full((4, 4), 1.064))
    assert model.weight.dtype == torch.bfloat16


def test_the_rate_warms_up_stays_and_falls() -> None:
    config = LoopConfig(steps=100, warmup_steps=10, decay_fraction=0.5, final_lr_ratio=0.1)
    assert config.lr_scale(0) == pytest.approx(0.1)
    assert config.lr_scale(10) == config.lr_scale(50) == 1.0
    assert config.lr_scale(75) == pytest.approx(0.5)
    assert config.lr_scale(99) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"loop": {"steps": 1}}, "'loop' and 'recipe'"),
        ({"loop": {"steps": 1, "stepz": 2}, "recipe": {}}, "did you mean 'steps'"),
        ({"loop": {"steps": 0}, "recipe": {}}, "at least 1"),
        ({"loop": {"steps": 1, "precision": "int4"}, "recipe": {}}, "float32 or bfloat16"),
    ],
)
def test_bad_configurations_are_one_line(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        tokenizer_loop.train_tokenizer("seed", config=path, out=tmp_path / "out")


def test_an_unknown_tokenizer_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'encodec'"):
        tokenizer_loop.check_name("encodek")
