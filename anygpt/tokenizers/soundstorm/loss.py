"""Masked-prediction loss of SoundStorm (Borsos et al. 2023, section 3.2).

Shape suffixes: B batch, L frames, Q acoustic levels, C codebook entries, M masked positions.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anygpt.tokenizers.soundstorm.config import SoundStormConfig
from anygpt.tokenizers.soundstorm.model import SoundStorm


@dataclass(frozen=True, kw_only=True)
class Masking:
    """One training example's hidden part: the network's input and what it must predict."""

    input_BLQ: Tensor
    """int64, codes with C at hidden positions."""
    level_B: Tensor
    """int64, the level that each item predicts."""
    loss_mask_BL: Tensor
    """bool, frames of that level that count in the loss; all of them hidden."""


def mask_ratio(schedule: str, time: Tensor) -> Tensor:
    """Share of hidden frames at `time` in [0, 1]."""
    return torch.cos(time * math.pi / 2) if schedule == "cosine" else 1 - time


def draw_masking(
    codes_BLQ: Tensor,
    config: SoundStormConfig,
    *,
    generator: torch.Generator,
    prompt_B: Tensor | None = None,
    mask_BL: Tensor | None = None,
    released: bool = False,
) -> Masking:
    """Hide a random part of one level, and all levels above it, from the end of the prompt on.

    `prompt_B` int64 [B] is the number of prompt frames, drawn from [0, L-2] when absent; `mask_BL` bool is False at
    padding. With `released` the batch shares one prompt length and one level, and one frame fewer is hidden than
    intended, as in the published code: an item may then have no position in the loss. Otherwise every item draws its
    own and has at least one.
    """
    batch, length, levels = codes_BLQ.shape
    shared = 1 if released else batch
    if prompt_B is None:
        prompt_B = torch.randint(0, length - 1, (shared,), generator=generator)
    level_B = torch.randint(0, levels, (shared,), generator=generator).expand(batch)
    ratio_B = mask_ratio(config.schedule, torch.rand(batch, generator=generator))
    candidate_BL = (torch.arange(length) >= prompt_B[:, None]).expand(batch, length)
    if mask_BL is not None:
        candidate_BL = candidate_BL & mask_BL
    count_B = (ratio_B * candidate_BL.sum(dim=1)).long().clamp(min=1) - int(released)
    order = torch.rand(batch, length, generator=generator).masked_fill(~candidate_BL, 2.0).argsort(dim=1).argsort(dim=1)
    loss_mask_BL = (order < count_B[:, None]) & candidate_BL
    return Masking(
        input_BLQ=hide(codes_BLQ, level_B, loss_mask_BL, candidate_BL, config.mask_id),
        level_B=level_B,
        loss_mask_BL=loss_mask_BL,
    )


def hide(codes_BLQ: Tensor, level_B: Tensor, loss_mask_BL: Tensor, candidate_BL: Tensor, mask_id: int) -> Tensor:
    """`codes_BLQ` with masks at `loss_mask_BL` of each item's level, and at `candidate_BL` of the levels above."""
    above_BQ = torch.arange(codes_BLQ.shape[-1]) - level_B[:, None]
    here = (above_BQ[:, None] == 0) & loss_mask_BL[..., None]
    higher = (above_BQ[:, None] > 0) & candidate_BL[..., None]
    return codes_BLQ.masked_fill(here | higher, mask_id)


def masked_loss(
    model: SoundStorm,
    codes_BLQ: Tensor,
    semantic_BL: Tensor,
    masking: Masking,
    mask_BL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the hidden positions of each item's level, and the share predicted right (detached).

    Scores are computed for those positions and levels only. A batch without any position gives a loss of 0.
    """
    hidden_BLD = model.net.hidden(masking.input_BLQ, model.condition(semantic_BL), mask_BL)
    loss = hidden_BLD.new_zeros((), dtype=torch.float32)
    right = torch.zeros_like(loss)
    for level in masking.level_B.unique().tolist():
        chosen_BL = masking.loss_mask_BL & (masking.level_B == level)[:, None]
        target_M = codes_BLQ[..., level][chosen_BL]
        logits_MC = model.net.logits(hidden_BLD[chosen_BL][None], slice(level, level + 1))[0, :, 0].float()
        loss = loss + F.cross_entropy(logits_MC, target_M, reduction="sum")
        right = right + (logits_MC.argmax(dim=-1) == target_M).sum()
    positions = masking.loss_mask_BL.sum().clamp(min=1)
    return loss / positions, (right / positions).detach()
