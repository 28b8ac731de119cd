"""SEANet encoder and decoder of SpeechTokenizer: strided convolutions around LSTMs.

Module and parameter names are the released checkpoints' (`conv.conv.weight_g`, `block.1`, `shortcut`, `lstm`, `alpha`).
Source: Encodec (Defossez et al. 2022, section 3.1) and SpeechTokenizer (Zhang et al. 2023, section 3.2); Snake: Ziyin
et al. 2020 as in BigVGAN (Lee et al. 2022).

Shape suffixes: B batch, C channels, T samples or frames.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anygpt.tokenizers.streams import Conv, Recurrent, Stage, Upsample, Windowed, context_frames

LSTMState = tuple[Tensor, Tensor]


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, with one learned `alpha` per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT + (self.alpha * x_BCT).sin().square() / (self.alpha + 1e-9)


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {"ELU": lambda channels: nn.ELU(), "Snake": Snake}
"""Activation name in the configuration -> constructor that takes the number of channels."""


class _WeightNorm(nn.Module):
    """A kernel kept as direction `weight_v` and length `weight_g` per slice of the first axis.

    The released checkpoints use these names; torch's own parametrisation writes others, and its old function that
    wrote these is deprecated.
    """

    folded: Tensor | None

    def __init__(self, shape: tuple[int, int, int], bias_size: int):
        super().__init__()
        fan_in = shape[1] * shape[2]
        bound = fan_in**-0.5
        self.bias = nn.Parameter(torch.empty(bias_size).uniform_(-bound, bound))
        kernel = torch.empty(shape).uniform_(-bound, bound)
        self.weight_g = nn.Parameter(_slice_norms(kernel))
        self.weight_v = nn.Parameter(kernel)
        self.register_buffer("folded", None, persistent=False)

    @property
    def weight(self) -> Tensor:
        if self.folded is not None:
            return self.folded
        return self.weight_v * (self.weight_g / _slice_norms(self.weight_v))

    def fold(self) -> None:
        """Keep the product from now on, until `train()`; weights loaded after this would go unnoticed."""
        self.folded = None
        self.folded = self.weight.detach()

    def train(self, mode: bool = True) -> "_WeightNorm":
        if mode:
            self.folded = None
        return super().train(mode)


def _slice_norms(kernel: Tensor) -> Tensor:
    return torch.linalg.vector_norm(kernel, dim=(1, 2), keepdim=True)


class _Conv1d(_WeightNorm):
    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int, dilation: int):
        super().__init__((channels_out, channels_in, kernel_size), channels_out)
        self.stride = stride
        self.dilation = dilation

    def forward(self, x_BCT: Tensor) -> Tensor:
        return F.conv1d(x_BCT, self.weight, self.bias, stride=self.stride, dilation=self.dilation)


class _ConvTranspose1d(_WeightNorm):
    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int):
        super().__init__((channels_in, channels_out, kernel_size), channels_out)
        self.stride = stride

    def forward(self, x_BCT: Tensor) -> Tensor:
        return F.conv_transpose1d(x_BCT, self.weight, self.bias, stride=self.stride)


class PaddedConv1d(nn.Module):
    """Convolution with non-causal reflect padding: T samples in, ceil(T / stride) out."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, *, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.stride = stride
        self.padding = (kernel_size - 1) * dilation - (stride - 1)
        self.conv = nn.ModuleDict({"conv": _Conv1d(channels_in, channels_out, kernel_size, stride, dilation)})

    def forward(self, x_BCT: Tensor) -> Tensor:
        right = self.padding // 2
        left = self.padding - right
        to_full_stride = -x_BCT.shape[-1] % self.stride
        return cast(Tensor, self.conv["conv"](_reflect_pad(x_BCT, left, right + to_full_stride)))


def _reflect_pad(x_BCT: Tensor, left: int, right: int) -> Tensor:
    """Reflect at both ends; a signal too short for that is lengthened with zeros that are cut off again."""
    missing = max(left, right) - x_BCT.shape[-1] + 1
    if missing <= 0:
        return F.pad(x_BCT, (left, right), mode="reflect")
    return F.pad(F.pad(x_BCT, (0, missing)), (left, right), mode="reflect")[..., :-missing]


class CroppedConvTranspose1d(nn.Module):
    """Transposed convolution cut to exactly T * stride samples."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, *, stride: int):
        super().__init__()
        self.crop = kernel_size - stride
        self.convtr = nn.ModuleDict({"convtr": _ConvTranspose1d(channels_in, channels_out, kernel_size, stride)})

    def forward(self, x_BCT: Tensor) -> Tensor:
        y_BCT = self.convtr["convtr"](x_BCT)
        right = self.crop // 2
        return cast(Tensor, y_BCT[..., self.crop - right : y_BCT.shape[-1] - right])


class ResidualBlock(nn.Module):
    """Bottleneck of half the width beside a 1x1 convolution."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, activation: str):
        super().__init__()
        make_activation = ACTIVATIONS[activation]
        hidden = channels // 2
        self.block = nn.Sequential(
            make_activation(channels),
            PaddedConv1d(channels, hidden, kernel_size, dilation=dilation),
            make_activation(hidden),
            PaddedConv1d(hidden, channels, 1),
        )
        self.shortcut = PaddedConv1d(channels, channels, 1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return cast(Tensor, self.shortcut(x_BCT) + self.block(x_BCT))


class ResidualLSTM(nn.Module):
    """LSTM added to its input; in both directions the output is twice as wide and the input is repeated."""

    def __init__(self, channels: int, num_layers: int, *, bidirectional: bool):
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers, bidirectional=bidirectional)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.advance(x_BCT, None)[0]

    def advance(self, x_BCT: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """The output for the next piece of a signal, and the state after it; None is the state before the first."""
        x_TBC = x_BCT.permute(2, 0, 1)
        y_TBC, state = self.lstm(x_TBC, state)
        if self.lstm.bidirectional:
            x_TBC = torch.cat((x_TBC, x_TBC), dim=-1)
        return (y_TBC + x_TBC).permute(1, 2, 0), state


class SEANetEncoder(nn.Module):
    """Waveform [B, 1, T] -> vectors [B, dimension, ceil(T / product of strides)], dividing by the last stride first."""

    def __init__(
        self,
        *,
        n_filters: int,
        strides: tuple[int, ...],
        dimension: int,
        n_residual_layers: int,
        residual_kernel_size: int,
        dilation_base: int,
        lstm_layers: int,
        bidirectional: bool,
        activation: str,
    ):
        super().__init__()
        width = n_filters
        layers: list[nn.Module] = [PaddedConv1d(1, width, 7)]
        for stride in reversed(strides):
            layers += [
                ResidualBlock(width, residual_kernel_size, dilation_base**j, activation)
                for j in range(n_residual_layers)
            ]
            layers += [ACTIVATIONS[activation](width), PaddedConv1d(width, 2 * width, 2 * stride, stride=stride)]
            width *= 2
        layers.append(ResidualLSTM(width, lstm_layers, bidirectional=bidirectional))
        width *= 2 if bidirectional else 1
        layers += [ACTIVATIONS[activation](width), PaddedConv1d(width, dimension, 7)]
        self.model = nn.Sequential(*layers)

    def forward(self, wav_B1T: Tensor) -> Tensor:
        return cast(Tensor, self.model(wav_B1T))


class SEANetDecoder(nn.Module):
    """Vectors [B, dimension, T] -> waveform [B, 1, T * product of strides], multiplying by the first stride first."""

    def __init__(
        self,
        *,
        n_filters: int,
        strides: tuple[int, ...],
        dimension: int,
        n_residual_layers: int,
        residual_kernel_size: int,
        dilation_base: int,
        lstm_layers: int,
        activation: str,
    ):
        super().__init__()
        width = n_filters * 2 ** len(strides)
        layers: list[nn.Module] = [PaddedConv1d(dimension, width, 7)]
        layers.append(ResidualLSTM(width, lstm_layers, bidirectional=False))
        for stride in strides:
            layers += [
                ACTIVATIONS[activation](width),
                CroppedConvTranspose1d(width, width // 2, 2 * stride, stride=stride),
            ]
            width //= 2
            layers += [
                ResidualBlock(width, residual_kernel_size, dilation_base**j, activation)
                for j in range(n_residual_layers)
            ]
        layers += [ACTIVATIONS[activation](width), PaddedConv1d(width, 1, 7)]
        self.hop_length = math.prod(strides)
        self.model = nn.Sequential(*layers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return cast(Tensor, self.model(x_BCT))

    def stages(self, lookup: Callable[[Tensor], Tensor]) -> list[Stage]:
        """The decoder in parts that can run over pieces; `lookup` gives the vectors [B, dimension, T] of codes."""
        before, lstm, after = self.model[0], self.model[1], self.model[2:]
        assert isinstance(lstm, ResidualLSTM) and not lstm.lstm.bidirectional
        return [
            Windowed(lambda codes_KBT: before(lookup(codes_KBT)), context_frames(_layers(before))),
            Recurrent(lstm.advance),
            Windowed(after, context_frames(_layers(after)), self.hop_length),
        ]


def _layers(module: nn.Module) -> list[Conv | Upsample]:
    """The layers of `module` that look beyond a sample. A block's branches run side by side, but only one of them has
    any."""
    layers: list[Conv | Upsample] = []
    for child in module.modules():
        if isinstance(child, PaddedConv1d):
            layers.append(Conv(child.padding - child.padding // 2))
        elif isinstance(child, CroppedConvTranspose1d):
            conv = child.convtr["convtr"]
            assert isinstance(conv, _ConvTranspose1d)
            layers.append(Upsample(conv.weight_v.shape[-1], conv.stride, child.crop - child.crop // 2))
    return layers


def fold_weight_norm(module: nn.Module) -> None:
    """Compute every kernel of `module` once, for inference; `train()` undoes it."""
    for child in module.modules():
        if isinstance(child, _WeightNorm):
            child.fold()
