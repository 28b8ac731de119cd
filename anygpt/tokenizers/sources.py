"""Where tokenizers come from: shipped by name, folders of ours, and the files that were released with the paper."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.paths import resource
from anygpt.tokenizers.base import ModalityTokenizer, load_tokenizer

DEFAULT_TOKENIZERS = {"image": "seed-mini", "speech": "speechtokenizer-mini", "music": "encodec-mini"}
"""Modality -> the tokenizer of the shipped models, by its name under `tokenizers/`."""


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
    """SoundStorm's folder or released file; it replaces the one that a tokenizer folder names."""
    music_tokenizer: str | None = None
    audio_tokenizer: str | None = None
    video_tokenizer: str | None = None

    def __post_init__(self) -> None:
        for field, modality in (("unclip", "image"), ("speech_config", "speech")):
            value = getattr(self, field)
            if value is not None and getattr(self, f"{modality}_tokenizer") is None:
                raise AnyGPTError(f"{field} is '{value}', but no {modality} tokenizer is given; give its path too")


def find_tokenizer(modality: str, name_or_path: str | None = None) -> str:
    """What to give as `<modality>_tokenizer`: the folder of a shipped tokenizer (by default the modality's), else the
    path or hub name as it is.

    Raises AnyGPTError for a name that is neither shipped nor a file or folder here, CheckpointError where the modality
    has no default.
    """
    if name_or_path is None:
        if modality not in DEFAULT_TOKENIZERS:
            raise CheckpointError(f"no tokenizer for {modality} is shipped; give one with --tokenizer")
        return str(resource("tokenizers", DEFAULT_TOKENIZERS[modality]))
    path = Path(name_or_path).expanduser()
    if len(path.parts) == 1 and not path.exists():
        return str(resource("tokenizers", name_or_path))
    return str(path) if path.exists() else name_or_path


def has_tokenizer(modality: str, paths: TokenizerPaths) -> bool:
    """Whether `choose_tokenizer` finds one: `paths` give it, or it is shipped."""
    return modality in DEFAULT_TOKENIZERS or getattr(paths, f"{modality}_tokenizer") is not None


def choose_tokenizer(modality: str, tokenizer: str | None, paths: TokenizerPaths) -> TokenizerPaths:
    """The paths of one tokenizer: of `tokenizer` (name, folder or file), else what `paths` give, else the shipped one.

    Raises AnyGPTError where both are given, and as `find_tokenizer` does.
    """
    field = f"{modality}_tokenizer"
    given = getattr(paths, field)
    if tokenizer is not None and given is not None:
        raise AnyGPTError(f"two {modality} tokenizers are given, '{tokenizer}' and '{given}'; give one")
    chosen = find_tokenizer(modality, tokenizer if tokenizer is not None else given)
    if modality == "speech":
        return TokenizerPaths(speech_tokenizer=chosen, speech_config=paths.speech_config)
    return TokenizerPaths(**{field: chosen})


def load_from_paths(modality: str, paths: TokenizerPaths, *, device: torch.device | str = "cpu") -> ModalityTokenizer:
    """The tokenizer that `paths` give for a modality. Raises CheckpointError when there is none or it is unfit."""
    path = getattr(paths, f"{modality}_tokenizer", None)
    if path is not None and _is_tokenizer_folder(Path(path)):
        return load_folder(Path(path), paths, device)
    if modality not in _RELEASED:
        raise CheckpointError(f"no tokenizer for {modality} is known; give the folder of one")
    return _RELEASED[modality](paths, device)


def _is_tokenizer_folder(path: Path) -> bool:
    """Whether this is a tokenizer folder of ours rather than a released file or a Hugging Face folder."""
    config_path = path / "config.json"
    if not config_path.is_file():
        return False
    try:
        return "class" in json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError:
        return False


def load_folder(folder: Path, paths: TokenizerPaths, device: torch.device | str) -> ModalityTokenizer:
    """A tokenizer folder of ours, with another SoundStorm where `paths` give one; its other parts are its own.

    Raises CheckpointError for a part that it has itself, and where SoundStorm isn't there.
    """
    tokenizer = load_tokenizer(folder, device=device)
    # The classes are imported where a path asks for them: a prompt loads no other modality's tokenizer.
    if paths.unclip is not None:
        from anygpt.tokenizers.seed.tokenizer import SeedTokenizer

        if isinstance(tokenizer, SeedTokenizer):
            raise CheckpointError(
                f"unclip is '{paths.unclip}', but {folder} has a pixel decoder of its own; leave it out"
            )
    if paths.speech_config is not None or paths.soundstorm is not None:
        from anygpt.tokenizers.speechtokenizer.tokenizer import SpeechTokenizer

        if isinstance(tokenizer, SpeechTokenizer):
            config = paths.speech_config
            if config is not None and Path(config).resolve() != (folder / "config.json").resolve():
                raise CheckpointError(
                    f"speech_config is '{config}', but {folder} has a config.json of its own; leave it out"
                )
            if paths.soundstorm is not None:
                tokenizer.use_soundstorm(Path(paths.soundstorm))
    return tokenizer


def _released_file(modality: str, path: str | None) -> str:
    """The path of released weights. Raises CheckpointError where there is none, or a folder."""
    if path is None:
        raise CheckpointError(
            f"no {modality} tokenizer is given, and the model has no anygpt.json that names one; "
            f"set --{modality}-tokenizer-path"
        )
    if Path(path).is_dir():
        raise CheckpointError(
            f"{path}: a folder without a tokenizer's config.json; give one with it, or a released file"
        )
    return path


def _released_image(paths: TokenizerPaths, device: torch.device | str) -> ModalityTokenizer:
    from anygpt.tokenizers.seed.pixels import RELEASED_UNCLIP, UnclipConfig, UnclipPixels
    from anygpt.tokenizers.seed.tokenizer import SeedTokenizer

    quantizer = _released_file("image", paths.image_tokenizer)
    unclip = UnclipConfig(path=paths.unclip or RELEASED_UNCLIP)

    class PaintsLater(SeedTokenizer):
        """Reading pictures needs no diffusion pipeline, which is slow to load and may be missing."""

        def decode(self, *args: Any, **settings: Any) -> Any:
            if self.pixels is None:
                self.pixels = UnclipPixels.from_pretrained(unclip, device=self.device)
            return super().decode(*args, **settings)

    return PaintsLater.from_released(quantizer, device=device)


def _released_speech(paths: TokenizerPaths, device: torch.device | str) -> ModalityTokenizer:
    from anygpt.tokenizers.speechtokenizer.tokenizer import SpeechTokenizer

    checkpoint = _released_file("speech", paths.speech_tokenizer)
    return SpeechTokenizer.from_released(checkpoint, paths.speech_config, paths.soundstorm, device=device)


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
