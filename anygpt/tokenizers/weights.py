"""Network weights as safetensors, read and written."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from anygpt.errors import CheckpointError
from anygpt.media import atomic_write


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises CheckpointError naming the file when it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a tokenizer folder holds config.json and its safetensors weights")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({reason})") from None


def save_safetensors(
    module: nn.Module,
    path: Path,
    dtype: torch.dtype | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of `module` to `path`, to a temporary name first.

    `dtype` is what floating-point tensors become (None: what they are); `metadata` goes into the file's header.
    """
    state = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in module.state_dict().items()
    }
    with atomic_write(path) as temporary:
        # `safetensors.torch.save_file` would make a file that only its owner can read.
        temporary.write_bytes(save(state, dict(metadata) if metadata else None))
