"""Drawing the next id from logits."""

import torch
from torch import Tensor

from anygpt.generation.policies import Policy


def sample(
    logits_V: Tensor, policy: Policy, *, seen: Tensor | None = None, generator: torch.Generator | None = None
) -> int:
    """Draw one id from float32 logits [V]; excluded ids are -inf, of which at least one must not be.

    `seen` (bool [V]) marks the ids that `policy.repetition_penalty` applies to (Keskar et al. 2019). Penalty,
    temperature, top-k and top-p act in this order, as in Hugging Face's `generate`. `logits_V` is left as it is.
    """
    if policy.repetition_penalty != 1.0 and seen is not None:
        penalty = policy.repetition_penalty
        penalised = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        logits_V = torch.where(seen, penalised, logits_V)
    if policy.is_greedy:
        return int(logits_V.argmax())
    logits_V = logits_V / policy.temperature
    order = None
    if 0 < policy.top_k < logits_V.shape[0]:
        logits_V, order = logits_V.topk(policy.top_k)
    if policy.top_p < 1.0:
        if order is None:
            logits_V, order = logits_V.sort(descending=True)
        probabilities = logits_V.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        # The most likely id has nothing before it and so always stays.
        logits_V = logits_V.masked_fill(before >= policy.top_p, float("-inf"))
    drawn = int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))
    return drawn if order is None else int(order[drawn])
