"""The key-value cache of one sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor


class StaticCache:
    """Keys and values of every layer, [2, layers, kv heads, slots, head width], and the ids that they belong to.

    A conversation keeps its cache, so that a turn costs its own tokens only. `capacity` is the most positions that
    it takes; memory is allocated for the first `slots` and doubled when these are used up.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
        slots: int | None = None,
    ) -> None:
        """`slots` None allocates the whole capacity at once."""
        slots = min(slots or capacity, capacity)
        self.keys_values = torch.empty((2, layers, kv_heads, slots, head_width), dtype=dtype, device=device)
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
        if stop > self.keys_values.shape[3]:
            self._grow(min(max(stop, 2 * self.keys_values.shape[3]), self.capacity))
        keys, values = self.keys_values[:, layer]
        keys[:, self.length : stop] = keys_GTC
        values[:, self.length : stop] = values_GTC
        return keys[:, :stop], values[:, :stop]

    def advance(self, ids: Sequence[int]) -> None:
        """Count the ids whose positions every layer has written by now."""
        self.ids.extend(ids)

    def truncate(self, length: int) -> None:
        """Forget everything behind the first `length` positions."""
        assert 0 <= length <= self.length, (length, self.length)
        del self.ids[length:]

    def keep_beginning(self, ids: Sequence[int]) -> None:
        """Forget everything behind the longest common beginning with `ids`."""
        pairs = enumerate(zip(self.ids, ids, strict=False))
        self.truncate(next((at for at, (ours, other) in pairs if ours != other), min(self.length, len(ids))))

    def _grow(self, slots: int) -> None:
        *outer, _, width = self.keys_values.shape
        grown = self.keys_values.new_empty((*outer, slots, width))
        grown[..., : self.length, :] = self.keys_values[..., : self.length, :]
        self.keys_values = grown
