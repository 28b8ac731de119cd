"""Reading and writing the weights of the image tokenizer."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anygpt.errors import CheckpointError
from anygpt.tokenizers.seed.config import SeedConfig
from anygpt.tokenizers.seed.model import SeedModel
from anygpt.tokenizers.weights import read_safetensors


def load_safetensors(module: nn.Module, path: Path) -> None:
    """Fill `module`, which may be on the meta device, with the weights of `path` as float32; keys must match exactly.

    Raises CheckpointError naming the file and the key.
    """
    state = read_safetensors(path)
    extra = state.keys() - module.state_dict().keys()
    if extra:
        raise CheckpointError(f"{path}: {_listed(extra)} not part of the model that config.json describes")
    _fill(module, state, path)


def load_released(path: Path, config: SeedConfig) -> SeedModel:
    """The model from a released `seed_quantizer.pt`, as float32.

    What nothing reads is dropped: the second decoder (`pos_embed`, `blocks.*`), `position_ids` and whatever else was
    saved along, since the reference loads this file non-strictly too. Raises CheckpointError when a
    weight is missing or has another shape, or the file is no such checkpoint.
    """
    with torch.device("meta"):
        model = SeedModel(config.without_dead_weight())
    _fill(model, _read_pickle(path), path)
    return model


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of SEED's seed_quantizer.pt")
    try:
        # Memory-mapped, so that 2 to 5 GB are not read twice; files in PyTorch's older format can't be.
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = _one_line(error)
        raise CheckpointError(f"{path}: damaged, or holds more than weights ({reason}); download it again") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a table of weights; expected SEED's seed_quantizer.pt")
    return state


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    if missing:
        raise CheckpointError(
            f"{path}: {_listed(missing)} missing; the file doesn't fit the configured image tokenizer"
        )
    values = {}
    for name, wanted in expected.items():
        value = state[name]
        if value.shape != wanted.shape:
            got, want = list(value.shape), list(wanted.shape)
            raise CheckpointError(f"{path}: '{name}' has shape {got}, the configured image tokenizer needs {want}")
        # Copied even where the type is right, so that the model doesn't hang on a mapped file that may change.
        values[name] = value.to(wanted.dtype, copy=True)
    module.load_state_dict(values, strict=True, assign=True)


def _listed(names: Any) -> str:
    names = sorted(names)
    return f"weight '{names[0]}' is" if len(names) == 1 else f"{len(names)} weights ('{names[0]}', ...) are"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or error.__class__.__name__
