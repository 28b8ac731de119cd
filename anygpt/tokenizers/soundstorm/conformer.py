"""The Conformer that SoundStorm runs over frames (Gulati et al. 2020; Borsos et al. 2023, section 3.2).

Shape suffixes: B batch, N frames, D model width, H heads, E head width. Activations stay [B, N, D] throughout. Module
names are those of the released state dict.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anygpt.tokenizers.soundstorm.config import SoundStormConfig

ROTARY_BASE = 10000.0


def rotary_angles(num_frames: int, dim_head: int, device: torch.device | None = None) -> Tensor:
    """Rotation angles, float32 [num_frames, dim_head]; both halves of a row are the same."""
    frequency = ROTARY_BASE ** (-torch.arange(0, dim_head, 2, device=device, dtype=torch.float32) / dim_head)
    angles = torch.arange(num_frames, device=device, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angles, angles], dim=-1)


def rotate(x_BHNE: Tensor, cos_NE: Tensor, sin_NE: Tensor) -> Tensor:
    """Rotate every pair (e, e + E/2) of the head width by its frame's angle."""
    first, second = x_BHNE.chunk(2, dim=-1)
    return x_BHNE * cos_NE + torch.cat([-second, first], dim=-1) * sin_NE


def attend(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, bias_B11N: Tensor | None) -> Tensor:
    """Softmax attention, scaled by E^-0.5, with `bias_B11N` added to the scores."""
    if torch.is_grad_enabled() and q_BHNE.device.type == "cpu":
        # On a CPU the fused kernel's backward pass costs about a third of a training step of these short sequences.
        scores = (q_BHNE * q_BHNE.shape[-1] ** -0.5) @ k_BHNE.transpose(-1, -2)
        scores = scores if bias_B11N is None else scores + bias_B11N
        return scores.softmax(dim=-1) @ v_BHNE
    return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=bias_B11N)


class PreNorm(nn.Module):
    """LayerNorm before a branch."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BND: Tensor, *args: Tensor | None) -> Tensor:
        return self.fn(self.norm(x_BND), *args)


class HalfStep(nn.Module):
    """A branch whose output counts half (the two feed-forwards of a block)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fn(x_BND) * 0.5


class FeedForward(nn.Module):
    """Linear, swish, linear."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        hidden = config.dim * config.ff_mult
        self.net = nn.Sequential(
            nn.Linear(config.dim, hidden),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, config.dim),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.net(x_BND)


class Attention(nn.Module):
    """Bidirectional attention with rotary positions."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        inner = config.heads * config.dim_head
        self.heads = config.heads
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_kv = nn.Linear(config.dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.dim)

    def forward(self, x_BND: Tensor, cos_NE: Tensor, sin_NE: Tensor, bias_B11N: Tensor | None) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x_BND), *self.to_kv(x_BND).chunk(2, dim=-1))
        )
        q, k = (rotate(part, cos_NE.to(part.dtype), sin_NE.to(part.dtype)) for part in (q, k))
        bias = None if bias_B11N is None else bias_B11N.to(q.dtype)
        return self.to_out(attend(q, k, v, bias).transpose(1, 2).flatten(2))


class ChannelNorm(nn.Module):
    """Normalise over channels with a variance that is clamped from below, not offset; gain without bias.

    The floor is 1e-6 for float32 and 1e-4 for any other dtype, as in the released network.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x_BND: Tensor) -> Tensor:
        floor = 1e-6 if x_BND.dtype == torch.float32 else 1e-4
        variance, mean = torch.var_mean(x_BND, dim=-1, unbiased=False, keepdim=True)
        return (x_BND - mean) * variance.clamp(min=floor).rsqrt() * self.gamma.flatten().to(x_BND.dtype)


class DepthwiseConv(nn.Module):
    """Per-channel convolution over frames, zero-padded to the same length."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x_BND: Tensor) -> Tensor:
        # As a 2-d convolution on a channels-last view: 3.5 times as fast as Conv1d on a CPU, and no copies.
        image = x_BND.transpose(1, 2).unsqueeze(2)
        padding = (0, self.conv.kernel_size[0] // 2)
        weight = self.conv.weight.unsqueeze(2)
        out = F.conv2d(image, weight, self.conv.bias, padding=padding, groups=self.conv.groups)
        return out.squeeze(2).transpose(1, 2)


class Pointwise(nn.Conv1d):
    """A convolution of width 1 (the released tensor is [out, in, 1]) applied to [B, N, D]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 1)

    def forward(self, x_BND: Tensor) -> Tensor:
        return F.linear(x_BND, self.weight.squeeze(-1), self.bias)


class ConvModule(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution; padding frames enter and leave the middle one as zeros."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        inner = config.dim * config.conv_expansion_factor
        # Identities and the GLU keep the positions that the released keys name.
        self.net1 = nn.Sequential(nn.LayerNorm(config.dim), nn.Identity(), Pointwise(config.dim, 2 * inner), nn.GLU())
        self.ds_conv = DepthwiseConv(inner, config.conv_kernel_size)
        self.net2 = nn.Sequential(
            nn.SiLU(), ChannelNorm(inner), Pointwise(inner, config.dim), nn.Identity(), nn.Dropout(config.dropout)
        )

    def forward(self, x_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        x = self.net1(x_BND)
        if mask_BN is None:
            return self.net2(self.ds_conv(x))
        outside = ~mask_BN.unsqueeze(-1)
        x = self.ds_conv(x.masked_fill(outside, 0.0)).masked_fill(outside, 0.0)
        return self.net2(x)


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.ff1 = HalfStep(PreNorm(config.dim, FeedForward(config)))
        self.attn = PreNorm(config.dim, Attention(config))
        self.conv = ConvModule(config)
        self.ff2 = HalfStep(PreNorm(config.dim, FeedForward(config)))
        self.post_norm = nn.LayerNorm(config.dim)

    def forward(
        self, x_BND: Tensor, cos_NE: Tensor, sin_NE: Tensor, mask_BN: Tensor | None, bias_B11N: Tensor | None
    ) -> Tensor:
        x = x_BND + self.ff1(x_BND)
        x = x + self.attn(x, cos_NE, sin_NE, bias_B11N)
        x = x + self.conv(x, mask_BN)
        x = x + self.ff2(x)
        return self.post_norm(x)


class Conformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.dim_head = config.dim_head
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(config.depth))

    def forward(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """`x_BND` -> same shape; `mask_BN` bool, False at padding frames."""
        angles = rotary_angles(x_BND.shape[1], self.dim_head, x_BND.device)
        cos, sin = angles.cos(), angles.sin()
        bias = None
        if mask_BN is not None:
            # The most negative finite value, not -inf: a row without any valid key then averages instead of giving NaN.
            bias = torch.zeros(mask_BN.shape, dtype=x_BND.dtype, device=x_BND.device)
            bias = bias.masked_fill(~mask_BN, torch.finfo(x_BND.dtype).min)[:, None, None, :]
        for layer in self.layers:
            x_BND = layer(x_BND, cos, sin, mask_BN, bias)
        return x_BND
