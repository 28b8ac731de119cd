"""Speech as codes: the semantic level for the language model, SoundStorm and the codec for the way back.

Shape suffixes: B batch, N and P frames, K levels, T frames.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from anygpt.errors import CheckpointError, MediaError
from anygpt.media import Audio, load_audio
from anygpt.modality import get_modality
from anygpt.tokenizers.audio_codec import (
    AudioCodecModel,
    as_module,
    check_codes,
    code_defining_tensors,
    decode_wave,
    encode_waves,
    load_codec,
    read_folder_config,
    to_wave,
)
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.tokenizers.speechtokenizer.checkpoint import load_released
from anygpt.tokenizers.speechtokenizer.config import SpeechTokenizerFolder
from anygpt.tokenizers.speechtokenizer.seanet import fold_weight_norm
from anygpt.tokenizers.streams import ChunkDecoder, CodecStream

if TYPE_CHECKING:
    from anygpt.tokenizers.soundstorm import SoundStorm
    from anygpt.tokenizers.soundstorm.segments import SegmentStream

VOICE_MAX_S = 3.0
"""How much of a voice prompt is used, from its start."""
VOICE_MIN_S = 0.5
VC_STEPS = 3
"""SoundStorm iterations on its first level in the released command lines."""


class SpeechTokenizer(ModalityTokenizer):
    """16 kHz speech <-> codes [1, T] at 50 Hz; levels 2 and up come from SoundStorm and a voice prompt.

    Without `soundstorm` (a folder or a released file) `decode` rebuilds level 1 alone, which is intelligible but
    has no voice. `default_voice` is used when `decode` is given none.
    """

    num_codebooks = 1

    def __init__(
        self,
        model: AudioCodecModel,
        *,
        modality: str = "speech",
        soundstorm: Path | None = None,
        default_voice: Audio | None = None,
    ):
        self.model = model
        self.modality = get_modality(modality).name
        self.codebook_size = model.codebook_size
        self.default_voice = default_voice
        self._soundstorm_path: Path | None = None
        if soundstorm is not None:
            self.use_soundstorm(soundstorm)
        fold_weight_norm(as_module(model))

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: str | torch.device = "cpu") -> "SpeechTokenizer":
        """Load a tokenizer folder; `config.json` is a `SpeechTokenizerFolder` with the field `class`.

        Raises CheckpointError or ConfigError naming the missing file or the key.
        """
        folder = Path(folder)
        config = read_folder_config(SpeechTokenizerFolder, folder)
        return cls(
            load_codec(folder, config.backbone, config.model, device),
            modality=config.modality,
            soundstorm=folder / config.soundstorm if config.soundstorm else None,
            default_voice=load_audio(folder / config.default_voice) if config.default_voice else None,
        )

    @classmethod
    def from_released(
        cls,
        checkpoint: Path | str,
        config: Path | str | None = None,
        soundstorm_path: Path | str | None = None,
        *,
        default_voice: Audio | None = None,
        device: str | torch.device = "cpu",
    ) -> "SpeechTokenizer":
        """Load published weights: SpeechTokenizer's state dict, its config.json (default: beside it), SoundStorm."""
        model = load_released(checkpoint, config).to(device)
        soundstorm = Path(soundstorm_path) if soundstorm_path else None
        return cls(model, soundstorm=soundstorm, default_voice=default_voice)

    def use_soundstorm(self, path: Path) -> None:
        """Let this folder or released file make levels 2 and up. Raises CheckpointError where there is none."""
        if not path.exists():
            raise CheckpointError(f"{path}: no such SoundStorm folder or file")
        self._soundstorm_path = path
        vars(self).pop("soundstorm", None)

    @property
    def sample_rate(self) -> int:
        return self.model.sample_rate

    @cached_property
    def soundstorm(self) -> "SoundStorm | None":
        """The acoustic model, loaded on first use: understanding speech doesn't need it."""
        if self._soundstorm_path is None:
            return None
        from anygpt.tokenizers.soundstorm import codec_fingerprint, load_soundstorm

        soundstorm = load_soundstorm(self._soundstorm_path, device=self._device)
        wanted = (self.model.n_q - 1, self.codebook_size)
        got = (soundstorm.config.num_quantizers, soundstorm.config.codebook_size)
        if got != wanted:
            sizes = "{} acoustic levels of {} codes"
            raise CheckpointError(
                f"{self._soundstorm_path}: made for {sizes.format(*got)}, the codec has {sizes.format(*wanted)}"
            )
        trained_with = soundstorm.config.codec_fingerprint
        if trained_with is not None and trained_with != codec_fingerprint(self.model):
            raise CheckpointError(
                f"{self._soundstorm_path}: trained on another codec's codes; use the SoundStorm that goes with this one"
            )
        return soundstorm

    def encode(self, media: Sequence[Audio]) -> list[Tensor]:
        """Level-1 codes int64 [1, T] of each recording's first channel, T = ceil(seconds * 50)."""
        return self._encode(media, "first", n_q=1)

    def encode_all_levels(self, audio: Audio, *, how: Literal["first", "mean"] = "first") -> Tensor:
        """Codes int64 [n_q, T] of one recording's first channel, or of the mean of its channels."""
        return self._encode([audio], how)[0]

    def encode_voice(self, voice: Audio) -> Tensor:
        """Codes int64 [n_q, P] of a voice prompt: mean of the channels, the first 3 seconds.

        Raises MediaError when the recording is shorter than half a second.
        """
        if voice.duration_s < VOICE_MIN_S:
            raise MediaError(
                f"voice prompt of {voice.duration_s:.2f} s: need at least {VOICE_MIN_S:g} s, better {VOICE_MAX_S:g} s"
            )
        # Cut before resampling, with a margin so that the filter's end effect falls outside the part that is kept.
        head = Audio(voice.wave[:, : int((VOICE_MAX_S + 0.1) * voice.rate_hz)], voice.rate_hz)
        wave = to_wave(head, self.sample_rate, how="mean")[: int(VOICE_MAX_S * self.sample_rate)]
        return encode_waves(self.model, [wave])[0]

    def decode(
        self,
        codes_KT: Tensor,
        *,
        voice: Audio | None = None,
        vc_steps: int = VC_STEPS,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> Audio:
        """Rebuild speech, T / 50 seconds, from codes [1, T] or from the first K levels [K, T].

        Given level 1 alone, SoundStorm adds the others in `vc_steps` iterations, in the voice of `voice` (or the
        default voice, or any). Raises CodeError for a wrong shape or range; MediaError for a voice that is too short.
        """
        if settings:
            raise TypeError(f"unknown settings {', '.join(settings)}; speech takes voice and vc_steps")
        levels = range(1, self.model.n_q + 1)
        check_codes(codes_KT, levels=levels, codebook_size=self.codebook_size, what=self.modality)
        if len(codes_KT) == 1 and self.soundstorm is not None:
            codes_KT = self._add_acoustic_levels(codes_KT, voice, vc_steps, generator)
        return decode_wave(self.model, codes_KT)

    def stream(
        self,
        *,
        voice: Audio | None = None,
        vc_steps: int = VC_STEPS,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> ChunkDecoder:
        """Decodes one span of level 1 while it arrives; arguments as in `decode`, codes [1, T].

        SoundStorm works on segments (`soundstorm.segments`), each with less of the voice and of what is said before and
        after than `decode` gives it, so that the sound differs in detail from the first segment on. Only a span that
        ends within the first segment is what `decode` makes of it, where the voice is no longer than a segment's.
        Raises MediaError for a voice that is too short.
        """
        if settings:
            raise TypeError(f"unknown settings {', '.join(settings)}; speech takes voice and vc_steps")
        if self.soundstorm is None:
            return CodecStream(self.model)
        from anygpt.tokenizers.soundstorm.segments import SegmentStream

        levels = SegmentStream(self.soundstorm, self._voice_codes(voice), steps=vc_steps, generator=generator)
        return _SpeechStream(levels, CodecStream(self.model))

    def code_defining_tensors(self) -> Iterable[tuple[str, Tensor]]:
        return code_defining_tensors(self.model, self.num_codebooks)

    @property
    def _device(self) -> torch.device:
        return next(as_module(self.model).parameters()).device

    @cached_property
    def _default_voice_codes(self) -> Tensor | None:
        return None if self.default_voice is None else self.encode_voice(self.default_voice)

    def _voice_codes(self, voice: Audio | None) -> Tensor | None:
        return self._default_voice_codes if voice is None else self.encode_voice(voice)

    def _encode(self, media: Sequence[Audio], how: Literal["first", "mean"], *, n_q: int | None = None) -> list[Tensor]:
        return encode_waves(self.model, [to_wave(audio, self.sample_rate, how=how) for audio in media], n_q=n_q)

    def _add_acoustic_levels(
        self, codes_1T: Tensor, voice: Audio | None, steps: int, generator: torch.Generator | None
    ) -> Tensor:
        """All levels [n_q, T], the first as given."""
        assert self.soundstorm is not None, "decode asked for levels that nothing can make"
        voice_KP = self._voice_codes(voice)
        prompt_BPK = None if voice_KP is None else voice_KP.t()[None].to(self._device)
        codes_BNK = self.soundstorm.generate(
            codes_1T.to(self._device), prompt_BP8=prompt_BPK, steps=steps, greedy=True, generator=generator
        )
        return codes_BNK[0].t()


class _SpeechStream:
    """Segments of all levels, then sound."""

    def __init__(self, levels: "SegmentStream", codec: CodecStream) -> None:
        self._levels = levels
        self._codec = codec

    def push(self, codes_KT: Tensor) -> list[Audio]:
        made_KT = self._levels.push(codes_KT[0])
        return self._codec.push(made_KT) if made_KT.shape[1] else []

    def finish(self) -> list[Audio]:
        made_KT = self._levels.finish()
        pieces = self._codec.push(made_KT) if made_KT.shape[1] else []
        return [*pieces, *self._codec.finish()]
