"""`anygpt.json`, which stands beside a model's weights: its modalities, their tokenizers, the chat template.

Released checkpoints have none; then the modalities and their sizes come from `added_tokens.json` alone.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anygpt.config import load_config
from anygpt.errors import ConfigError
from anygpt.media import atomic_write
from anygpt.tokenizers.base import ModalityTokenizer

FILE_NAME = "anygpt.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModalityEntry:
    """One modality of a model."""

    codebook_size: int
    num_codebooks: int
    tokenizer: str | None = None
    """Name of the tokenizer's folder under `tokenizers/`; None where it is given by path."""
    fingerprint: str | None = None
    """Of that tokenizer (`ModalityTokenizer.fingerprint`): with another one the model's codes mean something else."""
    frame_rate_hz: float | None = None
    """Of that tokenizer; None where it is the row's."""
    decoding: dict[str, Any] = field(default_factory=dict)
    """Fields of `generation.policies.Policy` that suit this model, where the policy file says nothing."""
    reading: dict[str, Any] = field(default_factory=dict)
    """The same for texts about media of this modality; they go before the policy file of text, which is for all."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `anygpt.json`."""

    format: int = FORMAT
    modalities: dict[str, ModalityEntry] = field(default_factory=dict)
    template: str = "MMGPT"
    base_weights: str | None = None
    """Of an adapter: `anygpt.generation.adapter.weights_fingerprint` of the model that it was trained on."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(f"'format' is {self.format}, this version of anygpt reads {FORMAT}; update the package")

    @classmethod
    def of(cls, tokenizers: Mapping[str, ModalityTokenizer], *, template: str) -> "Manifest":
        """The manifest of a model trained with these tokenizers, by their folder names under `tokenizers/`."""
        entries = {
            tokenizer.modality: ModalityEntry(
                codebook_size=tokenizer.codebook_size,
                num_codebooks=tokenizer.num_codebooks,
                tokenizer=name,
                fingerprint=tokenizer.fingerprint,
                frame_rate_hz=tokenizer.frame_rate_hz,
            )
            for name, tokenizer in tokenizers.items()
        }
        return cls(modalities=entries, template=template)


def read_manifest(folder: Path | str) -> Manifest | None:
    """The manifest of a model folder, or None where there is none. Raises ConfigError for a bad one."""
    path = Path(folder) / FILE_NAME
    return load_config(Manifest, path) if path.is_file() else None


def write_manifest(folder: Path | str, manifest: Manifest) -> None:
    """Write `anygpt.json` into a model folder, atomically, without what is None or empty."""
    content = dataclasses.asdict(manifest, dict_factory=lambda items: {k: v for k, v in items if v not in (None, {})})
    with atomic_write(Path(folder) / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
