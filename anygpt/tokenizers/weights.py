"""Network weights as safetensors, read and written; matrices also as bytes with a scale for each row."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from anygpt.errors import CheckpointError
from anygpt.media import atomic_write

SCALE = ".int8_scale"
"""Ends the name of a tensor with the scales of another, which is stored as int8."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, those stored as int8 as float32.

    Raises CheckpointError naming the file when it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a tokenizer folder holds config.json and its safetensors weights")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({reason})") from None
    for key in [key for key in state if key.endswith(SCALE)]:
        name, scale = key.removesuffix(SCALE), state.pop(key)
        stored = state.get(name)
        if stored is None or len(stored) != len(scale):
            raise CheckpointError(f"{path}: damaged ('{key}' doesn't fit a tensor '{name}')")
        state[name] = stored.float() * scale.view(-1, *[1] * (stored.ndim - 1))
    return state


def save_safetensors(
    module: nn.Module,
    path: Path,
    dtype: torch.dtype | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of `module` to `path`, to a temporary name first.

    `dtype` is what floating-point tensors become (None: what they are). With torch.int8 it is the matrices alone:
    each row, that is what makes one output, gets a float32 scale; the rest becomes float16. `metadata` goes into the
    file's header.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        tensor = tensor.detach().cpu()
        if dtype == torch.int8 and tensor.is_floating_point():
            if tensor.ndim > 1 and len(tensor) > 1:
                rows = tensor.float().flatten(1)
                scale = rows.abs().amax(1).clamp(min=1e-12) / 127
                state[name + SCALE] = scale
                tensor = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
            else:
                tensor = tensor.half()
        elif dtype and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        state[name] = tensor.contiguous()
    with atomic_write(path) as temporary:
        # `safetensors.torch.save_file` would make a file that only its owner can read.
        temporary.write_bytes(save(state, dict(metadata) if metadata else None))
