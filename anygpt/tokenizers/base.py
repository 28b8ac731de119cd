"""The contract that every modality's tokenizer fulfils, and the table of the methods that exist.

Shape suffixes: K levels that the language model sees, T frames.
"""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anygpt.config import read_mapping
from anygpt.errors import CheckpointError, nearest
from anygpt.modality import ModalitySpec, get_modality

TOKENIZER_CLASSES: dict[str, str] = {
    "seed": "anygpt.tokenizers.seed.tokenizer:SeedTokenizer",
    "speechtokenizer": "anygpt.tokenizers.speechtokenizer.tokenizer:SpeechTokenizer",
    "frames": "anygpt.tokenizers.frames.tokenizer:FramesTokenizer",
    "encodec": "anygpt.tokenizers.encodec.tokenizer:EncodecTokenizer",
}
"""Method name (the `class` field of a tokenizer folder's config.json) -> `module:class`, imported on first use."""


class ModalityTokenizer(ABC):
    """Turns media into codes and back.

    `media` is what `anygpt.media` and `anygpt.video` load: a `PIL.Image.Image` (RGB), an `Audio` or a `Video`.
    """

    modality: str
    """Name of the row in `MODALITIES`."""
    codebook_size: int
    num_codebooks: int
    """Levels that the language model sees (1 for speech, whatever the number of residual levels)."""
    frame_rate_hz: float | None = None
    """Frames per second, of methods whose tokenizers differ in it; None: what the modality's row says."""
    parts: "Sequence[ModalityTokenizer]" = ()
    """Tokenizers of other modalities that its codes are made of (`ModalitySpec.parts`)."""

    @property
    def spec(self) -> ModalitySpec:
        """The row of the modality, at this tokenizer's codebook sizes."""
        row = get_modality(self.modality).with_codebooks(
            codebook_size=self.codebook_size, num_codebooks=self.num_codebooks, frame_rate_hz=self.frame_rate_hz
        )
        return row.with_parts({part.modality: part.spec for part in self.parts})

    @classmethod
    @abstractmethod
    def from_pretrained(cls, folder: Path, *, device: str | torch.device = "cpu") -> "ModalityTokenizer":
        """Load `config.json` and the safetensors weights of a tokenizer folder, strictly.

        Raises CheckpointError naming the missing file or key.
        """

    @abstractmethod
    def encode(self, media: Sequence[Any]) -> list[Tensor]:
        """Codes of each item, int64 [K, T] on the CPU, T depending on the item. Batched inside."""

    @abstractmethod
    def decode(self, codes_KT: Tensor, *, generator: torch.Generator | None = None, **settings: Any) -> Any:
        """Rebuild one item. `settings` are the decoder's own (speech: `voice`, `vc_steps`).

        Raises CodeError when the codes are out of range or the number of frames is not the modality's.
        """

    @abstractmethod
    def code_defining_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """The weights that decide which codes come out of `encode` (encoder and codebooks, not the decoder)."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over `code_defining_tensors`: equal fingerprints mean equal codes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.code_defining_tensors(), key=lambda pair: pair[0]):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_tokenizer(folder: Path | str, *, device: str | torch.device = "cpu") -> ModalityTokenizer:
    """Load whichever tokenizer `folder/config.json` names in its `class` field."""
    folder = Path(folder)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{config_path}: missing; a tokenizer folder holds config.json and safetensors weights")
    name = str(read_mapping(config_path).get("class", ""))
    if name not in TOKENIZER_CLASSES:
        known = f"{nearest(name, TOKENIZER_CLASSES)}; known: {', '.join(TOKENIZER_CLASSES)}"
        raise CheckpointError(f"{config_path}: unknown class '{name}'{known}")
    module, _, attribute = TOKENIZER_CLASSES[name].partition(":")
    return getattr(importlib.import_module(module), attribute).from_pretrained(folder, device=device)
