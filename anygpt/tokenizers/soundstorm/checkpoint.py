"""Loading and saving SoundStorm, from released files and from our folders."""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anygpt.errors import CheckpointError
from anygpt.media import atomic_write
from anygpt.tokenizers.audio_codec import AudioCodecModel, code_defining_tensors, load_strictly
from anygpt.tokenizers.soundstorm.config import SoundStormConfig
from anygpt.tokenizers.soundstorm.model import SoundStorm
from anygpt.tokenizers.weights import read_safetensors, save_safetensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_OLD_CONV = re.compile(r"\.conv\.net\.([02467])\.")
_OLD_CONV_NAMES = {"0": "net1.0", "2": "net1.2", "4": "ds_conv", "6": "net2.1", "7": "net2.2"}
"""The stand-alone SoundStorm release names the parts of the conv module by their place in one sequence."""


def translate_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under current names; those of the older release are recognised."""
    return {_OLD_CONV.sub(lambda match: f".conv.{_OLD_CONV_NAMES[match[1]]}.", name): state[name] for name in state}


def load_soundstorm(
    path: Path | str, config: SoundStormConfig | None = None, *, device: str | torch.device = "cpu"
) -> SoundStorm:
    """Load strictly, in float32 and evaluation mode.

    `path` is a folder with config.json and model.safetensors, or a released `.pt` (or a `.safetensors`) file, which
    has no configuration of its own: `config` then gives it, the released sizes by default. Raises CheckpointError
    naming the file and the first key that is missing, unknown or of another shape.
    """
    path = Path(path)
    weights = path
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise CheckpointError(f"{path / CONFIG_FILE}: missing; a SoundStorm folder holds it and {WEIGHTS_FILE}")
        config = config or SoundStormConfig.load(path / CONFIG_FILE)
        weights = path / WEIGHTS_FILE
    state = translate_keys(_read_weights(weights))
    # Initialising the 350 million values of a released network only to overwrite them takes seconds; the meta device
    # avoids that, but its first use imports for over a second, more than a small network's random numbers take.
    with torch.device("cpu" if path.is_dir() else "meta"):
        model = SoundStorm(config or SoundStormConfig())
    model.to_empty(device="cpu")
    load_strictly(model, state, source=str(weights))
    return model.requires_grad_(False).eval().to(device)


def save_soundstorm(model: SoundStorm, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write model.safetensors (values as `dtype`) and config.json into `folder`, each renamed into place."""
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(model, folder / WEIGHTS_FILE, dtype)
    with atomic_write(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(model.config.to_mapping(), indent=2) + "\n", encoding="utf-8")


def codec_fingerprint(codec: AudioCodecModel) -> str:
    """SHA-256 over everything that decides the codes of all the codec's levels, which SoundStorm learns."""
    digest = hashlib.sha256()
    for name, tensor in sorted(code_defining_tensors(codec, codec.n_q), key=lambda pair: pair[0]):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; expected SoundStorm weights (.pt or .safetensors)") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: can't be read as weights ({reason[0]})") from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # a training checkpoint of the stand-alone release: weights beside the optimizer
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: expected a state dict, tensors by name")
    return state
