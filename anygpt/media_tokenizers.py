"""Which tokenizer serves which modality of a model: loaded on first use, and checked against the model.

A model of ours names its tokenizers in `anygpt.json`; released checkpoints get theirs by path.
"""

import threading
from collections.abc import Mapping

import torch

from anygpt.errors import CheckpointError
from anygpt.manifest import Manifest, ModalityEntry
from anygpt.modality import ModalitySpec
from anygpt.paths import resource
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.tokenizers.sources import TokenizerPaths, load_folder, load_from_paths


class MediaTokenizers:
    """The tokenizers of one model, by modality; for any thread."""

    def __init__(
        self,
        specs: Mapping[str, ModalitySpec],
        *,
        manifest: Manifest | None = None,
        paths: TokenizerPaths | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`specs` are the modalities at the model's codebook sizes; a path goes before what `manifest` names."""
        self._specs = specs
        self._manifest = manifest
        self._paths = paths or TokenizerPaths()
        self._device = device
        self._loaded: dict[str, ModalityTokenizer] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> ModalityTokenizer:
        """The tokenizer of modality `name`.

        Raises CheckpointError when there is none, when it can't be loaded, or when it isn't the one that the model
        was trained with.
        """
        with self._lock:  # what several threads ask for at once is loaded once
            if name not in self._loaded:
                tokenizer = self._load(name)
                self._check(name, tokenizer)
                self._loaded[name] = tokenizer
            return self._loaded[name]

    def fingerprint(self, name: str) -> str:
        """What the codes of modality `name` mean, as far as this model goes; see `get` for what raises."""
        entry = self._entry(name)
        if entry is not None and entry.fingerprint is not None:
            return entry.fingerprint
        return self.get(name).fingerprint

    def add(self, tokenizer: ModalityTokenizer) -> None:
        """Use a tokenizer that is in memory already. Raises CheckpointError when it doesn't fit the model."""
        self._check(tokenizer.modality, tokenizer)
        self._loaded[tokenizer.modality] = tokenizer

    def _load(self, name: str) -> ModalityTokenizer:
        path = getattr(self._paths, f"{name}_tokenizer", None)
        entry = self._entry(name)
        if path is None and entry is not None and entry.tokenizer is not None:
            return load_folder(resource("tokenizers", entry.tokenizer), self._paths, self._device)
        return load_from_paths(name, self._paths, device=self._device)

    def _entry(self, name: str) -> ModalityEntry | None:
        return self._manifest.modalities.get(name) if self._manifest is not None else None

    def _check(self, name: str, tokenizer: ModalityTokenizer) -> None:
        for part in tokenizer.parts:
            self._check(part.modality, part)
        spec = self._specs[name]
        got = (tokenizer.modality, tokenizer.num_codebooks, tokenizer.codebook_size)
        expected = (name, spec.num_codebooks, spec.codebook_size)
        if got != expected:
            text = "{} with {} x {} codes"
            raise CheckpointError(
                f"the {name} tokenizer doesn't match the model: it is for {text.format(*got)}, "
                f"the model's vocabulary has {text.format(*expected)}"
            )
        entry = self._entry(name)
        if entry is not None and entry.fingerprint is not None and tokenizer.fingerprint != entry.fingerprint:
            raise CheckpointError(
                f"the {name} tokenizer doesn't match the model: its fingerprint is {tokenizer.fingerprint[:12]}…, the "
                f"model was trained with {entry.fingerprint[:12]}… ('{entry.tokenizer}'): its codes mean other things"
            )
