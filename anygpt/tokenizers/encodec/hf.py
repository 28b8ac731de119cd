"""Encodec from transformers, as an audio codec network.

Shape suffixes: B batch, K levels, T frames or samples.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from anygpt.errors import CheckpointError
from anygpt.tokenizers.quiet import loading_quietly
from anygpt.tokenizers.streams import Conv, Recurrent, Stage, Upsample, Windowed, context_frames

if TYPE_CHECKING:
    from transformers import EncodecModel


@dataclass(frozen=True, kw_only=True)
class HFEncodecConfig:
    """The `model` field of config.json for the backbone "hf"."""

    name_or_path: str
    """A folder, relative to the tokenizer's own, or a model's name on the hub."""
    num_codebooks: int = 4
    """Levels used; the model must have a bandwidth that gives just as many."""


class HFEncodec(nn.Module):
    """The encoder, quantizer and decoder of a `transformers.EncodecModel`, used at `num_codebooks` levels.

    Source: Encodec (Defossez et al. 2022). Raises CheckpointError for a stereo or loudness-normalising model, and when
    no bandwidth of the model gives that number of levels.
    """

    def __init__(self, model: "EncodecModel", num_codebooks: int, source: str):
        super().__init__()
        config = model.config
        if config.audio_channels != 1 or config.normalize:
            raise CheckpointError(f"{source}: a stereo or normalising Encodec; expected the 24 or 32 kHz mono model")
        self.encoder = model.encoder
        self.quantizer = model.quantizer
        self.decoder = model.decoder
        self.sample_rate = int(config.sampling_rate)
        self.hop_length = int(config.hop_length)
        self.codebook_size = int(config.codebook_size)
        self.n_q = num_codebooks
        self.norm_type = config.norm_type
        by_levels = {
            self.quantizer.get_num_quantizers_for_bandwidth(bandwidth): bandwidth
            for bandwidth in config.target_bandwidths
        }
        if num_codebooks not in by_levels:
            known = ", ".join(f"{bandwidth:g} kbps gives {levels}" for levels, bandwidth in by_levels.items())
            raise CheckpointError(f"{source}: no bandwidth gives {num_codebooks} codebooks ({known})")
        self.bandwidth = by_levels[num_codebooks]

    @classmethod
    def load(cls, config: HFEncodecConfig, folder: Path | None = None) -> "HFEncodec":
        """Load in float32; `folder` is where a relative path starts. Raises CheckpointError for an unfit model."""
        from transformers import EncodecModel

        local = (folder or Path()) / config.name_or_path
        source = str(local) if local.is_dir() else config.name_or_path
        try:
            with loading_quietly():
                loaded: Any = EncodecModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise CheckpointError(f"{source}: no Encodec model there or on the hub ({reason})") from None
        model, report = loaded
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise CheckpointError(f"{source}: {len(missing)} missing keys, first '{missing[0]}'")
        return cls(model, config.num_codebooks, source).eval()

    def encode(self, wav_B1T: Tensor, n_q: int | None = None) -> Tensor:
        """Codes int64 [K, B, ceil(T / hop_length)] of the whole signal, without chunks; K is `n_q`, by default all."""
        return self.quantizer.encode(self.encoder(wav_B1T), self.bandwidth)[:n_q]

    def decode(self, codes_KBT: Tensor) -> Tensor:
        """Waveform [B, 1, T * hop_length] of the first K levels."""
        return cast(Tensor, self.decoder(self.quantizer.decode(codes_KBT)))

    def decode_stages(self) -> list[Stage]:
        """`decode` in parts: convolutions, the forward LSTM, convolutions.

        With `time_group_norm`, which normalises over the whole recording, it is one part that needs all frames.
        """
        if self.norm_type == "time_group_norm":
            return [Windowed(self.decode, None, self.hop_length)]
        before, lstm, *rest = self.decoder.layers
        after, core = nn.Sequential(*rest), cast(nn.LSTM, lstm.lstm)
        return [
            Windowed(lambda codes_KBT: before(self.quantizer.decode(codes_KBT)), context_frames(_layers(before))),
            Recurrent(lambda x_BCT, state: _advance(core, x_BCT, state)),
            Windowed(after, context_frames(_layers(after)), self.hop_length),
        ]


def _advance(lstm: nn.LSTM, x_BCT: Tensor, state: Any) -> tuple[Tensor, Any]:
    """What transformers' `EncodecLSTM` computes, with the state that it throws away."""
    x_TBC = x_BCT.permute(2, 0, 1)
    y_TBC, state = lstm(x_TBC, state)
    return (y_TBC + x_TBC).permute(1, 2, 0), state


def _layers(module: nn.Module) -> list[Conv | Upsample]:
    """The layers of `module` that look beyond a sample. A block's branches run side by side, but only one of them has
    any."""
    from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecConvTranspose1d

    layers: list[Conv | Upsample] = []
    for child in module.modules():
        if isinstance(child, EncodecConv1d):
            padding = int(child.padding_total)
            layers.append(Conv(padding if child.causal else padding - padding // 2))
        elif isinstance(child, EncodecConvTranspose1d):
            kernel, stride = child.conv.kernel_size[0], child.conv.stride[0]
            right = math.ceil((kernel - stride) * child.trim_right_ratio) if child.causal else (kernel - stride) // 2
            layers.append(Upsample(kernel, stride, kernel - stride - right))
    return layers
