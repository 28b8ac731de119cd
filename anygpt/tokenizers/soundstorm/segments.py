"""Acoustic levels while the semantic level still arrives: segment by segment.

SoundStorm looks at all frames in both directions, so that its codes for a part differ from those for the whole. What
is made here depends on the segments, which are of fixed lengths; how the semantic codes arrive changes nothing.

Shape suffixes: K levels (semantic and acoustic), P prompt frames, T frames.
"""

import torch
from torch import Tensor

from anygpt.tokenizers.soundstorm.model import SoundStorm

FIRST_FRAMES = 25
"""Frames of the first segment, for an early start: what the shipped codec needs before any sound of it is final."""
FIRST_VOICE_FRAMES = 30
"""Frames of the voice that the first segment has for a prompt; they cost as much as its own."""
SEGMENT_FRAMES = 75
VOICE_FRAMES = 75
"""Frames of the voice that every later segment has for a prompt, from its start."""
PAST_FRAMES = 25
"""Frames before a segment that are made anew with it and left out, so that it doesn't begin amid nothing. To go on
from the codes made for them instead piles up mistakes from segment to segment: the log mel spectrum is then 15 %
farther from the recording than that of a span made as a whole, and this way 1 % (held-out voices)."""
AHEAD_FRAMES = 0
"""Frames after a segment that have to be known when it is made."""
STEPS_FRAMES = 150
"""A segment takes the share of `steps` that it is of so many frames: fewer frames need fewer iterations."""


class SegmentStream:
    """Makes all levels of one span. The first segment that takes in the end of the span goes up to it.

    A span that is no longer than the first segment gets the codes that `SoundStorm.generate` gives it as a whole, after
    `VOICE_FRAMES` of the voice.
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
        past_frames: int = PAST_FRAMES,
        ahead_frames: int = AHEAD_FRAMES,
    ) -> None:
        self._soundstorm = soundstorm
        self._device = next(soundstorm.parameters()).device
        levels = 1 + soundstorm.config.num_quantizers
        self._voice_KP = (
            torch.empty(levels, 0, dtype=torch.int64, device=self._device)
            if voice_KP is None
            else voice_KP[:, :VOICE_FRAMES].to(self._device)
        )
        self._past_T = self._waiting_T = self._voice_KP[0, :0]
        self._steps, self._generator = steps, generator
        self._size, self._later_size = first_frames, segment_frames
        self._past, self._ahead = past_frames, ahead_frames
        self._is_first = True

    def push(self, semantic_T: Tensor) -> Tensor:
        """Take some more semantic codes; returns all levels [K, T] of the frames that are made now, often none."""
        self._waiting_T = torch.cat([self._waiting_T, semantic_T.to(self._device)])
        parts = [self._voice_KP[:, :0]]
        # One frame more than is needed: the segment at the end is known to be the last only by `finish`.
        while len(self._waiting_T) > self._size + self._ahead:
            voice_KP = self._voice_KP[:, :FIRST_VOICE_FRAMES] if self._is_first else self._voice_KP
            parts.append(self._make(self._size, voice_KP, self._share_of_steps(self._size)))
            self._size, self._is_first = self._later_size, False
        return torch.cat(parts, dim=1)

    def finish(self) -> Tensor:
        """No more codes will come; returns all levels of the frames that are left."""
        frames = len(self._waiting_T)
        if not frames:
            return self._voice_KP[:, :0]
        return self._make(frames, self._voice_KP, self._steps if self._is_first else self._share_of_steps(frames))

    def _share_of_steps(self, frames: int) -> int:
        return max(1, min(self._steps, round(self._steps * frames / STEPS_FRAMES)))

    def _make(self, frames: int, voice_KP: Tensor, steps: int) -> Tensor:
        past = len(self._past_T)
        semantic_T = torch.cat([self._past_T, self._waiting_T[: frames + self._ahead]])
        codes_BNK = self._soundstorm.generate(
            semantic_T[None], prompt_BP8=voice_KP.t()[None], steps=steps, greedy=True, generator=self._generator
        )
        self._past_T = semantic_T[max(0, past + frames - self._past) : past + frames]
        self._waiting_T = self._waiting_T[frames:]
        return codes_BNK[0].t()[:, past : past + frames]
