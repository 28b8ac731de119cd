"""Whatever the logits are, the answer is well-formed: random draws through the automaton."""

import random

import pytest
import torch
from fixtures_tiny import SPECS
from hypothesis import given
from hypothesis import strategies as st

from anygpt.errors import AnyGPTError
from anygpt.generation.grammar import Automaton, Grammar, Request
from anygpt.generation.policies import Policy
from anygpt.vocabulary import Control, Span, Text, Vocabulary

MODALITIES = sorted(SPECS)


def draw_answer(automaton: Automaton, rng: random.Random) -> list[int]:
    ids = list(automaton.forced_ids)
    while not automaton.is_done:
        choices = rng.choice(automaton.allowed())
        ids.append(rng.choice(choices))
        automaton.push(ids[-1])
    return ids


@given(
    allowed=st.sets(st.sampled_from(MODALITIES)),
    forced=st.none() | st.sampled_from(MODALITIES),
    ends_after_span=st.booleans(),
    most=st.integers(1, 50),
    least=st.integers(0, 20),
    context=st.integers(36, 120),
    seed=st.integers(0, 2**32),
)
def test_every_answer_decodes(
    grammar: Grammar,
    vocabulary: Vocabulary,
    allowed: set[str],
    forced: str | None,
    ends_after_span: bool,
    most: int,
    least: int,
    context: int,
    seed: int,
) -> None:
    request = Request(allowed=frozenset(allowed), forced=forced, ends_after_span=ends_after_span)
    policies = {name: Policy(max_new_tokens=most, min_new_tokens=min(least, most)) for name in ("text", *MODALITIES)}
    rng = random.Random(seed)
    ids = draw_answer(grammar.start(request, policies, prompt_length=1, context=context), rng)
    assert 1 <= len(ids) <= context - 1
    items = vocabulary.decode_ids(ids)  # raises for a malformed span
    spans = [item for item in items if isinstance(item, Span)]
    assert {span.spec.name for span in spans} <= allowed | {forced}
    assert all(item.token in ("<eos>", "</s>") for item in items if isinstance(item, Control))
    assert not any(isinstance(item, Control) for item in items[:-1])
    for span in spans:
        if span.spec.frames is None:
            assert span.codes_KT.numel() <= max(most, span.spec.num_codebooks)
    if forced is not None:
        assert isinstance(items[0], Span) and items[0].spec.name == forced
        assert len(items) == 1 or not ends_after_span
    longest = grammar.longest_answer(request, policies)
    assert longest is None or len(ids) <= longest


def test_lengths_follow_the_policy(grammar: Grammar, vocabulary: Vocabulary) -> None:
    """Random draws hit both ends of a range of whole frames: 7 to 11 codes of 3 levels are 3 frames exactly."""
    policies = {"text": Policy(), "music": Policy(min_new_tokens=7, max_new_tokens=11)}
    for seed in range(20):
        automaton = grammar.start(Request.only("music"), policies, prompt_length=1, context=100)
        (span,) = vocabulary.decode_ids(draw_answer(automaton, random.Random(seed)))
        assert isinstance(span, Span) and span.codes_KT.shape == (3, 3)


def test_span_closes_where_the_context_ends(grammar: Grammar, vocabulary: Vocabulary) -> None:
    policies = {"text": Policy(), "music": Policy(min_new_tokens=90, max_new_tokens=90)}
    for room in range(5, 20):
        automaton = grammar.start(Request.only("music"), policies, prompt_length=10, context=10 + room)
        ids = draw_answer(automaton, random.Random(room))
        (span,) = vocabulary.decode_ids(ids)
        assert isinstance(span, Span) and span.codes_KT.shape[1] == (room - 2) // 3


@pytest.mark.parametrize(("name", "needed"), [("image", 34), ("speech", 3), ("music", 5), ("text", 1)])
def test_prompt_that_leaves_no_room_is_refused(grammar: Grammar, name: str, needed: int) -> None:
    policies = {key: Policy() for key in ("text", *MODALITIES)}
    grammar.start(Request.only(name), policies, prompt_length=10, context=10 + needed)
    with pytest.raises(AnyGPTError, match=f"11 ids long and its {name} answer at least {needed}.* {10 + needed}"):
        grammar.start(Request.only(name), policies, prompt_length=11, context=10 + needed)


def test_mask_keeps_exactly_the_allowed_ids(grammar: Grammar, vocabulary: Vocabulary) -> None:
    policies = {name: Policy(min_new_tokens=0) for name in ("text", *MODALITIES)}
    automaton = grammar.start(Request(allowed=frozenset(["music"])), policies, prompt_length=1, context=200)
    block = vocabulary.block("music")
    text = {i for i in range(vocabulary.size) if vocabulary.is_text(i)}
    ends = {vocabulary.control_id("<eos>"), vocabulary.text_eos_id}
    levels = [set(block.level_ids(level)) for level in range(3)]
    steps = [
        (text | ends | {block.start_id}, min(text)),
        (text | ends | {block.start_id}, block.start_id),
        (levels[0], block.first_id),
        (levels[1], block.level_ids(1)[3]),
        (levels[2], block.level_ids(2)[7]),
        (levels[0] | {block.end_id}, block.end_id),
        (text | ends | {block.start_id}, block.start_id),
    ]
    for expected, pushed in steps:
        logits = torch.zeros(vocabulary.size)
        automaton.mask(logits)
        assert set(logits.isfinite().nonzero()[:, 0].tolist()) == expected
        assert set(logits.tolist()) <= {0.0, float("-inf")}
        automaton.push(pushed)


def test_text_honours_min_and_max(grammar: Grammar, vocabulary: Vocabulary) -> None:
    policies = {"text": Policy(min_new_tokens=4, max_new_tokens=6)}
    for seed in range(20):
        automaton = grammar.start(Request(), policies, prompt_length=1, context=100)
        ids = draw_answer(automaton, random.Random(seed))
        assert 4 <= sum(map(vocabulary.is_text, ids)) <= 6
        assert isinstance(vocabulary.decode_ids(ids)[0], Text)
