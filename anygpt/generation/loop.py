"""Generating ids: prefill, step and sample in turn, under a grammar, as a Python generator.

Between two ids a caller may stop (close the generator, Ctrl-C); the cache then holds the ids that were fed so far.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anygpt.generation.cache import StaticCache
from anygpt.generation.grammar import Automaton, Grammar, Request
from anygpt.generation.llama import LlamaDecoder
from anygpt.generation.policies import Policy
from anygpt.generation.sampling import sample

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def prefill(decoder: LlamaDecoder, ids: Sequence[int], cache: StaticCache) -> Tensor:
    """Append many ids to the sequence in `cache`; returns the float32 logits [V] of what follows."""
    return decoder.forward(ids, cache)


def step(decoder: LlamaDecoder, index: int, cache: StaticCache) -> Tensor:
    """Append one id to the sequence in `cache`; returns the float32 logits [V] of what follows."""
    return decoder.forward([index], cache)


def generate(
    decoder: LlamaDecoder,
    prompt_ids: Sequence[int],
    *,
    grammar: Grammar,
    request: Request,
    policies: Mapping[str, Policy],
    generator: torch.Generator | None = None,
    cache: StaticCache | None = None,
) -> Iterator[int]:
    """Yield the ids of one answer, tags and the end of the turn included, forced ids first.

    `cache` is one kept from before: as much of the prompt as it begins with isn't computed again, and the rest of
    what it holds is forgotten. The last id yielded doesn't get into it. Policies switch with the modality. Raises
    AnyGPTError, before `cache` is touched, when prompt and shortest answer exceed the context.
    """
    context = cache.capacity if cache is not None else decoder.shape.context
    automaton = grammar.start(request, policies, prompt_length=len(prompt_ids), context=context)
    longest = grammar.longest_answer(request, policies) if cache is None else None
    kept = cache or decoder.new_cache(len(prompt_ids) + longest if longest is not None else context)
    kept.keep_beginning(prompt_ids[:-1])  # the logits of what follows come from the last id

    def logits_after(ids: Sequence[int]) -> Tensor:
        new = ids[kept.length :]
        return step(decoder, new[0], kept) if len(new) == 1 else prefill(decoder, new, kept)

    return _answer(automaton, prompt_ids, policies, logits_after, generator)


def generate_slow(
    model: "LlamaForCausalLM",
    prompt_ids: Sequence[int],
    *,
    grammar: Grammar,
    request: Request,
    policies: Mapping[str, Policy],
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """The plain twin of `generate`: Hugging Face's model over the whole sequence for every id, no cache."""
    context = model.config.max_position_embeddings
    automaton = grammar.start(request, policies, prompt_length=len(prompt_ids), context=context)

    def logits_after(ids: Sequence[int]) -> Tensor:
        return model(torch.tensor([ids], device=model.device)).logits[0, -1].float()

    return _answer(automaton, prompt_ids, policies, logits_after, generator)


def _answer(
    automaton: Automaton,
    prompt_ids: Sequence[int],
    policies: Mapping[str, Policy],
    logits_after: Callable[[Sequence[int]], Tensor],
    generator: torch.Generator | None,
) -> Iterator[int]:
    """Draw ids until the automaton is done; `logits_after` gets the whole sequence so far."""
    ids = [*prompt_ids, *automaton.forced_ids]
    yield from automaton.forced_ids
    has_penalty = any(policy.repetition_penalty != 1.0 for policy in policies.values())
    seen_V: Tensor | None = None
    while not automaton.is_done:
        with torch.inference_mode():
            logits_V = logits_after(ids)
            if has_penalty and seen_V is None:
                seen_V = torch.zeros_like(logits_V, dtype=torch.bool)
                seen_V[torch.tensor(ids, device=logits_V.device)] = True
            automaton.mask(logits_V)
            index = sample(logits_V, policies[automaton.modality], seen=seen_V, generator=generator)
            if seen_V is not None:
                seen_V[index] = True
        automaton.push(index)
        ids.append(index)
        yield index
