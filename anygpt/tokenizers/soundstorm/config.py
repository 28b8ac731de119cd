"""Hyper-parameters of SoundStorm and their file form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from anygpt.config import from_dict, read_mapping
from anygpt.errors import ConfigError

CLASS_NAME = "soundstorm"


@dataclass(frozen=True, kw_only=True)
class SoundStormConfig:
    """Sizes and conventions of one SoundStorm; the defaults are the released network.

    Raises ConfigError for sizes that can't work.
    """

    dim: int = 1024
    depth: int = 12
    heads: int = 8
    dim_head: int = 128
    ff_mult: int = 4
    conv_expansion_factor: int = 2
    conv_kernel_size: int = 31
    dropout: float = 0.0
    codebook_size: int = 1024
    num_quantizers: int = 7
    """Acoustic levels: the residual levels of the codec without the first, which is the condition."""
    num_semantic_token_ids: int = 1024
    semantic_pad_id: int = 1024
    pad_id: int = 1024
    schedule: Literal["cosine", "linear"] = "cosine"
    """Masking schedule of training; sampling always uses the cosine."""
    sampling: Literal["released", "paper"] = "released"
    """What `SoundStorm.generate` does: repeat the published inference token for token, or keep the prompt as given
    and show the network masks for the levels that are not decoded yet, as it saw them in training."""
    codec_fingerprint: str | None = None
    """Of the codec whose codes the network was trained on; None where it isn't known (released files)."""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "dim_head", "codebook_size", "num_quantizers", "num_semantic_token_ids"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}, expected at least 1")
        if self.conv_kernel_size % 2 == 0:
            raise ConfigError(f"'conv_kernel_size' is {self.conv_kernel_size}, expected an odd number")
        if self.dim_head % 2:
            raise ConfigError(f"'dim_head' is {self.dim_head}, expected an even number (rotary positions)")

    @property
    def mask_id(self) -> int:
        """The code that stands for "not known yet"."""
        return self.codebook_size

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: str) -> "SoundStormConfig":
        """Read a flat mapping, or the released form that keeps the network's sizes under `conformer`.

        Raises ConfigError naming `source`, the key and the nearest known key.
        """
        flat = {**mapping, **mapping.get("conformer", {})}
        # The released attention switch changes the speed only.
        for name in ("class", "conformer", "attn_flash"):
            flat.pop(name, None)
        return from_dict(cls, flat, source)

    @classmethod
    def load(cls, path: Path) -> "SoundStormConfig":
        """Read a JSON or YAML file. Raises ConfigError when it is missing or broken."""
        return cls.from_mapping(read_mapping(path), str(path))

    def to_mapping(self) -> dict[str, Any]:
        """What `from_mapping` reads."""
        return {"class": CLASS_NAME, **asdict(self)}
