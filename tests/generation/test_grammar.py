"""Whatever the logits are, the answer is well-formed: random draws through the automaton."""

import random

import pytest
from fixtures_tiny import SPECS
from hypothesis import given
from hypothesis import strategies as st

from anygpt.errors import AnyGPTError
from anygpt.generation.grammar import Automaton, Grammar, Request
from anygpt.generation.policies import Policy
from anygpt.vocabulary import Control, Span, Text, Vocabulary

MODALITIES = sorted(SPECS)
HEARD, REPLY = "<-Ins->", "<-Res->"


def draw_answer(automaton: Automaton, rng: random.Random) -> list[int]:
    ids = list(automaton.forced_ids)
    while not automaton.is_done:
        choices = rng.choice(automaton.allowed())
        ids.append(rng.choice(choices))
        automaton.push(ids[-1])
    return ids


REQUESTS = st.builds(
    Request,
    allowed=st.sets(st.sampled_from(MODALITIES)).map(frozenset),
    forced=st.none() | st.sampled_from(MODALITIES),
    required=st.none() | st.sampled_from(MODALITIES),
    ends_after_span=st.booleans(),
    most_spans=st.none() | st.integers(1, 3),
    hears=st.booleans(),
)


@given(
    request=REQUESTS,
    most=st.integers(1, 50),
    least=st.integers(0, 20),
    room=st.integers(0, 120),
    seed=st.integers(0, 2**32),
)
def test_every_answer_is_well_formed(
    grammar: Grammar, vocabulary: Vocabulary, request: Request, most: int, least: int, room: int, seed: int
) -> None:
    """From an answer with no room to spare to one with plenty, for any request and limits."""
    policies = {name: Policy(max_new_tokens=most, min_new_tokens=min(least, most)) for name in ("text", *MODALITIES)}
    context = 1 + grammar.shortest_answer(request) + room
    automaton = grammar.start(request, policies, prompt_length=1, context=context)
    ids = draw_answer(automaton, random.Random(seed))
    assert 1 <= len(ids) <= context - 1
    longest = grammar.longest_answer(request, policies)
    assert longest is None or len(ids) <= longest
    items = vocabulary.decode_ids(ids)  # raises for a malformed span
    check_end(items)
    check_spans([item for item in items if isinstance(item, Span)], request, most)
    check_what_was_heard(items, request)
    assert sum(map(vocabulary.is_text, ids)) <= most
    if request.forced is not None:
        assert isinstance(items[0], Span) and items[0].spec.name == request.forced
    if request.ends_after_span and request.required in (None, request.forced):
        assert all(not isinstance(item, Span) for item in items[:-1])


Items = list[Text | Control | Span]


def check_end(items: Items) -> None:
    """Ends stand at the end only, after something that isn't blank."""
    ends = [isinstance(item, Control) and item.token in ("<eos>", "</s>") for item in items]
    assert not any(ends[:-1])
    said = items[:-1] if ends[-1] else items
    reply = said[said.index(Control(REPLY)) + 1 :] if Control(REPLY) in said else said
    # A byte that begins no character decodes to U+FFFD, which is not blank.
    assert any(isinstance(item, Span) or (isinstance(item, Text) and item.text.strip()) for item in reply)


def check_spans(spans: list[Span], request: Request, most: int) -> None:
    names = [span.spec.name for span in spans]
    assert set(names) <= request.allowed | {request.forced, request.required}
    assert request.required is None or request.required in names
    assert request.most_spans is None or len(names) <= max(request.most_spans, len(request.given))
    for span in spans:
        if span.spec.frames is None:
            assert span.codes_KT.numel() <= max(most, span.spec.num_codebooks)


def check_what_was_heard(items: Items, request: Request) -> None:
    """`<-Ins->`, text, `<-Res->`: all of it or nothing, once, before everything but space."""
    tokens = [item.token for item in items if isinstance(item, Control) and item.token in (HEARD, REPLY)]
    assert tokens in ([], [HEARD, REPLY])
    if tokens:
        assert request.hears
        start, end = items.index(Control(HEARD)), items.index(Control(REPLY))
        assert all(isinstance(item, Text) and not item.text.strip() for item in items[:start])
        assert all(isinstance(item, Text) for item in items[start + 1 : end])


@pytest.mark.parametrize("name", MODALITIES)
def test_text_that_runs_on_is_cut_for_the_required_span(grammar: Grammar, vocabulary: Vocabulary, name: str) -> None:
    policies = {key: Policy(max_new_tokens=9) for key in ("text", *MODALITIES)}
    word = vocabulary.encode_text("a")[-1]
    for context, words in ((100, 9), (1 + 4 + grammar.shortest_span(name), 4)):
        automaton = grammar.start(Request.chat(name, MODALITIES), policies, prompt_length=1, context=context)
        for _ in range(words):
            assert any(word in ids for ids in automaton.allowed())
            automaton.push(word)
        start = vocabulary.start_id(name)
        assert automaton.allowed() == [range(start, start + 1)]


def test_spoken_instruction_may_be_repeated_first(grammar: Grammar, vocabulary: Vocabulary) -> None:
    heard, reply = (vocabulary.control_id(token) for token in (HEARD, REPLY))
    word = vocabulary.encode_text("a")[-1]
    policies = {key: Policy() for key in ("text", *MODALITIES)}

    def may(index: int) -> bool:
        return any(index in ids for ids in automaton.allowed())

    automaton = grammar.start(Request.chat(None, MODALITIES), policies, prompt_length=1, context=100)
    assert not may(heard) and not may(reply)
    automaton = grammar.start(Request.chat(None, MODALITIES, hears=True), policies, prompt_length=1, context=100)
    for number, index in enumerate((heard, word, reply, word, vocabulary.text_eos_id)):
        assert may(index) and may(heard) == (number == 0) and may(reply) == (number in (1, 2))
        automaton.push(index)
    assert automaton.is_done


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


def test_exactly_these_ids_are_allowed(grammar: Grammar, vocabulary: Vocabulary) -> None:
    policies = {name: Policy(min_new_tokens=0) for name in ("text", *MODALITIES)}
    automaton = grammar.start(Request(allowed=frozenset(["music"])), policies, prompt_length=1, context=200)
    block = vocabulary.block("music")
    text = {i for i in range(vocabulary.size) if vocabulary.is_text(i)}
    ends = {vocabulary.control_id("<eos>"), vocabulary.text_eos_id}
    levels = [set(block.level_ids(level)) for level in range(3)]
    steps = [
        (text | {block.start_id}, min(text)),  # an answer isn't blank
        (text | ends | {block.start_id}, block.start_id),
        (levels[0], block.first_id),
        (levels[1], block.level_ids(1)[3]),
        (levels[2], block.level_ids(2)[7]),
        (levels[0] | {block.end_id}, block.end_id),
        (text | ends | {block.start_id}, block.start_id),
    ]
    for expected, pushed in steps:
        assert {index for ids in automaton.allowed() for index in ids} == expected
        automaton.push(pushed)


def test_text_honours_min_and_max(grammar: Grammar, vocabulary: Vocabulary) -> None:
    policies = {"text": Policy(min_new_tokens=4, max_new_tokens=6)}
    for seed in range(20):
        automaton = grammar.start(Request(), policies, prompt_length=1, context=100)
        ids = draw_answer(automaton, random.Random(seed))
        assert 4 <= sum(map(vocabulary.is_text, ids)) <= 6
        assert isinstance(vocabulary.decode_ids(ids)[0], Text)
