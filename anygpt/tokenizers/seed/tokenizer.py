"""The image tokenizer as the rest of the package sees it: pictures to 32 codes and back.

Shape suffixes: B batch, K levels (1), T frames (queries), F embedding dimension.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from anygpt.config import from_dict, read_mapping
from anygpt.errors import AnyGPTError, CheckpointError, CodeError, ConfigError, nearest
from anygpt.media import atomic_write
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.tokenizers.seed.checkpoint import load_released, load_safetensors
from anygpt.tokenizers.seed.config import SeedConfig
from anygpt.tokenizers.seed.model import SeedModel
from anygpt.tokenizers.seed.pixels import PixelDecoder, SmallPixelConfig, SmallPixelDecoder, UnclipConfig, UnclipPixels
from anygpt.tokenizers.seed.preprocess import PreprocessConfig, preprocess
from anygpt.tokenizers.weights import save_safetensors

CODE_DEFINING = ("query_tokens", "visual_encoder.", "ln_vision.", "Qformer.", "encode_task_layer.", "quantize.")
"""Beginnings of the names of the weights that decide the codes; the others only decode."""
BATCH_SIZE = 32


class SeedTokenizer(ModalityTokenizer):
    """SEED-2 with any pixel decoder, or with none, which is enough to encode."""

    modality = "image"
    num_codebooks = 1
    pixels: PixelDecoder | None
    """May be set later: encoding needs none, and a diffusion pipeline is slow to load."""

    def __init__(
        self,
        model: SeedModel,
        pixels: PixelDecoder | None,
        preprocess_config: PreprocessConfig,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        """Raises ConfigError when the three parts don't fit together."""
        config = model.config
        if preprocess_config.image_size != config.vit.img_size:
            raise ConfigError(
                f"preprocess.image_size is {preprocess_config.image_size}, but model.vit.img_size is "
                f"{config.vit.img_size}; make them equal"
            )
        if pixels is not None and pixels.embed_dim != config.image_features_dim:
            raise ConfigError(
                f"the pixel decoder takes embeddings of {pixels.embed_dim} values, but the tokenizer gives "
                f"{config.image_features_dim} (model.image_features_dim); use the decoder made for this tokenizer"
            )
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.pixels = pixels
        if isinstance(pixels, SmallPixelDecoder):
            pixels.to(self.device).eval().requires_grad_(False)
        self.preprocess_config = preprocess_config
        self.codebook_size = config.n_embed
        self.num_frames = config.num_query_token

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: str | torch.device = "cpu") -> "SeedTokenizer":
        """Load `config.json`, `model.safetensors` and, for the small decoder, `pixels.safetensors`, as float32.

        Raises CheckpointError for a missing or unfit file, ConfigError for what is wrong in `config.json`.
        """
        folder = Path(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; a tokenizer folder holds config.json and its safetensors weights")
        sections = _sections(read_mapping(path), str(path))
        preprocess_config = from_dict(PreprocessConfig, sections["preprocess"], f"{path}: preprocess")
        # Not on the meta device: its first use costs over a second, more than a small model's random numbers.
        model = SeedModel(SeedConfig.from_dict(sections["model"], f"{path}: model"))
        load_safetensors(model, folder / "model.safetensors")
        pixels = _load_pixels(sections["pixels"], folder, device)
        return cls(model, pixels, preprocess_config, device=device)

    @classmethod
    def from_released(
        cls,
        quantizer_path: Path | str,
        *,
        pixels: PixelDecoder | str | None = None,
        config: SeedConfig | None = None,
        device: str | torch.device = "cpu",
    ) -> "SeedTokenizer":
        """Load a released `seed_quantizer.pt` as float32 (half precision gives other codes at near ties).

        `pixels` is a decoder, or the folder or hub name of an unCLIP pipeline; None can only encode. `config`
        describes a checkpoint of another size. Raises CheckpointError when a file is missing or unfit.
        """
        config = config or SeedConfig()
        model = load_released(Path(quantizer_path), config)
        if isinstance(pixels, str):
            pixels = UnclipPixels.from_pretrained(UnclipConfig(path=pixels), device=device)
        return cls(model, pixels, PreprocessConfig(image_size=config.vit.img_size), device=device)

    def save_pretrained(
        self, folder: Path | str, *, dtype: torch.dtype = torch.float32, pixels_dtype: torch.dtype | None = None
    ) -> None:
        """Write what `from_pretrained` reads, weights as `dtype`, config.json last.

        `pixels_dtype` is for the pixel decoder (None: as the rest); torch.int8 halves float16 once more, which codes
        would not bear but pictures do. An unCLIP pipeline is only referred to by its path.
        """
        folder = Path(folder)
        save_safetensors(self.model, folder / "model.safetensors", dtype)
        if isinstance(self.pixels, SmallPixelDecoder):
            save_safetensors(self.pixels, folder / "pixels.safetensors", pixels_dtype or dtype)
            pixels = {"kind": "small", **asdict(self.pixels.config)}
        elif isinstance(self.pixels, UnclipPixels):
            pixels = {"kind": "unclip", **asdict(self.pixels.config)}
        else:
            raise CheckpointError(f"{folder}: a tokenizer without a pixel decoder can't be saved; give it one first")
        sections = {
            "class": "seed",
            "modality": self.modality,
            "model": asdict(self.model.config),
            "pixels": pixels,
            "preprocess": asdict(self.preprocess_config),
        }
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(sections, indent=2) + "\n", encoding="utf-8")

    @torch.inference_mode()
    def encode(self, media: Sequence[Image.Image]) -> list[Tensor]:
        """Codes of each picture, int64 [1, 32] on the CPU, in [0, codebook_size)."""
        codes: list[Tensor] = []
        for start in range(0, len(media), BATCH_SIZE):
            batch = preprocess(media[start : start + BATCH_SIZE], self.preprocess_config)
            codes.extend(self.model.encode(batch.to(self.device)).cpu()[:, None])
        return codes

    def decode(self, codes_KT: Tensor, *, generator: torch.Generator | None = None, **settings: Any) -> Image.Image:
        """The picture that 32 codes stand for, int64 [1, 32].

        Raises CodeError for another number of codes or one out of range, AnyGPTError without a pixel decoder.
        """
        if settings:
            raise AnyGPTError(f"image decoding has no setting '{next(iter(settings))}'; remove it")
        if self.pixels is None:
            raise AnyGPTError("no pixel decoder is loaded; give the folder or hub name of an unCLIP pipeline")
        self._check(codes_KT)
        return self.pixels.draw(self.embed(codes_KT), generator=generator)[0]

    @torch.inference_mode()
    def embed(self, codes_BT: Tensor) -> Tensor:
        """The image embeddings [B, F] of codes int64 [B, 32]: what a pixel decoder takes."""
        return self.model.embed(codes_BT.to(self.device))[1]

    def code_defining_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Encoder and codebook."""
        return ((name, value) for name, value in self.model.named_parameters() if name.startswith(CODE_DEFINING))

    def _check(self, codes_KT: Tensor) -> None:
        if codes_KT.shape != (1, self.num_frames) or codes_KT.dtype != torch.int64:
            got = f"{codes_KT.dtype} {list(codes_KT.shape)}"
            raise CodeError(f"an image is int64 codes of shape [1, {self.num_frames}], got {got}")
        out_of_range = ((codes_KT < 0) | (codes_KT >= self.codebook_size)).nonzero()
        if len(out_of_range):
            position = int(out_of_range[0, 1])
            raise CodeError(
                f"image code {int(codes_KT[0, position])} at position {position} is outside [0, {self.codebook_size})"
            )


def _sections(config: Mapping[str, Any], source: str) -> dict[str, Mapping[str, Any]]:
    """The three nested parts of config.json, each present and a mapping."""
    known = ("class", "modality", "model", "pixels", "preprocess")
    for key in config:
        if key not in known:
            raise ConfigError(f"{source}: unknown key '{key}'{nearest(key, known)}; known: {', '.join(known)}")
    for key in ("model", "pixels", "preprocess"):
        if not isinstance(config.get(key), Mapping):
            raise ConfigError(f"{source}: '{key}' is missing or holds no keys and values")
    return {key: config[key] for key in ("model", "pixels", "preprocess")}


def _load_pixels(section: Mapping[str, Any], folder: Path, device: str | torch.device) -> PixelDecoder:
    source = f"{folder / 'config.json'}: pixels"
    kind, settings = section.get("kind"), {key: value for key, value in section.items() if key != "kind"}
    if kind == "small":
        pixels = SmallPixelDecoder(from_dict(SmallPixelConfig, settings, source))
        load_safetensors(pixels, folder / "pixels.safetensors")
        return pixels
    if kind == "unclip":
        return UnclipPixels.from_pretrained(from_dict(UnclipConfig, settings, source), device=device)
    raise ConfigError(f"{source}: 'kind' is {kind!r}, expected 'small' or 'unclip'")
