"""Loading the published SpeechTokenizer checkpoints."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from anygpt.errors import CheckpointError
from anygpt.tokenizers.audio_codec import load_strictly
from anygpt.tokenizers.speechtokenizer.config import load_released_config
from anygpt.tokenizers.speechtokenizer.model import SpeechTokenizerModel


def load_released(checkpoint: Path | str, config: Path | str | None = None) -> SpeechTokenizerModel:
    """The model of a published `.pt` file (a bare state dict) and its configuration, in eval mode on the CPU.

    `config` defaults to `config.json` beside the checkpoint. Raises CheckpointError for a file that is missing, is
    no plain state dict or doesn't fit the configuration; ConfigError for the configuration itself.
    """
    checkpoint = Path(checkpoint)
    config = checkpoint.with_name("config.json") if config is None else Path(config)
    state = _read_state_dict(checkpoint)
    model = SpeechTokenizerModel(load_released_config(config))
    load_strictly(model, state, source=str(checkpoint))
    return model.eval()


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected SpeechTokenizer's checkpoint, e.g. ckpt.dev")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a bare state dict (names to tensors); is this another model's file?")
    return state
