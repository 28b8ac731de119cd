"""From the image embedding to pixels: one interface, a small decoder of ours and the released unCLIP pipeline.

Shape suffixes: B batch, F embedding dimension, C image channels, H and W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anygpt.errors import ConfigError
from anygpt.tokenizers.seed.blocks import Block, SelfAttention, check_activation, check_heads


@dataclass(frozen=True, kw_only=True)
class SmallPixelConfig:
    """Shape of `SmallPixelDecoder`; the defaults draw 96x96 pixels from an embedding of 32 queries x 32 values."""

    embed_dim: int = 1024
    num_queries: int = 32
    width: int = 256
    depth: int = 5
    num_heads: int = 8
    patch_size: int = 12
    image_size: int = 96
    mlp_ratio: float = 4.0
    ln_eps: float = 1e-6
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        check_heads("pixels", self.width, self.num_heads)
        check_activation("pixels", self.hidden_act)
        if self.embed_dim % self.num_queries:
            raise ConfigError(f"pixels: embed_dim {self.embed_dim} is not a multiple of num_queries {self.num_queries}")
        if self.image_size % self.patch_size:
            raise ConfigError(f"pixels: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


class SmallPixelDecoder(nn.Module):
    """A transformer over the embedding's tokens and one learned query per image patch, trained by reconstruction."""

    def __init__(self, config: SmallPixelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.embed_dim // config.num_queries, width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_queries, width))
        self.patch_queries = nn.Parameter(torch.empty(1, config.grid**2, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                SelfAttention(width, config.num_heads, qkv_bias=True),
                int(width * config.mlp_ratio),
                ln_eps=config.ln_eps,
                hidden_act=config.hidden_act,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.ln_eps)
        self.head = nn.Linear(width, config.patch_size**2 * 3)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.patch_queries, std=0.02)

    def forward(self, embedding_BF: Tensor) -> Tensor:
        """Embeddings [B, F] -> images [B, 3, H, W], about [-1, 1], neither squashed nor clamped."""
        config, grid, side = self.config, self.config.grid, self.config.patch_size
        code_tokens = self.embed(embedding_BF.unflatten(1, (config.num_queries, -1))) + self.pos_embed
        tokens = torch.cat([code_tokens, self.patch_queries.expand(len(code_tokens), -1, -1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        patches = self.head(self.norm(tokens[:, config.num_queries :]))
        # Each patch holds its rows, columns and colours in this order: [grid, grid, side, side, 3] before folding.
        patches = patches.view(-1, grid, grid, side, side, 3)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, config.image_size, config.image_size)
