"""SoundStorm: acoustic codes (residual levels 2 to 8) from the semantic level and a voice prompt.

Borsos et al. 2023, "SoundStorm: Efficient Parallel Audio Generation", as trained on SpeechTokenizer codes for AnyGPT.
Shape suffixes: B batch, N target frames, P prompt frames, L = P + N, Q acoustic levels, C codebook entries, D width.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anygpt.errors import CodeError
from anygpt.tokenizers.soundstorm.config import SoundStormConfig
from anygpt.tokenizers.soundstorm.conformer import Conformer

ALL_LEVELS = slice(None)


class LevelLinear(nn.Module):
    """One matrix per level: [..., Q, D] -> [..., Q, C]."""

    def __init__(self, levels: int, dim: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(levels, dim, out) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(1, 1, levels, out))

    def forward(self, x_BNQD: Tensor, levels: slice = ALL_LEVELS) -> Tensor:
        bias = self.bias[:, :, levels]
        return torch.einsum("bnqd,qdc->bnqc", x_BNQD, self.weight[levels]) + bias.to(x_BNQD.dtype)


class SoundStormNet(nn.Module):
    """Embeds the codes of a frame as one vector, adds the condition, and scores all levels of every frame."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.config = config
        self.conformer = Conformer(config)
        self.code_embeds = nn.Embedding(config.num_quantizers * (config.codebook_size + 1), config.dim)
        self.heads = nn.Sequential(nn.Linear(config.dim, config.dim * config.num_quantizers))
        # The Identity keeps the positions that the released keys name.
        self.to_logits = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Identity(),
            LevelLinear(config.num_quantizers, config.dim, config.codebook_size),
        )

    def embed(self, codes_BLQ: Tensor) -> Tensor:
        """Sum of the levels' embeddings, float [B, L, D]; the mask code is `codebook_size`."""
        levels = torch.arange(self.config.num_quantizers, device=codes_BLQ.device)
        ids = codes_BLQ + levels * (self.config.codebook_size + 1)
        summed = F.embedding_bag(ids.flatten(0, 1), self.code_embeds.weight, mode="sum")
        return summed.unflatten(0, codes_BLQ.shape[:2])

    def hidden(self, codes_BLQ: Tensor, cond_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """The Conformer's output, float [B, L, D]."""
        return self.conformer(self.embed(codes_BLQ) + cond_BLD, mask_BL)

    def head_embeddings(self, hidden_BLD: Tensor, levels: slice = ALL_LEVELS) -> Tensor:
        """One vector per level, float [B, L, Q', D] for the Q' levels asked for."""
        head = cast(nn.Linear, self.heads[0])
        dim = self.config.dim
        weight = head.weight.unflatten(0, (-1, dim))[levels]
        bias = head.bias.unflatten(0, (-1, dim))[levels]
        return F.linear(hidden_BLD, weight.flatten(0, 1), bias.flatten()).unflatten(-1, (-1, dim))

    def logits(self, hidden_BLD: Tensor, levels: slice = ALL_LEVELS) -> Tensor:
        """Scores, float [B, L, Q', C], computed for the levels asked for only."""
        embeddings = self.to_logits[0](self.head_embeddings(hidden_BLD, levels))
        return self.to_logits[2](embeddings, levels)

    def forward(
        self, codes_BLQ: Tensor, cond_BLD: Tensor, mask_BL: Tensor | None = None, levels: slice = ALL_LEVELS
    ) -> Tensor:
        """`codes_BLQ` int64 in [0, C], C being the mask; returns logits [B, L, Q', C]."""
        return self.logits(self.hidden(codes_BLQ, cond_BLD, mask_BL), levels)


class SoundStorm(nn.Module):
    """The network with its semantic condition; `generate` fills in the acoustic levels."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.config = config
        self.net = SoundStormNet(config)
        self.semantic_token_emb = nn.Embedding(config.num_semantic_token_ids, config.dim)

    def condition(self, semantic_BL: Tensor) -> Tensor:
        """Embedded semantic tokens, float [B, L, D]; the pad id becomes a zero vector."""
        pad = semantic_BL == self.config.semantic_pad_id
        embedded = self.semantic_token_emb(semantic_BL.masked_fill(pad, 0))
        return embedded.masked_fill(pad.unsqueeze(-1), 0.0)

    def forward(self, codes_BLQ: Tensor, semantic_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits [B, L, Q, C] for acoustic codes (mask = C) under semantic tokens; `mask_BL` is False at padding."""
        return self.net(codes_BLQ, self.condition(semantic_BL), mask_BL)

    @torch.no_grad()
    def generate(
        self,
        semantic_tokens_BN: Tensor,
        *,
        prompt_BP8: Tensor | None = None,
        steps: int = 1,
        greedy: bool = True,
        generator: torch.Generator | None = None,
        is_cat_semantic_token: bool = True,
    ) -> Tensor:
        """Acoustic codes for semantic tokens, in the voice of the prompt.

        `semantic_tokens_BN` int64 [B, N]; `prompt_BP8` int64 [B, P, 1+Q] (semantic first) or None for any voice;
        `steps` is the number of refinements of the first acoustic level. Returns int64 [B, N, 1+Q], or [B, N, Q]
        without the semantic column. Uses the sampler named by `config.sampling`. Raises CodeError for codes out of
        range, wrong shapes or `steps` < 1.
        """
        from anygpt.tokenizers.soundstorm import sampling

        prompt = self._check_codes(semantic_tokens_BN, prompt_BP8, steps)
        semantic = semantic_tokens_BN
        if self.config.sampling == "paper":
            codes_BNQ = sampling.generate_paper(self, semantic, prompt, steps=steps, greedy=greedy, generator=generator)
        else:
            uniform = sampling.uniform_source(generator, semantic.device)
            codes_BNQ = sampling.generate_released(self, semantic, prompt, steps=steps, greedy=greedy, uniform=uniform)
        return torch.cat([semantic.unsqueeze(-1), codes_BNQ], dim=-1) if is_cat_semantic_token else codes_BNQ

    def _check_codes(self, semantic_BN: Tensor, prompt_BP8: Tensor | None, steps: int) -> Tensor:
        """Validate the input of `generate`; an absent prompt becomes one of length zero."""
        config = self.config
        if steps < 1:
            raise CodeError(f"steps: got {steps}, expected at least 1")
        if semantic_BN.dim() != 2 or semantic_BN.shape[1] == 0:
            raise CodeError(f"semantic tokens: got shape {list(semantic_BN.shape)}, expected [batch, frames >= 1]")
        columns = 1 + config.num_quantizers
        if prompt_BP8 is None:
            prompt_BP8 = semantic_BN.new_empty(semantic_BN.shape[0], 0, columns)
        if prompt_BP8.dim() != 3 or prompt_BP8.shape[0] != semantic_BN.shape[0] or prompt_BP8.shape[2] != columns:
            expected = f"[{semantic_BN.shape[0]}, frames, {columns}]"
            raise CodeError(f"voice prompt: got shape {list(prompt_BP8.shape)}, expected {expected}")
        _check_range("semantic tokens", semantic_BN, config.num_semantic_token_ids)
        _check_range("voice prompt, semantic level", prompt_BP8[..., 0], config.num_semantic_token_ids)
        _check_range("voice prompt, acoustic levels", prompt_BP8[..., 1:], config.codebook_size)
        return prompt_BP8


def _check_range(what: str, codes: Tensor, size: int) -> None:
    if codes.numel() == 0:
        return
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= size:
        raise CodeError(f"{what}: codes span {low} to {high}, expected 0 to {size - 1}")
