"""What the audio tokenizers ask of a codec network, and the steps between recordings and its tensors.

Shape suffixes: B batch, C channels, K levels, T frames (codes) or samples (waveforms).
"""

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from anygpt.config import from_dict, read_mapping
from anygpt.errors import CheckpointError, CodeError, ConfigError, MediaError, nearest
from anygpt.media import Audio
from anygpt.tokenizers.streams import Stage
from anygpt.tokenizers.weights import read_safetensors

FolderConfig = TypeVar("FolderConfig")

BACKBONES: dict[str, str] = {
    "seanet": "anygpt.tokenizers.speechtokenizer.model:SpeechTokenizerModel",
    "spectral": "anygpt.tokenizers.spectral:SpectralCodec",
}
"""`backbone` field of an audio tokenizer's config.json -> `module:class`, imported on first use.

The class is an `AudioCodecModel` with a class method `from_config(mapping, source)`, which builds it with fresh weights
and begins its error messages with `source` (a file name).
"""

_ENTRIES = re.compile(r"quantizer\.(?:vq\.)?layers\.(\d+)\.\w+\.embed")
"""State-dict name of a level's codebook entries, in our quantizer and in transformers' Encodec."""

CPU_BATCH_S = 16.0
"""Seconds of sound in a batch on a CPU: more no longer fit its caches (ten-second clips: 15 % slower by the 16)."""


class AudioCodecModel(Protocol):
    """A codec network: an `nn.Module` whose children are named `encoder`, `quantizer` and `decoder`.

    `encode` followed by `decode` gives the input's length rounded up to whole frames of `hop_length` samples.
    """

    sample_rate: int
    """Samples per second of the waveforms, mono."""
    hop_length: int
    """Samples per frame."""
    codebook_size: int
    n_q: int
    """Residual levels."""

    def encode(self, wav_B1T: Tensor, n_q: int | None = None) -> Tensor:
        """Codes of the first `n_q` levels (default: all), int64 [K, B, ceil(T / hop_length)]."""

    def decode(self, codes_KBT: Tensor) -> Tensor:
        """Waveform [B, 1, T * hop_length] of the first K levels, K from 1 to `n_q`."""

    def decode_stages(self) -> list[Stage]:
        """`decode` in parts, each of which can run over pieces: codes [K, B, T] in, waveform out."""


def load_codec(
    folder: Path, backbone: str, model: Mapping[str, Any], device: str | torch.device = "cpu"
) -> AudioCodecModel:
    """Build the network that the fields `backbone` and `model` of `folder/config.json` describe, with its weights.

    `model.safetensors` is loaded strictly. Raises CheckpointError naming the missing file, key or misfit.
    """
    codec = build_codec(backbone, model, source=str(folder / "config.json"))
    load_safetensors(as_module(codec), folder / "model.safetensors")
    as_module(codec).to(device).eval()
    return codec


def build_codec(backbone: str, model: Mapping[str, Any], source: str) -> AudioCodecModel:
    """The network of that backbone with fresh weights; errors begin with `source` (a file name)."""
    if backbone not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ConfigError(f"{source}: unknown backbone '{backbone}'{nearest(backbone, BACKBONES)}; known: {known}")
    module, _, attribute = BACKBONES[backbone].partition(":")
    codec: AudioCodecModel = getattr(importlib.import_module(module), attribute).from_config(model, source=source)
    return codec


def read_folder_config(cls: type[FolderConfig], folder: Path) -> FolderConfig:
    """`folder/config.json`, less its `class` field, as the dataclass `cls`. Raises ConfigError or CheckpointError."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a tokenizer folder holds config.json and model.safetensors")
    mapping = {key: value for key, value in read_mapping(path).items() if key != "class"}
    return from_dict(cls, mapping, source=str(path))


def load_safetensors(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into `module`, strictly; 16-bit weights are widened."""
    load_strictly(module, read_safetensors(path), source=str(path))


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`load_state_dict` whose error is one line that names the first misfit of each kind."""
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    misfits = [name for name in own if name in state and own[name].shape != state[name].shape]
    problems = [f"{len(missing)} missing keys, first '{missing[0]}'"] if missing else []
    problems += [f"{len(unknown)} unknown keys, first '{unknown[0]}'"] if unknown else []
    if misfits:
        name = misfits[0]
        shapes = f"{tuple(state[name].shape)}, the configuration gives {tuple(own[name].shape)}"
        problems.append(f"{len(misfits)} keys of another shape, first '{name}' {shapes}")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}. Do the weights belong to this configuration?")
    module.load_state_dict(dict(state))


def as_module(model: AudioCodecModel) -> nn.Module:
    """The same object, typed as the `nn.Module` that it also is."""
    assert isinstance(model, nn.Module), type(model)
    return model


def code_defining_tensors(model: AudioCodecModel, num_codebooks: int) -> Iterable[tuple[str, Tensor]]:
    """The encoder's weights and the entries of the first `num_codebooks` levels, by state-dict name."""
    for name, tensor in as_module(model).state_dict().items():
        entries = _ENTRIES.fullmatch(name)
        if name.startswith("encoder.") or (entries and int(entries[1]) < num_codebooks):
            yield name, tensor


def to_wave(audio: Audio, rate_hz: int, *, how: Literal["first", "mean"]) -> Tensor:
    """The first or the mean channel at `rate_hz` as float32 [samples]. Raises MediaError when there is no sample."""
    mono = audio.mono(how=how).resample(rate_hz)
    if mono.samples == 0:
        raise MediaError("recording without samples: nothing to encode")
    return torch.from_numpy(mono.wave[0])


@torch.inference_mode()
def encode_waves(
    model: AudioCodecModel, waves: Sequence[Tensor], *, n_q: int | None = None, batch_size: int = 16
) -> list[Tensor]:
    """Codes int64 [n_q, ceil(samples / hop_length)] on the CPU of each waveform [samples]; `n_q` defaults to all.

    Only waveforms of equal length share a batch: padding would change the codes near the end (and with a
    bidirectional LSTM everywhere), so that a recording's codes would depend on its neighbours.
    """
    device = next(as_module(model).parameters()).device
    by_length: dict[int, list[int]] = {}
    for index, wave in enumerate(waves):
        by_length.setdefault(len(wave), []).append(index)
    codes: dict[int, Tensor] = {}
    for length, indices in by_length.items():
        size = batch_size
        if device.type == "cpu":
            size = max(1, min(size, int(CPU_BATCH_S * model.sample_rate) // max(1, length)))
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            wav_B1T = torch.stack([waves[i] for i in batch])[:, None].to(device)
            codes_KBT = model.encode(wav_B1T, n_q).cpu()
            codes.update(zip(batch, codes_KBT.unbind(1), strict=True))
    return [codes[index] for index in range(len(waves))]


@torch.inference_mode()
def decode_wave(model: AudioCodecModel, codes_KT: Tensor) -> Audio:
    """Rebuild one recording from codes [K, T]."""
    device = next(as_module(model).parameters()).device
    wav_B1T = model.decode(codes_KT[:, None].to(device))
    return Audio(wave=wav_B1T[0].float().clamp(-1, 1).cpu().numpy(), rate_hz=model.sample_rate)


def check_codes(codes_KT: Tensor, *, levels: Sequence[int], codebook_size: int, what: str) -> None:
    """Raise CodeError, with the position, unless `codes_KT` is [K, T] with K in `levels`, T > 0 and codes in range."""
    if codes_KT.dim() != 2 or codes_KT.shape[0] not in levels or codes_KT.shape[1] == 0:
        expected = " or ".join(str(level) for level in levels)
        raise CodeError(f"{what} codes of shape {list(codes_KT.shape)}: expected [{expected}, frames], frames > 0")
    if codes_KT.is_floating_point():
        raise CodeError(f"{what} codes of type {codes_KT.dtype}: expected integers")
    wrong = ((codes_KT < 0) | (codes_KT >= codebook_size)).nonzero()
    if len(wrong):
        level, frame = wrong[0].tolist()
        value = int(codes_KT[level, frame])
        raise CodeError(f"{what} code {value} at level {level}, frame {frame}: expected 0 to {codebook_size - 1}")
