"""The key-value cache of one sequence, allocated once."""

from collections.abc import Sequence

import torch
from torch import Tensor


class StaticCache:
    """Keys and values of every layer, [layers, kv heads, capacity, head width], and the ids that they belong to.

    A conversation keeps its cache, so that a turn costs its own tokens only.
    """

    def __init__(
        self, *, layers: int, kv_heads: int, capacity: int, head_width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, kv_heads, capacity, head_width)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.ids: list[int] = []
        """The sequence so far."""

    @property
    def length(self) -> int:
        """Slots in use."""
        return len(self.ids)

    def write(self, layer: int, keys_GTC: Tensor, values_GTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new positions of one layer behind the used ones; returns views of all positions, the new included.

        They count only after `advance`, which follows the last layer.
        """
        stop = self.length + keys_GTC.shape[1]
        assert stop <= self.capacity, (stop, self.capacity)
        self.keys[layer, :, self.length : stop] = keys_GTC
        self.values[layer, :, self.length : stop] = values_GTC
        return self.keys[layer, :, :stop], self.values[layer, :, :stop]

    def advance(self, ids: Sequence[int]) -> None:
        """Count the ids whose positions every layer has written by now."""
        self.ids.extend(ids)

    def truncate(self, length: int) -> None:
        """Forget everything behind the first `length` positions."""
        assert 0 <= length <= self.length, (length, self.length)
        del self.ids[length:]
