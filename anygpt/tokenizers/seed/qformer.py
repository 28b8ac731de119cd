"""The causal query transformer: learned queries read the image and come out as a left-to-right sequence.

Module names are those of the released checkpoints, which follow BERT's.
Shape suffixes: B batch, Q queries, N image tokens, C channels of a query, V channels of an image token.
"""

import torch
from torch import Tensor, nn

from anygpt.tokenizers.seed.blocks import ACTIVATIONS, attend
from anygpt.tokenizers.seed.config import QformerConfig


class _Projections(nn.Module):
    """Separate query, key and value projections."""

    def __init__(self, width: int, context_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)


class _AddNorm(nn.Module):
    """Project to `width`, add the residual, normalise."""

    def __init__(self, in_width: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Post-norm attention of the queries over themselves (causal) or over the image."""

    def __init__(self, config: QformerConfig, context_width: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.causal = causal
        self.self = _Projections(config.hidden_size, context_width)
        self.output = _AddNorm(config.hidden_size, config.hidden_size, config.layer_norm_eps)

    def forward(self, x_BQC: Tensor, context: Tensor) -> Tensor:
        part = self.self
        mixed = attend(part.query(x_BQC), part.key(context), part.value(context), self.num_heads, causal=self.causal)
        return self.output(mixed, x_BQC)


class _Intermediate(nn.Module):
    def __init__(self, config: QformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACTIVATIONS[config.hidden_act]()

    def forward(self, x_BQC: Tensor) -> Tensor:
        return self.act(self.dense(x_BQC))


class QformerLayer(nn.Module):
    """Causal self-attention, cross-attention to the image where the layer has it, feed-forward."""

    def __init__(self, config: QformerConfig, image_width: int, *, has_cross_attention: bool) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden_size, causal=True)
        self.crossattention = Attention(config, image_width, causal=False) if has_cross_attention else None
        self.intermediate_query = _Intermediate(config)
        self.output_query = _AddNorm(config.intermediate_size, config.hidden_size, config.layer_norm_eps)

    def forward(self, x_BQC: Tensor, image_BNV: Tensor) -> Tensor:
        x_BQC = self.attention(x_BQC, x_BQC)
        if self.crossattention is not None:
            x_BQC = self.crossattention(x_BQC, image_BNV)
        return self.output_query(self.intermediate_query(x_BQC), x_BQC)


class _Embeddings(nn.Module):
    """The queries' LayerNorm; `position_ids` only fills the place it has in released checkpoints."""

    def __init__(self, config: QformerConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.max_position_embeddings is not None:
            self.register_buffer("position_ids", torch.arange(config.max_position_embeddings)[None])

    def forward(self, queries_BQC: Tensor) -> Tensor:
        return self.LayerNorm(queries_BQC)


class _Encoder(nn.Module):
    def __init__(self, config: QformerConfig, image_width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            QformerLayer(config, image_width, has_cross_attention=index % config.cross_attention_freq == 0)
            for index in range(config.num_hidden_layers)
        )


class _Bert(nn.Module):
    def __init__(self, config: QformerConfig, image_width: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config, image_width)


class Qformer(nn.Module):
    """Queries [1, Q, C] and image tokens [B, N, V] -> [B, Q, C], where query i depends on queries 0..i only.

    The reference masks the future only when there are exactly 32 queries; here it is masked for any number.
    """

    def __init__(self, config: QformerConfig, image_width: int) -> None:
        super().__init__()
        self.bert = _Bert(config, image_width)

    def forward(self, queries_1QC: Tensor, image_BNV: Tensor) -> Tensor:
        # Up to the first look at the image the queries are the same for the whole batch and stay a batch of one.
        x = self.bert.embeddings(queries_1QC)
        for layer in self.bert.encoder.layer:
            x = layer(x, image_BNV)
        return x
