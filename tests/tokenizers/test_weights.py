"""Weights on disk: types, bytes with scales, damaged files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anygpt.errors import CheckpointError
from anygpt.tokenizers.weights import read_safetensors, save_safetensors


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv1d(4, 6, 3)
    with torch.no_grad():
        first.weight[0] *= 1000  # one loud output, which must not drown the others
        first.weight[1] = 0
    return nn.Sequential(first, nn.Linear(6, 1), nn.LayerNorm(6), nn.BatchNorm1d(6))


def test_int8_keeps_every_row_to_a_step_of_its_own(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(module, path, torch.int8)
    stored, read = load_file(path), read_safetensors(path)
    assert read.keys() == module.state_dict().keys()
    assert stored["0.weight"].dtype == torch.int8 and stored["0.weight.int8_scale"].shape == (6,)
    assert {name: str(tensor.dtype) for name, tensor in stored.items() if name in ("1.weight", "2.bias")} == {
        "1.weight": "torch.float16",  # a single row has nothing to gain
        "2.bias": "torch.float16",
    }
    assert read["3.num_batches_tracked"].dtype == torch.int64
    weight = module.state_dict()["0.weight"]
    step = weight.flatten(1).abs().amax(1) / 127
    assert read["0.weight"].dtype == torch.float32
    assert ((read["0.weight"] - weight).abs().flatten(1).amax(1) <= 0.51 * step).all()


@pytest.mark.parametrize("lost", ["0.weight", "rows"])
def test_scales_without_their_tensor(module: nn.Module, tmp_path: Path, lost: str) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(module, path, torch.int8)
    stored = load_file(path)
    if lost == "rows":
        stored["0.weight"] = stored["0.weight"][:2].clone()
    else:
        del stored[lost]
    save_file(stored, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged \('0.weight.int8_scale' doesn't fit"):
        read_safetensors(path)
