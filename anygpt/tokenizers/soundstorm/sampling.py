"""Two samplers for SoundStorm: the released one, token for token, and the paper's.

Shape suffixes as in `model`: B batch, P prompt, N target frames, L = P + N, Q acoustic levels, C codebook entries. A
flattened sequence is frame-major with the level fastest: position = frame * Q + level.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from anygpt.tokenizers.soundstorm.model import SoundStorm

UniformSource = Callable[[tuple[int, int, int]], Tensor]
"""Gives uniform [0, 1) float32 noise of a shape; every call draws anew."""


def uniform_source(generator: torch.Generator | None, device: torch.device) -> UniformSource:
    """Noise from `generator` (drawn on its own device), else from PyTorch's default CPU generator."""

    def draw(shape: tuple[int, int, int]) -> Tensor:
        source = generator.device if generator is not None else torch.device("cpu")
        return torch.rand(shape, generator=generator, device=source).to(device)

    return draw


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise; the two offsets are part of the released arithmetic."""
    return -torch.log(-torch.log(uniform + 1e-10) + 1e-10)


def mask_counts(steps: int, length: int) -> list[int]:
    """How many positions stay masked after each of the steps+1 iterations: cos(t pi/2) * length, truncated."""
    times = torch.linspace(0.0, 1.0, steps + 1)
    return (torch.cos(times * math.pi * 0.5) * length).long().tolist()


def keep_top(logits: Tensor, drop_share: float) -> Tensor:
    """-inf for all but the ceil((1 - drop_share) * C) largest logits of each row."""
    kept = math.ceil((1 - drop_share) * logits.shape[-1])
    values, indices = logits.topk(kept, dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, indices, values)


def generate_released(
    model: "SoundStorm",
    semantic_BN: Tensor,
    prompt_BP8: Tensor,
    *,
    steps: int,
    greedy: bool,
    uniform: UniformSource,
    num_full_sampling_levels: int = 1,
    topk_pres: float = 0.7,
) -> Tensor:
    """The published inference of AnyGPT, with its departures from the paper, so that tokens are equal.

    Confidences are ranked over all levels and the prompt together; levels after the first are decoded by argmax of
    that level and all higher ones, at prompt positions too, and are not masked again. Returns int64 [B, N, Q].
    """
    config = model.config
    (batch, target), levels = semantic_BN.shape, config.num_quantizers
    prompt = prompt_BP8.shape[1]
    length = prompt + target
    cond = model.condition(torch.cat([prompt_BP8[..., 0], semantic_BN], dim=1))
    unknown = semantic_BN.new_full((batch, target, levels), config.mask_id)
    codes = torch.cat([prompt_BP8[..., 1:], unknown], dim=1)
    is_target = torch.arange(length, device=codes.device)[None, :, None] >= prompt
    masked = is_target.expand(batch, length, levels)
    counts = mask_counts(steps, length)

    for level in range(num_full_sampling_levels):
        for iteration, count in enumerate(counts):
            logits = model.net(codes, cond)
            if greedy and count == 0:
                sample = logits.argmax(dim=-1)
            else:
                logits = keep_top(logits, topk_pres)
                sample = _noisy_argmax(logits, iteration / steps, uniform)
            codes = torch.where(masked, sample, codes)
            if count == 0:
                continue
            doubt = 1 - logits.softmax(dim=-1).gather(-1, sample.unsqueeze(-1)).squeeze(-1)
            least_sure = doubt.flatten(1).topk(count, dim=-1).indices
            masked = torch.zeros_like(doubt, dtype=torch.bool).flatten(1).scatter(1, least_sure, True)
            masked = masked.view(batch, length, levels)
            above = torch.arange(levels, device=codes.device) > level
            masked = (masked | above) & is_target
            codes = codes.masked_fill(masked, config.mask_id)

    for level in range(num_full_sampling_levels, levels):
        # Only this level and those above are written, so only they are scored.
        logits = model.net(codes, cond, None, slice(level, None))
        if not greedy:
            logits = _add_cold_noise(keep_top(logits, topk_pres), levels, uniform)
        codes = torch.cat([codes[..., :level], logits.argmax(dim=-1)], dim=-1)
    return codes[:, prompt:]


def _noisy_argmax(logits_BLQC: Tensor, temperature: float, uniform: UniformSource) -> Tensor:
    """Sample by the Gumbel trick; the noise is drawn at temperature 0 too, where it can't matter."""
    batch, length, levels, size = logits_BLQC.shape
    noise = gumbel(uniform((batch, length * levels, size))).view_as(logits_BLQC)
    return (logits_BLQC / max(temperature, 1e-10) + noise).argmax(dim=-1)


def _add_cold_noise(logits_BLQC: Tensor, levels: int, uniform: UniformSource) -> Tensor:
    """Temperature 0 for the last levels of a sequence; the draw covers all levels, so that the stream stays in step."""
    batch, length, scored, size = logits_BLQC.shape
    noise = gumbel(uniform((batch, length * levels, size))).view(batch, length, levels, size)
    return logits_BLQC / 1e-10 + noise[:, :, levels - scored :]


def generate_paper(
    model: "SoundStorm",
    semantic_BN: Tensor,
    prompt_BP8: Tensor,
    *,
    steps: int,
    greedy: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """Coarse-to-fine decoding as SoundStorm is trained (Borsos et al. 2023, section 3.3).

    The prompt keeps all its levels; levels above the one being decoded are masks; the first level takes `steps`
    iterations that fix the surest frames first, every other level one. Greedy decoding uses no randomness; otherwise
    codes are drawn at temperature 1 on the first level. Returns int64 [B, N, Q].
    """
    config = model.config
    (batch, target), prompt = semantic_BN.shape, prompt_BP8.shape[1]
    uniform = uniform_source(generator, semantic_BN.device)
    cond = model.condition(torch.cat([prompt_BP8[..., 0], semantic_BN], dim=1))
    unknown = semantic_BN.new_full((batch, target, config.num_quantizers), config.mask_id)
    codes = torch.cat([prompt_BP8[..., 1:], unknown], dim=1)
    for level in range(config.num_quantizers):
        column = codes[:, prompt:, level]
        masked = torch.ones_like(column, dtype=torch.bool)
        for count in mask_counts(steps if level == 0 else 1, target)[1:]:
            hidden = model.net.hidden(codes, cond)[:, prompt:]
            logits = model.net.logits(hidden, slice(level, level + 1)).float()
            sample = logits.argmax(dim=-1) if greedy or level else _noisy_argmax(logits, 1.0, uniform)
            sure = logits.log_softmax(dim=-1).gather(-1, sample.unsqueeze(-1))[:, :, 0, 0]
            column.copy_(torch.where(masked, sample[:, :, 0], column))
            surest_last = sure.masked_fill(~masked, math.inf).argsort(dim=-1)
            masked = torch.zeros_like(masked).scatter(1, surest_last[:, :count], True)
            column.masked_fill_(masked, config.mask_id)
    return codes[:, prompt:]
