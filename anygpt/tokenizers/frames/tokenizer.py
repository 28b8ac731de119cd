"""Videos as codes: frames at a fixed rate by the image tokenizer, the sound by that of sound effects.

Nothing is learned here. Shape suffixes: K levels that the language model sees, T frames of sound, N codes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anygpt.code_strings import join_codes, sound_frames, split_codes
from anygpt.errors import ConfigError
from anygpt.media import Audio
from anygpt.modality import get_modality
from anygpt.paths import resource
from anygpt.tokenizers.audio_codec import read_folder_config
from anygpt.tokenizers.base import ModalityTokenizer, load_tokenizer
from anygpt.video import Video


@dataclass(frozen=True, kw_only=True)
class FramesFolder:
    """config.json of a video tokenizer folder, less its `class` field; the parts are shipped names or paths."""

    frames: str
    """Tokenizer of the frames."""
    sound: str | None = None
    """Tokenizer of the sound; None for videos without."""
    modality: str = "video"
    frame_rate_hz: float = 2.0


class FramesTokenizer(ModalityTokenizer):
    """Videos <-> codes [1, N]: those of the frames, one after the other, then those of the sound (`join_codes`)."""

    num_codebooks = 1
    frame_rate_hz: float

    def __init__(
        self,
        frames: ModalityTokenizer,
        sound: ModalityTokenizer | None = None,
        *,
        modality: str = "video",
        frame_rate_hz: float = 2.0,
    ) -> None:
        """Raises ConfigError for tokenizers that are not of the modality's parts, or a rate out of range."""
        row = get_modality(modality)
        self.modality = modality
        self.frame_rate_hz = frame_rate_hz
        self.parts = (frames, sound) if sound is not None else (frames,)
        names = [part.name for part in row.parts]
        given = [part.modality for part in self.parts]
        if not names or given != names[: len(given)]:
            raise ConfigError(f"{modality} is made of {' and '.join(names) or 'no parts'}, got {' and '.join(given)}")
        if not 1 <= frame_rate_hz <= 4:
            raise ConfigError(f"'frame_rate_hz' is {frame_rate_hz:g}, expected 1 to 4")
        self.codebook_size = sum(part.spec.num_tokens for part in self.parts)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: str | torch.device = "cpu") -> "FramesTokenizer":
        """Load the tokenizers that `config.json` (a `FramesFolder`) names.

        Raises CheckpointError or ConfigError naming the missing file or the key.
        """
        config = read_folder_config(FramesFolder, Path(folder))
        names = [name for name in (config.frames, config.sound) if name is not None]
        parts = [load_tokenizer(_found(name), device=device) for name in names]
        return cls(*parts, modality=config.modality, frame_rate_hz=config.frame_rate_hz)

    def encode(self, media: Sequence[Video]) -> list[Tensor]:
        """Codes int64 [1, N] of each video at the tokenizer's rate; its sound is cut or filled up to the frames'."""
        spec = self.spec
        videos = [video.at_rate(self.frame_rate_hz) for video in media]
        codes = iter(self.parts[0].encode([frame for video in videos for frame in video.frames]))
        frames = [[next(codes) for _ in video.frames] for video in videos]
        sounds: list[Tensor | None] = [None] * len(videos)
        for sound in self.parts[1:]:
            waves = {n: _as_long(video) for n, video in enumerate(videos) if video.sound is not None}
            for number, sound_KT in zip(waves, sound.encode(list(waves.values())), strict=True):
                sounds[number] = sound_KT[:, : sound_frames(spec, len(frames[number]))]
        return [join_codes(spec, *each) for each in zip(frames, sounds, strict=True)]

    def decode(self, codes_KT: Tensor, *, generator: torch.Generator | None = None, **settings: Any) -> Video:
        """Rebuild a video from codes [1, N]; there are no settings. Raises CodeError for codes that don't fit."""
        if settings:
            raise TypeError(f"unknown settings {', '.join(settings)}; {self.modality} takes none")
        frames, sound_KT = split_codes(self.spec, codes_KT)
        pictures = tuple(self.parts[0].decode(frame_KT, generator=generator) for frame_KT in frames)
        sound = self.parts[1].decode(sound_KT, generator=generator) if sound_KT is not None else None
        return Video(pictures, self.frame_rate_hz, sound)

    def code_defining_tensors(self) -> Iterable[tuple[str, Tensor]]:
        yield "frame_rate_hz", torch.tensor([self.frame_rate_hz])
        for part in self.parts:
            for name, tensor in part.code_defining_tensors():
                yield f"{part.modality}.{name}", tensor


def _found(name: str) -> Path:
    path = Path(name).expanduser()
    return path if path.is_dir() else resource("tokenizers", name)


def _as_long(video: Video) -> Audio:
    """The sound of a video, as long as its frames."""
    assert video.sound is not None
    wave, rate_hz = video.sound.wave, video.sound.rate_hz
    samples = round(video.duration_s * rate_hz)
    missing = max(0, samples - wave.shape[1])
    return Audio(np.ascontiguousarray(np.pad(wave[:, :samples], ((0, 0), (0, missing)))), rate_hz)
