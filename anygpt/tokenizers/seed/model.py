"""The SEED network: image -> 32 causal codes -> image embedding.

Module names and order are those of the released `seed_quantizer.pt`.
Shape suffixes: B batch, C image channels, H and W pixels, Q queries, E codebook dimension, F embedding dimension.
In `hidden_BQH`, H is the width of the query transformer.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anygpt.tokenizers.seed.blocks import Block, SelfAttention
from anygpt.tokenizers.seed.config import SeedConfig
from anygpt.tokenizers.seed.qformer import Qformer
from anygpt.tokenizers.seed.vit import VisionTransformer


class VectorQuantizer(nn.Module):
    """Nearest codebook entry by squared distance; `embedding.weight` [entries, E] is the codebook."""

    def __init__(self, n_embed: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)

    def squared_distances(self, z: Tensor) -> Tensor:
        """Squared distance of each vector [..., E] to each entry, float32 [..., entries].

        Expanded as the reference does it; in float32 because the terms cancel.
        """
        z, codebook = z.float(), self.embedding.weight.float()
        return z.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * z @ codebook.t()

    def forward(self, z_BQE: Tensor) -> tuple[Tensor, Tensor]:
        """Indices int64 [B, Q] and the entries [B, Q, E] that they stand for.

        The gradient of the entries reaches the codebook, not `z_BQE`: a recipe adds its straight-through estimator.
        """
        with torch.no_grad():
            indices_BQ = self.squared_distances(z_BQE).argmin(dim=-1)
        return indices_BQ, self.embedding(indices_BQ)


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 whatever the input's type, since no norm has bounded the tokens before it."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def quantize_loss(z_BQE: Tensor, quantized_BQE: Tensor, beta: float = 0.25) -> Tensor:
    """The VQ-VAE loss: codebook towards features plus `beta` times features towards codebook (commitment)."""
    return F.mse_loss(quantized_BQE, z_BQE.detach()) + beta * F.mse_loss(z_BQE, quantized_BQE.detach())


class SeedModel(nn.Module):
    """Encoder, codebook and embedding decoder of SEED-2 (Ge et al. 2023, section 3)."""

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        self.config = config
        hidden, queries, code_dim = config.qformer.hidden_size, config.num_query_token, config.codebook_embed_dim
        self.query_tokens = nn.Parameter(torch.empty(1, queries, hidden))
        if config.recon_s:
            self.pos_embed = nn.Parameter(torch.empty(1, queries, hidden))
        self.pos_embed_image = nn.Parameter(torch.empty(1, queries, hidden))
        self.visual_encoder = VisionTransformer(config.vit)
        self.ln_vision = Float32LayerNorm(config.vit.embed_dim, eps=config.ln_vision_eps)
        self.Qformer = Qformer(config.qformer, config.vit.embed_dim)
        self.quantize = VectorQuantizer(config.n_embed, code_dim)
        self.encode_task_layer = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, code_dim))
        self.decode_task_layer = nn.Sequential(nn.Linear(code_dim, code_dim), nn.Tanh(), nn.Linear(code_dim, hidden))
        if config.recon_s:
            self.blocks = self._decode_blocks()
        self.blocks_image = self._decode_blocks()
        widths = (hidden, *config.image_down_dims)
        down: list[nn.Module] = []
        for in_width, out_width in itertools.pairwise(widths):
            down += [nn.Linear(in_width, out_width, bias=False), nn.ReLU()]
        self.image_down = nn.Sequential(*down[:-1])
        self.distill_image_proj = nn.Linear(queries * widths[-1], config.image_features_dim)
        for layer in self.image_down:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        # A LayerNorm follows at once, so this scale changes nothing but how far one optimiser step turns a query.
        nn.init.normal_(self.query_tokens, std=1.0)
        for name in ("pos_embed", "pos_embed_image"):
            if hasattr(self, name):
                nn.init.trunc_normal_(getattr(self, name), std=0.02)

    def _decode_blocks(self) -> nn.ModuleList:
        width, config = self.config.qformer.hidden_size, self.config.decode_blocks
        return nn.ModuleList(
            Block(
                width,
                SelfAttention(width, config.num_heads, qkv_bias=config.qkv_bias),
                int(width * config.mlp_ratio),
                ln_eps=config.ln_eps,
                hidden_act=config.hidden_act,
            )
            for _ in range(config.depth)
        )

    def encode_features(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> the features before quantization, [B, Q, E]."""
        tokens = self.visual_encoder(image_BCHW)
        return self.encode_task_layer(self.Qformer(self.query_tokens, self.ln_vision(tokens)))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> codes int64 [B, Q] in [0, n_embed)."""
        return self.quantize(self.encode_features(image_BCHW))[0]

    def embed(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Indices int64 [B, Q], or codebook vectors [B, Q, E] -> (`hidden_BQH` after the blocks, `embedding_BF`)."""
        quantized_BQE = codes if codes.is_floating_point() else self.quantize.embedding(codes)
        hidden_BQH = self.decode_task_layer(quantized_BQE) + self.pos_embed_image
        for block in self.blocks_image:
            hidden_BQH = block(hidden_BQH)
        return hidden_BQH, self.distill_image_proj(self.image_down(hidden_BQH).flatten(1))
