"""Decoding sound while its codes still arrive: piece by piece, with the same result as all at once.

A decoder is a list of stages. A stage of convolutions (or of anything else that looks a limited way to both sides) runs
over a window: the new frames, with as many on each side as they depend on. A recurrent stage keeps its state. Both are
exact, so that pieces join without a seam.

Shape suffixes: K levels, T frames (codes) or samples (waveforms).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from anygpt.media import Audio

if TYPE_CHECKING:
    from anygpt.tokenizers.audio_codec import AudioCodecModel

FIRST_FRAMES = 5
"""Frames of the first piece, for an early start; every further one is twice as long, up to `PIECE_FRAMES`."""
PIECE_FRAMES = 25
"""Longer pieces cost less: a window's sides are computed anew for each of them."""


@dataclass(frozen=True)
class Windowed:
    """A part of a decoder without memory: `run` makes [..., T * hop] of [..., T]."""

    run: Callable[[Tensor], Tensor]
    context: int | None
    """Frames on each side that a frame of the output depends on; None where that is all of them, and then nothing can
    come out before the end."""
    hop: int = 1


@dataclass(frozen=True)
class Recurrent:
    """A part of a decoder that runs forward in time: `run(x, state)` gives the output, as long as x, and the next
    state; the first state is None."""

    run: Callable[[Tensor, Any], tuple[Tensor, Any]]


Stage = Windowed | Recurrent


@dataclass(frozen=True)
class Conv:
    """A convolution that looks so many samples to the farther side. Where it reflects the signal at the ends, samples
    there look to the other side just as far, so that causal ones count alike on both sides."""

    reach: int


@dataclass(frozen=True)
class Upsample:
    """A transposed convolution, of whose output `crop` samples are cut off in front."""

    kernel: int
    stride: int
    crop: int


def context_frames(layers: Sequence[Conv | Upsample]) -> int:
    """Frames on each side that the samples of a frame depend on, through these layers from first to last."""
    first, last = 0, 1
    for layer in layers:
        last *= layer.stride if isinstance(layer, Upsample) else 1
    last -= 1
    for layer in reversed(layers):
        if isinstance(layer, Conv):
            first, last = first - layer.reach, last + layer.reach
        else:
            # Input j adds to the outputs from j * stride - crop on, `kernel` of them.
            first = -((layer.kernel - 1 - layer.crop - first) // layer.stride)
            last = (last + layer.crop) // layer.stride
    return max(-first, last)


@runtime_checkable
class ChunkDecoder(Protocol):
    """Makes sound of the codes of one span as they come."""

    def push(self, codes_KT: Tensor) -> list[Audio]:
        """Take some more frames, at least one; returns what sound is final with them, often none."""

    def finish(self) -> list[Audio]:
        """No more frames will come; returns the rest of the sound."""


@runtime_checkable
class StreamingTokenizer(Protocol):
    """A tokenizer that can decode in pieces."""

    def stream(self, *, generator: torch.Generator | None = None, **settings: Any) -> ChunkDecoder:
        """A decoder of one span; the arguments are those of `decode`."""


class CodecStream:
    """The `ChunkDecoder` of a codec network, for codes of as many levels as its `decode` takes.

    The pieces are, joined, what `decode` makes of all codes: to rounding, at both ends too.
    """

    def __init__(
        self, model: "AudioCodecModel", *, first_frames: int = FIRST_FRAMES, piece_frames: int = PIECE_FRAMES
    ) -> None:
        """The first piece has `first_frames`, later ones up to `piece_frames`, or as many as are there."""
        assert 1 <= first_frames <= piece_frames, (first_frames, piece_frames)
        self._model = model
        stages = model.decode_stages()
        self._streams = [_WindowStream(s) if isinstance(s, Windowed) else _RecurrentStream(s) for s in stages]
        self.lookahead_frames = lookahead_frames(stages)
        self._size, self._largest = first_frames, piece_frames
        self._pending: list[Tensor] = []
        self._wanted = first_frames + (self.lookahead_frames or 0)

    @torch.inference_mode()
    def push(self, codes_KT: Tensor) -> list[Audio]:
        self._pending.append(codes_KT)
        if self.lookahead_frames is None or sum(part.shape[-1] for part in self._pending) < self._wanted:
            return []
        self._size = self._wanted = min(2 * self._size, self._largest)
        return self._run(is_last=False)

    @torch.inference_mode()
    def finish(self) -> list[Audio]:
        return self._run(is_last=True)

    def _run(self, *, is_last: bool) -> list[Audio]:
        x: Tensor | None = None
        if self._pending:
            device = next(self._model.parameters()).device  # type: ignore[attr-defined]
            x = torch.cat(self._pending, dim=-1)[:, None].to(device)
        self._pending = []
        for stream in self._streams:
            x = stream.push(x, is_last=is_last)
        if x is None:
            return []
        wave = x[0].float().clamp(-1, 1).cpu().numpy()
        return [Audio(wave=wave, rate_hz=self._model.sample_rate)]


def lookahead_frames(stages: Sequence[Stage]) -> int | None:
    """How many frames later than a frame itself have to be known for its sound; None where all have to."""
    contexts = [stage.context for stage in stages if isinstance(stage, Windowed)]
    known = [context for context in contexts if context is not None]
    assert all(stage.hop == 1 for stage in stages[:-1] if isinstance(stage, Windowed)), "only the last stage upsamples"
    return sum(known) if len(known) == len(contexts) else None


class _WindowStream:
    def __init__(self, stage: Windowed) -> None:
        self._stage = stage
        self._held: Tensor | None = None
        self._done = 0  # frames of `_held` that have been put out, and are kept as context

    def push(self, x: Tensor | None, *, is_last: bool) -> Tensor | None:
        if x is not None:
            self._held = x if self._held is None else torch.cat([self._held, x], dim=-1)
        if self._held is None:
            return None
        stage, held, done = self._stage, self._held, self._done
        known = held.shape[-1]
        until = known if is_last else known - stage.context if stage.context is not None else 0
        if until <= done:
            return None
        y = stage.run(held)[..., done * stage.hop : until * stage.hop]
        unused = max(0, until - (stage.context or 0))
        self._held, self._done = held[..., unused:], until - unused
        return y


class _RecurrentStream:
    def __init__(self, stage: Recurrent) -> None:
        self._stage = stage
        self._state: Any = None

    def push(self, x: Tensor | None, *, is_last: bool) -> Tensor | None:
        if x is None:
            return None
        y, self._state = self._stage.run(x, self._state)
        return y
