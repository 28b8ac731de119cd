"""bfloat16 weights with float32 masters, for models that are trained without autocast."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MasterWeights:
    """Keeps a float32 copy of every parameter that is computed with in `dtype`; optimizers see the copies only.

    On CPUs with avx512_bf16 a bfloat16 matrix product is about twice as fast as a float32 one, while autocast
    spends much of that on casting; an update, however, is often smaller than bfloat16 can add to a weight.

    Args:
        model: its parameters, frozen ones too, become `dtype` in place. Buffers (codebook statistics, windows) stay as
            they are.
        dtype: torch.float32 makes the copies aliases, so that callers need no second code path.
        keep: names of parameters for which it is true stay float32 in the model as well.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, keep: Callable[[str], bool] = lambda name: False) -> None:
        self.working: dict[str, nn.Parameter] = {}
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            self.working[name] = parameter
            if dtype == torch.float32 or keep(name):
                self.masters[name] = parameter
            else:
                trains = parameter.requires_grad
                self.masters[name] = nn.Parameter(parameter.detach().clone().float(), requires_grad=trains)
                parameter.data = parameter.data.to(dtype)

    def collect_gradients(self) -> None:
        """Move the gradients of the model's parameters to the masters, as float32."""
        for name, master in self.masters.items():
            working = self.working[name]
            if working is not master:
                master.grad = None if working.grad is None else working.grad.float()
                working.grad = None

    def clip(self, max_norm: float) -> Tensor:
        """Clip the masters' gradients to a global norm; the norm before clipping, not finite if any gradient is."""
        return nn.utils.clip_grad_norm_(self.masters.values(), max_norm)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model, after the optimizers' step."""
        for name, master in self.masters.items():
            working = self.working[name]
            if working is not master:
                working.copy_(master)
            master.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        return {name: master.detach() for name, master in self.masters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert state.keys() == self.masters.keys(), state.keys() ^ self.masters.keys()
        for name, master in self.masters.items():
            master.copy_(state[name])
        self.publish()

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside, the model holds the masters' float32 values: for validation, samples and export."""
        rounded = {name: parameter.data for name, parameter in self.working.items()}
        for name, master in self.masters.items():
            self.working[name].data = master.data
        try:
            yield
        finally:
            for name, data in rounded.items():
                self.working[name].data = data
