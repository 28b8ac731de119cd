"""Acoustic levels while the semantic level still arrives: segment by segment.

SoundStorm looks at all frames in both directions, so that its codes for a part differ from those for the whole. What
is made here depends on the segments, which are of fixed lengths; how the semantic codes arrive changes nothing.

Shape suffixes: K levels (semantic and acoustic), P prompt frames, T frames.
"""

import torch
from torch import Tensor

from anygpt.tokenizers.soundstorm.model import SoundStorm

FIRST_FRAMES = 28
"""Frames of the first segment: 0.56 s, for an early start."""
SEGMENT_FRAMES = 75
AHEAD_FRAMES = 0
"""Frames after a segment that have to be known when it is made."""
VOICE_FRAMES = 75
"""Frames of the voice used, from its start: every segment pays for them anew."""
MEMORY_FRAMES = 50
"""Frames made before that a segment is the continuation of, at most; those of the voice come on top."""


class SegmentStream:
    """Makes all levels of one span. The first segment that takes in the end of the span goes up to it.

    A span that is no longer than the first segment gets the codes that `SoundStorm.generate` gives it as a whole, after
    as much of the voice.
    """

    def __init__(
        self,
        soundstorm: SoundStorm,
        voice_KP: Tensor | None,
        *,
        steps: int,
        generator: torch.Generator | None = None,
        first_frames: int = FIRST_FRAMES,
        segment_frames: int = SEGMENT_FRAMES,
        ahead_frames: int = AHEAD_FRAMES,
        memory_frames: int = MEMORY_FRAMES,
    ) -> None:
        self._soundstorm = soundstorm
        self._device = next(soundstorm.parameters()).device
        levels = 1 + soundstorm.config.num_quantizers
        self._voice_KP = (
            torch.empty(levels, 0, dtype=torch.int64, device=self._device)
            if voice_KP is None
            else voice_KP[:, :VOICE_FRAMES].to(self._device)
        )
        self._made_KT = self._voice_KP[:, :0]
        self._waiting_T = self._made_KT[0]
        self._steps, self._generator = steps, generator
        self._size, self._later_size = first_frames, segment_frames
        self._ahead, self._memory = ahead_frames, memory_frames

    def push(self, semantic_T: Tensor) -> Tensor:
        """Take some more semantic codes; returns all levels [K, T] of the frames that are made now, often none."""
        self._waiting_T = torch.cat([self._waiting_T, semantic_T.to(self._device)])
        parts = [self._made_KT[:, :0]]
        # One frame more than is needed: the segment at the end is known to be the last only by `finish`.
        while len(self._waiting_T) > self._size + self._ahead:
            parts.append(self._make(self._size))
            self._size = self._later_size
        return torch.cat(parts, dim=1)

    def finish(self) -> Tensor:
        """No more codes will come; returns all levels of the frames that are left."""
        return self._make(len(self._waiting_T)) if len(self._waiting_T) else self._made_KT[:, :0]

    def _make(self, frames: int) -> Tensor:
        known_T = self._waiting_T[: frames + self._ahead]
        prompt_KP = torch.cat([self._voice_KP, self._made_KT], dim=1)
        codes_BNK = self._soundstorm.generate(
            known_T[None],
            prompt_BP8=prompt_KP.t()[None],
            steps=self._steps,
            greedy=True,
            generator=self._generator,
        )
        new_KT = codes_BNK[0].t()[:, :frames]
        self._made_KT = torch.cat([self._made_KT, new_KT], dim=1)[:, -self._memory :]
        self._waiting_T = self._waiting_T[frames:]
        return new_KT
