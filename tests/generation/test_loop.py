"""The cached loop against its plain twin, its seeds, and conversations that keep their cache."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from fixtures_tiny import CONTEXT, SPECS

from anygpt.choices import wants_choice
from anygpt.errors import AnyGPTError
from anygpt.generation.grammar import Automaton, Grammar, Request
from anygpt.generation.llama import LlamaDecoder
from anygpt.generation.loop import Answer, generate, generate_slow, make
from anygpt.generation.policies import Policy
from anygpt.vocabulary import Span, Vocabulary

POLICIES = {name: Policy(do_sample=False, max_new_tokens=40) for name in ("text", *SPECS)}
DRAWN = {name: policy.override({"do_sample": True, "temperature": 0.9}) for name, policy in POLICIES.items()}
PENALTY = {name: policy.override({"repetition_penalty": 1.3, "top_k": 9}) for name, policy in DRAWN.items()}
REQUESTS = [*map(Request.only, ("text", *SPECS)), Request(allowed=frozenset(SPECS)), Request(forced="image")]
PROMPT = [1, 270, 281, 265, 290]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
@pytest.mark.parametrize("policies", [POLICIES, DRAWN, PENALTY], ids=["greedy", "drawn", "penalty"])
def test_equals_the_uncached_twin(
    model_folder: Path,
    decoder: LlamaDecoder,
    grammar: Grammar,
    request_: Request,
    policies: dict[str, Policy],
) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    rules = {"grammar": grammar, "request": request_, "policies": policies}
    # 60 ids are past every switch between text and span that the longest of these answers makes.
    fast = list(islice(generate(decoder, PROMPT, **rules, generator=seeded()), 60))
    slow = list(islice(generate_slow(model, PROMPT, **rules, generator=seeded()), 60))
    assert fast == slow


def test_seeds(decoder: LlamaDecoder, grammar: Grammar) -> None:
    def answer(seed: int) -> list[int]:
        return list(
            generate(
                decoder,
                PROMPT,
                grammar=grammar,
                request=Request.only("image"),
                policies=DRAWN,
                generator=seeded(seed),
            )
        )

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_a_paused_answer_goes_on_as_if_it_had_not_paused(decoder: LlamaDecoder, grammar: Grammar) -> None:
    """It stops right behind a start tag, of a span that is to be chosen; the rules are those of one answer."""
    policies = {name: policy.override({"best_of": 2}) for name, policy in DRAWN.items()}
    rules = {"grammar": grammar, "policies": policies, "context": CONTEXT}
    request = Request(required="image", most_spans=2)
    whole = Answer(PROMPT, request=request, generator=seeded(), **rules)
    paused = Answer(PROMPT, request=request, generator=seeded(), pauses_at=wants_choice, **rules)
    expected = list(make(decoder, whole, decoder.new_cache()))
    cache = decoder.new_cache()
    ids = list(make(decoder, paused, cache))
    assert paused.is_paused and ids == expected[: len(ids)]
    assert grammar.blocks["image"].start_id == ids[-1] == paused.open_span(seeded()).ids[0]
    further = paused.carried_on()
    assert ids + list(make(decoder, further, cache)) == expected and not further.is_paused
    half = len(ids) + 5
    rest = Answer(PROMPT, request=request, pauses_at=wants_choice, **rules).carried_on(expected[:half])
    assert rest.ids == [] and rest.automaton.allowed() == _after(grammar, request, policies, expected[:half]).allowed()


def _after(grammar: Grammar, request: Request, policies: dict[str, Policy], ids: list[int]) -> Automaton:
    automaton = grammar.start(request, policies, prompt_length=len(PROMPT), context=CONTEXT)
    for index in ids:
        automaton.push(index)
    return automaton


def test_a_kept_cache_saves_the_common_beginning(
    decoder: LlamaDecoder, grammar: Grammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also starts small and grows; what is computed is counted, and the answer is as from nothing."""
    fed: list[int] = []
    append = decoder.append
    monkeypatch.setattr(decoder, "append", lambda ids, cache: (fed.append(len(ids)), append(ids, cache))[1])
    rules = {"grammar": grammar, "policies": PENALTY}
    cache = decoder.new_cache(slots=8)
    first = list(generate(decoder, PROMPT, **rules, request=Request.only("music"), generator=seeded(), cache=cache))
    assert cache.ids == [*PROMPT, *first[:-1]]
    whole = [*PROMPT, *first, 300, 301]
    prompts = {"the last answer goes on": (whole, 3), "the same again": (whole, 1), "less of it": (whole[:9], 1)}
    prompts |= {"another end": ([*whole[:6], 270, 271], 2), "another beginning": ([9, 5, 5], 3)}
    for name, (prompt, new) in prompts.items():
        fed.clear()
        kept = list(generate(decoder, prompt, **rules, request=Request(), generator=seeded(), cache=cache))
        assert sum(fed) == new + len(kept) - 1, name
        assert kept == list(generate(decoder, prompt, **rules, request=Request(), generator=seeded())), name


def test_stopping_leaves_a_usable_cache(decoder: LlamaDecoder, grammar: Grammar) -> None:
    cache = decoder.new_cache()
    answer = generate(decoder, PROMPT, grammar=grammar, request=Request.only("music"), policies=POLICIES, cache=cache)
    taken = list(islice(answer, 5))
    answer.close()  # type: ignore[attr-defined]
    assert cache.ids == [*PROMPT, *taken[:4]]


def test_too_long_a_prompt_fails_before_computing(decoder: LlamaDecoder, grammar: Grammar) -> None:
    cache = decoder.new_cache()
    with pytest.raises(AnyGPTError, match=f"context of {CONTEXT}: shorten"):
        generate(
            decoder,
            [5] * CONTEXT,
            grammar=grammar,
            request=Request.only("text"),
            policies=POLICIES,
            cache=cache,
        )
    assert cache.ids == []


def test_answer_ends_with_the_context(decoder: LlamaDecoder, grammar: Grammar, vocabulary: Vocabulary) -> None:
    policies = {**POLICIES, "music": Policy(min_new_tokens=2000, max_new_tokens=2000)}
    ids = list(
        generate(decoder, [5] * (CONTEXT - 20), grammar=grammar, request=Request.only("music"), policies=policies)
    )
    (span,) = vocabulary.decode_ids(ids)
    assert isinstance(span, Span) and span.codes_KT.shape == (3, 6)
