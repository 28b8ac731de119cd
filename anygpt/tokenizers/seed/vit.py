"""The image encoder: EVA-CLIP's vision transformer without a final norm.

Shape suffixes: B batch, C channels (of the image, or of a token), H and W pixels, N tokens (class token first).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anygpt.tokenizers.seed.blocks import Block, SelfAttention
from anygpt.tokenizers.seed.config import VitConfig


class VitAttention(SelfAttention):
    """Self-attention whose queries and values have a bias and whose keys have none."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__(width, num_heads, qkv_bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None

    def project(self, x_BNC: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x_BNC)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x_BNC, self.qkv.weight, bias)


class PatchEmbed(nn.Module):
    """Cut the image into squares and project each: [B, 3, H, W] -> [B, patches, C], row by row."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, kernel_size=size, stride=size)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.proj(image_BCHW).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Image [B, 3, img_size, img_size], normalised -> tokens [B, 1 + patches, embed_dim], not normed."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.num_patches, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                VitAttention(width, config.num_heads, qkv_bias=config.qkv_bias),
                config.mlp_width,
                ln_eps=config.ln_eps,
                hidden_act=config.hidden_act,
            )
            for _ in range(config.depth)
        )
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        patches = self.patch_embed(image_BCHW)
        class_token = self.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
