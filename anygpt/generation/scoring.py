"""How likely given answers are, where generation would draw one. Shape suffixes: T ids of an answer, V vocabulary."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anygpt.generation.llama import PREFILL_CHUNK, LlamaDecoder
from anygpt.generation.loop import FIRST_SLOTS


@torch.inference_mode()
def log_likelihoods(decoder: LlamaDecoder, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Tensor]:
    """The log-probability of every id of each answer, float32 [T], given the prompt and the ids before it.

    The prompt is read once, and answers are read together, about `PREFILL_CHUNK` ids in a pass. Each of them has to
    fit into the model's context behind the prompt.
    """
    context = decoder.shape.context
    assert all(0 < len(answer) <= context - len(prompt_ids) for answer in answers), "an answer is empty or too long"
    cache = decoder.new_cache(slots=max(FIRST_SLOTS, len(prompt_ids)))
    first_1V = decoder.forward(prompt_ids, cache)[None]
    results: list[Tensor] = []
    for group in _groups(answers, min(PREFILL_CHUNK, context - len(prompt_ids))):
        # The last id of an answer is predicted, but nothing is predicted from it.
        branches = decoder.forward_branches([answer[:-1] for answer in group], cache)
        for answer, logits in zip(group, branches, strict=True):
            results.append(_chosen(torch.cat([first_1V, logits]), answer))
    return results


def log_likelihoods_behind(
    decoder: LlamaDecoder, prompts: Sequence[Sequence[int]], answer: Sequence[int]
) -> list[Tensor]:
    """The log-probability of every id of one answer behind each of several prompts, float32 [T].

    Prompts are read together, about `PREFILL_CHUNK` ids in a pass. The answer has to fit into the model's context
    behind each.
    """
    context = decoder.shape.context
    assert answer and all(0 < len(ids) <= context - len(answer) for ids in prompts), "something is empty or too long"
    results: list[Tensor] = []
    for group in _groups([[*ids, *answer[:-1]] for ids in prompts], PREFILL_CHUNK):
        results += [_chosen(logits_TV, answer) for logits_TV in decoder.forward_sequences(group, last=len(answer))]
    return results


def _chosen(logits_TV: Tensor, ids: Sequence[int]) -> Tensor:
    """The log-probabilities, [T], of ids of which each was chosen by its logits."""
    chosen_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
    return logits_TV.log_softmax(-1).gather(1, chosen_T1)[:, 0]


def _groups(sequences: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Neighbours of `most` ids together, or one that is longer."""
    group: list[Sequence[int]] = []
    for ids in sequences:
        if group and sum(map(len, group)) + len(ids) > most:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group
