"""The networks that the recipes of the audio codecs can train, behind one interface.

Each is a network of `anygpt.tokenizers` with what only training needs added, but no weights: what is saved is what the
tokenizers load.

Shape suffixes: B batch, L samples, S spectra, T frames, C channels (dimension), F features or bins, N rows.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anygpt.config import from_dict
from anygpt.errors import ConfigError, nearest
from anygpt.tokenizers import spectral
from anygpt.tokenizers.rvq import ResidualVectorQuantizer
from anygpt.tokenizers.spectral import SpectralCodec, SpectralConfig, mel_filters
from anygpt.tokenizers.speechtokenizer.config import SpeechTokenizerConfig
from anygpt.tokenizers.speechtokenizer.model import SpeechTokenizerModel
from anygpt.tokenizers.weights import save_safetensors

_FEATURE_SCALE = 12.0
"""Multiplies the unit vectors of the spectral codec's level 1: a linear layer could not be sharp on them otherwise."""
_NUM_WARPS = 14
"""Frequency warps to draw from."""


@dataclass(frozen=True, eq=False)
class Disturbance:
    """Another microphone, room and vocal tract, drawn by `generator`; `warps` bound the change of frequencies."""

    generator: torch.Generator
    warps: tuple[float, float]


class CodecBackbone(nn.Module, ABC):
    """A codec network (`AudioCodecModel`) that a recipe can train: vectors, residual levels, signal."""

    sample_rate: int
    hop_length: int
    codebook_size: int
    n_q: int
    quantizer: ResidualVectorQuantizer

    @classmethod
    @abstractmethod
    def from_config(cls, mapping: Mapping[str, Any], source: str) -> Self:
        """Fresh weights of the sizes in plain data. Raises ConfigError that begins with `source`."""

    @abstractmethod
    def encode(self, wav_B1T: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, codes_KBT: Tensor) -> Tensor: ...

    @abstractmethod
    def latent(self, wav_BL: Tensor) -> Tensor:
        """What the residual levels code, float32 [B, T, C]; L must be a multiple of `hop_length`."""

    @abstractmethod
    def synthesize(self, latent_BTC: Tensor) -> Tensor:
        """Signal float32 [B, T * hop_length] of a sum of the levels' vectors."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights as float16; the fields of the folder's config.json by which tokenizers find them."""

    def keeps_float32(self, name: str) -> bool:
        """As `TokenizerRecipe.keeps_float32`. Convolutions work on the float32 signal."""
        return True

    def uses_muon(self, name: str) -> bool:
        """As `TokenizerRecipe.uses_muon`. Convolutions and LSTMs are no plain matrices."""
        return False

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class SemanticBackbone(CodecBackbone):
    """A backbone whose level 1 can be distilled from a teacher."""

    is_semantic: bool
    """Whether it was configured to be."""
    has_semantic_branch: bool
    """Whether level 1 has an encoder of its own, which can learn from disturbed sounds and be frozen."""
    semantic_width: int
    """Length of the features that the teacher is compared with."""
    semantic_scale: float
    """Weight of mean squared distances between level-1 vectors."""

    @abstractmethod
    def semantic_latents(
        self, wav_BL: Tensor, latent_BTC: Tensor, disturbance: Disturbance | None
    ) -> tuple[Tensor, Tensor | None]:
        """What level 1 codes [B, T, C], and the same of the disturbed sound; `latent_BTC` is `latent(wav_BL)`."""

    @abstractmethod
    def semantic_features(self, first_BTC: Tensor) -> Tensor:
        """Level-1 vectors as the teacher sees them, [B, T, semantic_width]."""

    @abstractmethod
    def semantic_part(self, first_BTC: Tensor) -> Tensor:
        """What level-1 vectors add to the sum of the levels, [B, T, C]."""


class Spectral(SpectralCodec, SemanticBackbone):
    """The spectral codec; with `semantic`, level 1 has a branch of its own."""

    has_semantic_branch = True

    def __init__(self, config: SpectralConfig):
        super().__init__(config)
        self.is_semantic = config.semantic
        self.semantic_width = config.dimension
        # Vectors of unit length: the squared distances sum over channels.
        self.semantic_scale = config.dimension

    def latent(self, wav_BL: Tensor) -> Tensor:
        return self.encoder.acoustic_latent(wav_BL)

    def semantic_latents(
        self, wav_BL: Tensor, latent_BTC: Tensor, disturbance: Disturbance | None
    ) -> tuple[Tensor, Tensor | None]:
        power_BSF = self.encoder.semantic_power(wav_BL)
        clean_BTC = self.encoder.semantic_latent(power_BSF)
        if disturbance is None:
            return clean_BTC, None
        return clean_BTC, self.encoder.semantic_latent(*self._disturb(power_BSF, disturbance))

    def semantic_features(self, first_BTC: Tensor) -> Tensor:
        return _FEATURE_SCALE * first_BTC

    def semantic_part(self, first_BTC: Tensor) -> Tensor:
        return cast(Tensor, self.semantic_projection(first_BTC))

    def save(self, folder: Path) -> dict[str, Any]:
        save_safetensors(self, folder / "model.safetensors", torch.float16)
        return {"backbone": "spectral", "model": self.config.to_dict()}

    def keeps_float32(self, name: str) -> bool:
        return spectral.keeps_float32(name)

    def uses_muon(self, name: str) -> bool:
        return spectral.uses_muon(name)

    def _disturb(self, power_BSF: Tensor, disturbance: Disturbance) -> tuple[Tensor, Tensor]:
        """Filtered and noisy spectra, and warped mel filters [B, F, mels] to see them through."""
        rng = disturbance.generator
        batch, _, bins = power_BSF.shape
        knots_db = 5 * torch.randn(batch, 1, 6, generator=rng) + 4 * torch.randn(batch, 1, 1, generator=rng)
        gain = 10 ** (F.interpolate(knots_db, bins, mode="linear", align_corners=True) / 10)
        noise_db = -65 + 35 * torch.rand(batch, 1, 1, generator=rng)
        noise = -(1 - torch.rand(power_BSF.shape, generator=rng)).log()
        filters = _warped_filters(self.config, disturbance.warps)
        drawn = filters[torch.randint(len(filters), (batch,), generator=rng)]
        device = power_BSF.device
        return power_BSF * gain.to(device) + (noise * 10 ** (noise_db / 10)).to(device), drawn.to(device)


@functools.lru_cache(maxsize=4)
def _warped_filters(config: SpectralConfig, warps: tuple[float, float]) -> Tensor:
    """Mel filters of the semantic branch over warped frequencies, [warps, F, mels]."""
    window = config.semantic_analysis[0]
    factors = np.geomspace(*warps, _NUM_WARPS)
    return torch.stack([mel_filters(config.semantic_mels, window, config.sample_rate, warp=warp) for warp in factors])


class SEANet(SpeechTokenizerModel, SemanticBackbone):
    """SpeechTokenizer's network: all levels code one encoder's output, and `transform` leads to the teacher."""

    is_semantic = True
    has_semantic_branch = False
    semantic_scale = 1.0

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__(config)
        self.semantic_width = config.semantic_dimension

    def latent(self, wav_BL: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(wav_BL[:, None])).transpose(1, 2)

    def synthesize(self, latent_BTC: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(latent_BTC.transpose(1, 2)))[:, 0]

    def semantic_latents(
        self, wav_BL: Tensor, latent_BTC: Tensor, disturbance: Disturbance | None
    ) -> tuple[Tensor, Tensor | None]:
        assert disturbance is None, "one encoder for all levels must not hear what is not to be rebuilt"
        return latent_BTC, None

    def semantic_features(self, first_BTC: Tensor) -> Tensor:
        return cast(Tensor, self.transform(first_BTC))

    def semantic_part(self, first_BTC: Tensor) -> Tensor:
        return first_BTC

    def save(self, folder: Path) -> dict[str, Any]:
        save_safetensors(self, folder / "model.safetensors", torch.float16)
        return {"backbone": "seanet", "model": asdict(self.config)}


@dataclass(frozen=True, kw_only=True)
class EncodecSizes:
    """Sizes of an `Encodec`, by transformers' names except `n_q`; the defaults are the 32 kHz model's."""

    sampling_rate: int = 32_000
    codebook_size: int = 2048
    n_q: int = 4
    num_filters: int = 64
    hidden_size: int = 128
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 4)
    num_residual_layers: int = 1
    num_lstm_layers: int = 2
    use_causal_conv: bool = False
    use_conv_shortcut: bool = False

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise ConfigError(f"'codebook_size' is {self.codebook_size}, expected a power of 2")

    def bandwidths(self) -> list[float]:
        """Kilobits a second of which the first gives `n_q` levels, and the last makes transformers build as many.

        The class counts levels by their bits when it encodes, but by ten bits each when it is built.
        """
        frames = math.ceil(self.sampling_rate / math.prod(self.upsampling_ratios))
        used, built = (_kbps(self.n_q * bits * frames) for bits in (self.codebook_size.bit_length() - 1, 10))
        return [used, built] if used < built else [used]


def _kbps(bits_per_s: int) -> float:
    """A thousandth that, times a thousand, is no less: rounding might cost transformers a level."""
    kbps = bits_per_s / 1000
    return kbps if kbps * 1000 >= bits_per_s else math.nextafter(kbps, math.inf)


class Encodec(CodecBackbone):
    """transformers' Encodec with our quantizer, which can learn; saved as a folder of transformers' own.

    Source: Encodec (Défossez et al. 2022, section 3).
    """

    def __init__(self, sizes: EncodecSizes):
        from transformers import EncodecConfig, EncodecModel

        super().__init__()
        fields = {name: value for name, value in asdict(sizes).items() if name != "n_q"}
        fields["upsampling_ratios"] = list(sizes.upsampling_ratios)
        self._config = EncodecConfig(target_bandwidths=sizes.bandwidths(), codebook_dim=sizes.hidden_size, **fields)
        model = EncodecModel(self._config)
        self.sample_rate = sizes.sampling_rate
        self.hop_length = math.prod(sizes.upsampling_ratios)
        self.codebook_size = sizes.codebook_size
        self.n_q = sizes.n_q
        self.encoder = model.encoder
        self.quantizer = ResidualVectorQuantizer(sizes.hidden_size, sizes.codebook_size, sizes.n_q)
        self.decoder = model.decoder

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], source: str) -> Self:
        return cls(from_dict(EncodecSizes, mapping, source))

    @torch.no_grad()
    def encode(self, wav_B1T: Tensor) -> Tensor:
        return self.quantizer.encode(self.encoder(wav_B1T))

    @torch.no_grad()
    def decode(self, codes_KBT: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(self.quantizer.decode(codes_KBT)))

    def latent(self, wav_BL: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(wav_BL[:, None])).transpose(1, 2)

    def synthesize(self, latent_BTC: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(latent_BTC.transpose(1, 2)))[:, 0]

    def save(self, folder: Path) -> dict[str, Any]:
        from transformers import EncodecModel

        model = EncodecModel(self._config)
        model.encoder.load_state_dict(self.encoder.state_dict())
        model.decoder.load_state_dict(self.decoder.state_dict())
        # transformers may have built more levels than are used.
        for layer, book in zip(model.quantizer.layers, self.quantizer.codebooks, strict=False):
            cast(nn.Module, layer.codebook).load_state_dict(book.state_dict())
        model.half().save_pretrained(folder / "encodec")
        return {"backbone": "hf", "model": {"name_or_path": "encodec", "num_codebooks": self.n_q}}


BACKBONES: dict[str, type[CodecBackbone]] = {"spectral": Spectral, "seanet": SEANet, "encodec": Encodec}
"""What `recipe.backbone` may name; `recipe.codec` then holds the fields of the network's own configuration."""


def build_backbone(name: str, sizes: Mapping[str, Any]) -> CodecBackbone:
    """The network that a recipe names, with fresh weights. Raises ConfigError for an unknown name or field."""
    if name not in BACKBONES:
        known = f"{nearest(name, BACKBONES)}; known: {', '.join(BACKBONES)}"
        raise ConfigError(f"recipe: unknown backbone '{name}'{known}")
    return BACKBONES[name].from_config(sizes, source="recipe.codec")
