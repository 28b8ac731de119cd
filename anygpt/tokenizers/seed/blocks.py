"""Transformer parts that the image encoder, the query transformer and the decoders share.

Shape suffixes: B batch, N tokens, C channels, H heads, D channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anygpt.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
"""What `hidden_act` may be; GELU is the exact one."""


def check_activation(where: str, name: str) -> None:
    """Raise ConfigError, naming the part of the configuration, unless the activation is known."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"{where}.hidden_act: '{name}' is unknown; use one of {', '.join(ACTIVATIONS)}")


def check_heads(where: str, width: int, num_heads: int) -> None:
    """Raise ConfigError, naming the part of the configuration, unless the heads divide the width."""
    if num_heads < 1 or width % num_heads:
        raise ConfigError(f"{where}: width {width} can't be split over {num_heads} heads; give a divisor of it")


def attend(q_BNC: Tensor, k_BMC: Tensor, v_BMC: Tensor, num_heads: int, *, causal: bool = False) -> Tensor:
    """Multi-head attention of queries [B, N, C] over keys and values [B, M, C]; returns [B, N, C].

    `causal` lets token i see tokens 0..i. The batch of the queries may be 1: it is then shared.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q_BNC, k_BMC, v_BMC))
    if q.is_cuda:
        mixed = F.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v, is_causal=causal)
    else:
        # On a CPU, at up to 257 tokens, the backward pass of the fused kernel costs more than these two products.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if causal:
            is_future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(is_future, float("-inf"))
        mixed = scores.softmax(dim=-1) @ v
    return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, hidden_act: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[hidden_act]()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_BNC)))


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def project(self, x_BNC: Tensor) -> Tensor:
        """Queries, keys and values side by side, [B, N, 3 * C]."""
        return self.qkv(x_BNC)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q, k, v = self.project(x_BNC).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, self.num_heads))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input."""

    def __init__(self, width: int, attn: SelfAttention, mlp_hidden: int, *, ln_eps: float, hidden_act: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=ln_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(width, eps=ln_eps)
        self.mlp = Mlp(width, mlp_hidden, hidden_act)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
        return x_BNC + self.mlp(self.norm2(x_BNC))
