"""Writing network weights as safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from anygpt.media import atomic_write


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
