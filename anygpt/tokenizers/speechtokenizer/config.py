"""The fields of SpeechTokenizer's configuration files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from anygpt.config import from_dict, read_mapping
from anygpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerConfig:
    """Shape of the SEANet SpeechTokenizer, in the names of the released config.json."""

    n_filters: int
    """Channels at the full rate; every stride doubles them."""
    strides: tuple[int, ...]
    """Upsampling factors of the decoder, first to last; the encoder goes the other way round."""
    dimension: int
    """Length of the quantized vectors."""
    semantic_dimension: int
    """Length of the teacher's vectors that level 1 is distilled from."""
    bidirectional: bool
    """Whether the encoder's LSTM runs both ways; the decoder's runs forward."""
    dilation_base: int
    residual_kernel_size: int
    n_residual_layers: int
    lstm_layers: int
    activation: Literal["ELU", "Snake"]
    codebook_size: int
    n_q: int
    sample_rate: int

    def __post_init__(self) -> None:
        counts = {name: value for name, value in vars(self).items() if type(value) is int}
        counts |= {f"strides[{i}]": stride for i, stride in enumerate(self.strides)}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"'{name}' is {value}, expected at least 1")
        if not self.strides:
            raise ConfigError("'strides' is empty, expected at least one")
        if self.residual_kernel_size % 2 == 0:
            raise ConfigError(f"'residual_kernel_size' is {self.residual_kernel_size}, expected an odd number")

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)


def load_released_config(path: Path | str) -> SpeechTokenizerConfig:
    """The network's fields of a released config.json, whose many training fields are passed over.

    Raises ConfigError for a missing network field and for a value of the wrong kind.
    """
    mapping: Mapping[str, Any] = read_mapping(path)
    known = {field.name for field in fields(SpeechTokenizerConfig)}
    return from_dict(SpeechTokenizerConfig, {k: v for k, v in mapping.items() if k in known}, source=str(path))


@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerFolder:
    """config.json of a speech tokenizer folder, less its `class` field."""

    modality: str = "speech"
    backbone: str
    model: dict[str, Any]
    """Fields of the backbone's own configuration."""
    soundstorm: str | None = None
    """SoundStorm's folder, relative to this one; without it level 1 alone is decoded."""
    default_voice: str | None = None
    """Sound file in this folder: the voice of `decode` when the caller names none."""
