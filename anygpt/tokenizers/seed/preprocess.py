"""From a PIL image to the network's input.

Shape suffixes: B batch, C channels, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anygpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Size and normalisation of the network's input; the defaults are CLIP's, which the released tokenizer uses."""

    image_size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"preprocess.image_size: {self.image_size}; give the side of the input in pixels")
        if min(self.std) <= 0:
            raise ConfigError(f"preprocess.std: {self.std}; all three must be above 0")


def resize(image: Image.Image, image_size: int) -> Image.Image:
    """RGB, squeezed to a square without cropping. Pillow's bicubic filter; others give other codes.

    Pillow rounds between the passes over rows and columns. Which comes first is decided here, as Pillow 13 does:
    versions before always begin with the rows, and would give other pixels.
    """
    rgb = image.convert("RGB")
    width, height = rgb.size
    is_tall = height - image_size > max(0, 2 * (width - image_size))
    first = (width, image_size) if is_tall else (image_size, height)
    return rgb.resize(first, Image.Resampling.BICUBIC).resize((image_size, image_size), Image.Resampling.BICUBIC)


def preprocess(images: Sequence[Image.Image], config: PreprocessConfig) -> Tensor:
    """Images of any size and mode -> float32 [B, 3, image_size, image_size], normalised per colour."""
    pixels_BHWC = np.stack([np.asarray(resize(image, config.image_size)) for image in images])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 255 - mean) / std
