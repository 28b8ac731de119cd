"""The key-value caches of one sequence, and of several that are decoded together."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anygpt.generation.weight_memory import large_pages


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
        self._new: tuple[Tensor, ...] = ()
        self._used: list[tuple[Tensor, ...]] = []

    @property
    def length(self) -> int:
        """Slots in use."""
        return len(self.ids)

    def write(self, layer: int, new_2GTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of T new positions of one layer behind the used ones.

        Returns views of all keys and all values, the new included. They count only after `advance`, which follows the
        last layer. Layers come in order.
        """
        if layer == 0:
            self._open(self.length + new_2GTC.shape[2])
        self._new[layer].copy_(new_2GTC)
        return self._used[0][layer], self._used[1][layer]

    def advance(self, ids: Sequence[int]) -> None:
        """Count the ids whose positions every layer has written by now."""
        self.ids.extend(ids)
        self._new, self._used = (), []  # which would keep the memory from before `_grow` alive

    def truncate(self, length: int) -> None:
        """Forget everything behind the first `length` positions."""
        assert 0 <= length <= self.length, (length, self.length)
        del self.ids[length:]

    def keep_beginning(self, ids: Sequence[int]) -> None:
        """Forget everything behind the longest common beginning with `ids`."""
        pairs = enumerate(zip(self.ids, ids, strict=False))
        self.truncate(next((at for at, (ours, other) in pairs if ours != other), min(self.length, len(ids))))

    def _open(self, stop: int) -> None:
        """Make the views of all layers at once, which for one position takes less time than layer by layer."""
        assert stop <= self.capacity, (stop, self.capacity)
        if stop > self.keys_values.shape[3]:
            self._grow(min(max(stop, 2 * self.keys_values.shape[3]), self.capacity))
        used = self.keys_values[..., :stop, :]
        self._new = used[..., self.length :, :].unbind(1)
        self._used = [part.unbind() for part in used]

    def _grow(self, slots: int) -> None:
        *outer, _, width = self.keys_values.shape
        grown = self.keys_values.new_empty((*outer, slots, width))
        grown[..., : self.length, :] = self.keys_values[..., : self.length, :]
        self.keys_values = grown


class BatchCache:
    """The caches of several sequences in one tensor, [2, layers, rows, kv heads, slots, head width].

    `rows` are views of it, each a sequence of its own length. Rows are added, and slots doubled, as they are needed;
    after that a row's view is another one, so that none is kept by the caller. On a CPU it lies in pages of 2 MB where
    the system has them, since a step goes through all that is in use.
    """

    def __init__(self, make: Callable[[], StaticCache]) -> None:
        """`make` gives an empty cache of few slots; all rows are like it."""
        first = make()
        self.capacity = first.capacity
        self._keys_values = _zeros(first.keys_values[:, :, None].shape, first.keys_values)
        self._make = make
        self.rows: list[StaticCache] = [first]
        self._share()

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for so many rows of so many positions."""
        assert slots <= self.capacity, (slots, self.capacity)
        before = self._keys_values.shape
        rows = max(rows, before[2])
        slots = before[4] if slots <= before[4] else min(max(slots, 2 * before[4]), self.capacity)
        if (rows, slots) == (before[2], before[4]):
            return
        grown = _zeros((*before[:2], rows, before[3], slots, before[5]), self._keys_values)
        grown[:, :, : before[2], :, : before[4]] = self._keys_values
        self._keys_values = grown
        self.rows += [self._make() for _ in range(rows - len(self.rows))]
        self._share()

    def take(self, cache: StaticCache) -> None:
        """Make a copy of another sequence the first row."""
        self.reserve(1, cache.length)
        self._keys_values[:, :, 0, :, : cache.length] = cache.keys_values[..., : cache.length, :]
        self.rows[0].ids = list(cache.ids)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of a row the whole of another."""
        assert length <= self.rows[source].length, (length, self.rows[source].length)
        if source != target:
            self._keys_values[:, :, target, :, :length] = self._keys_values[:, :, source, :, :length]
        self.rows[target].ids = self.rows[source].ids[:length]

    def views(self, rows: range, slots: int) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
        """Neighbouring rows, layer by layer: where new keys and values are written, [R, all slots, 2, kv heads, head
        width]; and the keys, and the values, in the first `slots`, [R, kv heads, slots, head width]."""
        some = self._keys_values[:, :, rows.start : rows.stop]
        return some.permute(1, 2, 4, 0, 3, 5).unbind(), [part.unbind() for part in some[..., :slots, :]]

    def _share(self) -> None:
        for number, row in enumerate(self.rows):
            row.keys_values = self._keys_values[:, :, number]


def _zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Not empty, since what is masked is still multiplied by 0, and leftover memory may hold NaN."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return large_pages(math.prod(shape) * like.dtype.itemsize).view(like.dtype).view(shape)
