"""Which tokenizer serves which modality of a model: loaded on first use, and checked against the model.

A model of ours names its tokenizers in `anygpt.json`; released checkpoints get theirs by path.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.manifest import Manifest, ModalityEntry
from anygpt.modality import ModalitySpec
from anygpt.paths import resource
from anygpt.tokenizers.base import ModalityTokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerPaths:
    """Where the tokenizers of a released checkpoint are, or others to use than the model names.

    `<modality>_tokenizer` may be a tokenizer folder of ours or what was released: SEED's `seed_quantizer.pt`,
    SpeechTokenizer's `.pt`, an Encodec folder or its name on the hub.
    """

    image_tokenizer: str | None = None
    unclip: str | None = None
    """Folder or hub name of the diffusion pipeline that paints released image codes."""
    speech_tokenizer: str | None = None
    speech_config: str | None = None
    soundstorm: str | None = None
    music_tokenizer: str | None = None
    audio_tokenizer: str | None = None

    def __post_init__(self) -> None:
        for field, value in (("speech_config", self.speech_config), ("soundstorm", self.soundstorm)):
            if value is not None and self.speech_tokenizer is None:
                raise AnyGPTError(f"{field} is '{value}', but no speech tokenizer is given; give its path too")


class MediaTokenizers:
    """The tokenizers of one model, by modality."""

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

    def get(self, name: str) -> ModalityTokenizer:
        """The tokenizer of modality `name`.

        Raises CheckpointError when there is none, when it can't be loaded, or when it isn't the one that the model
        was trained with.
        """
        if name not in self._loaded:
            tokenizer = self._load(name)
            self._check(name, tokenizer)
            self._loaded[name] = tokenizer
        return self._loaded[name]

    def add(self, tokenizer: ModalityTokenizer) -> None:
        """Use a tokenizer that is in memory already. Raises CheckpointError when it doesn't fit the model."""
        self._check(tokenizer.modality, tokenizer)
        self._loaded[tokenizer.modality] = tokenizer

    def _load(self, name: str) -> ModalityTokenizer:
        path = getattr(self._paths, f"{name}_tokenizer", None)
        entry = self._entry(name)
        if path is None and entry is not None and entry.tokenizer is not None:
            return load_tokenizer(resource("tokenizers", entry.tokenizer), device=self._device)
        if path is not None and _is_tokenizer_folder(Path(path)):
            return load_tokenizer(path, device=self._device)
        if name not in _RELEASED:
            raise CheckpointError(f"no tokenizer for {name} is known; give the folder of one")
        return _RELEASED[name](self._paths, self._device)

    def _entry(self, name: str) -> ModalityEntry | None:
        return self._manifest.modalities.get(name) if self._manifest is not None else None

    def _check(self, name: str, tokenizer: ModalityTokenizer) -> None:
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


def _is_tokenizer_folder(path: Path) -> bool:
    """Whether this is a tokenizer folder of ours rather than a released file or a Hugging Face folder."""
    config_path = path / "config.json"
    if not config_path.is_file():
        return False
    try:
        return "class" in json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError:
        return False


def _released_image(paths: TokenizerPaths, device: torch.device | str) -> ModalityTokenizer:
    from anygpt.tokenizers.seed.pixels import RELEASED_UNCLIP, UnclipConfig, UnclipPixels
    from anygpt.tokenizers.seed.tokenizer import SeedTokenizer

    if paths.image_tokenizer is None:
        raise CheckpointError("the image tokenizer of a released model is not given; set --image-tokenizer-path")
    unclip = UnclipConfig(path=paths.unclip or RELEASED_UNCLIP)

    class PaintsLater(SeedTokenizer):
        """Reading pictures needs no diffusion pipeline, which is slow to load and may be missing."""

        def decode(self, *args: Any, **settings: Any) -> Any:
            if self.pixels is None:
                self.pixels = UnclipPixels.from_pretrained(unclip, device=self.device)
            return super().decode(*args, **settings)

    return PaintsLater.from_released(paths.image_tokenizer, device=device)


def _released_speech(paths: TokenizerPaths, device: torch.device | str) -> ModalityTokenizer:
    from anygpt.tokenizers.speechtokenizer.tokenizer import SpeechTokenizer

    if paths.speech_tokenizer is None:
        raise CheckpointError("the speech tokenizer of a released model is not given; set --speech-tokenizer-path")
    return SpeechTokenizer.from_released(paths.speech_tokenizer, paths.speech_config, paths.soundstorm, device=device)


def _released_music(paths: TokenizerPaths, device: torch.device | str) -> ModalityTokenizer:
    from anygpt.tokenizers.encodec.tokenizer import EncodecTokenizer

    return EncodecTokenizer.from_released(paths.music_tokenizer or "facebook/encodec_32khz", device=device)


def _released_audio(paths: TokenizerPaths, device: torch.device | str) -> ModalityTokenizer:
    from anygpt.tokenizers.encodec.tokenizer import EncodecTokenizer

    name = paths.audio_tokenizer or "facebook/encodec_24khz"
    return EncodecTokenizer.from_released(name, modality="audio", device=device)


_RELEASED: dict[str, Callable[[TokenizerPaths, torch.device | str], ModalityTokenizer]] = {
    "image": _released_image,
    "speech": _released_speech,
    "music": _released_music,
    "audio": _released_audio,
}
"""How the tokenizers that were released with the paper are loaded."""
