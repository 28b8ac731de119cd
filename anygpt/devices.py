"""Naming the device that a model runs on."""

import torch

from anygpt.errors import AnyGPTError


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one, else the CPU.

    Raises AnyGPTError for a device that isn't here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):  # each backend has its own for not being there
        raise AnyGPTError(f"device '{name}' is not available here; expected auto, cpu or cuda") from None
    return device
