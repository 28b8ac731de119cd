"""Answers read id by id say the same as all of their ids at once, and no more than is certain."""

import random
from collections.abc import Iterable

import pytest
from fixtures_tiny import SPECS
from hypothesis import given
from hypothesis import strategies as st

from anygpt.generation.grammar import Grammar, Request
from anygpt.generation.policies import Policy
from anygpt.generation.reading import AnswerReader, SpanStart, TextPiece
from anygpt.vocabulary import Control, Span, Text, Vocabulary

HEARD = "<-Ins->"
Events = list[TextPiece | SpanStart | Span]


def read(grammar: Grammar, vocabulary: Vocabulary, ids: Iterable[int]) -> Events:
    reader = AnswerReader(vocabulary, heard_ids=grammar.heard_ids)
    events: Events = [event for index in ids for event in reader.push(index)]
    return [*events, *reader.flush()]


@given(seed=st.integers(0, 2**32), hears=st.booleans())
def test_pieces_add_up(grammar: Grammar, vocabulary: Vocabulary, seed: int, hears: bool) -> None:
    rng = random.Random(seed)
    policies = {name: Policy(max_new_tokens=32, min_new_tokens=0) for name in ("text", *SPECS)}
    automaton = grammar.start(Request.chat(None, SPECS, hears=hears), policies, prompt_length=1, context=150)
    ids: list[int] = []
    while not automaton.is_done:
        ids.append(rng.choice(rng.choice(automaton.allowed())))
        automaton.push(ids[-1])
    expected: list[object] = []
    is_heard = False
    for item in vocabulary.decode_ids(ids):
        if isinstance(item, Text) and item.text.strip():
            expected.append((is_heard, item.text.strip()))
        elif isinstance(item, Span):
            expected += [SpanStart(item.spec.name), item]
        elif isinstance(item, Control):
            is_heard = item == Control(HEARD)
    assert joined(read(grammar, vocabulary, ids)) == expected


def joined(events: Events) -> list[object]:
    """The events with the pieces of each text in one, as (is_heard, text)."""
    done: list[object] = []
    for event, before in zip(events, [None, *events], strict=False):
        if not isinstance(event, TextPiece):
            done.append(event)
        elif isinstance(before, TextPiece) and before.is_heard == event.is_heard:
            done[-1] = (event.is_heard, f"{done[-1][1]}{event.text}")  # type: ignore[index]
        else:
            done.append((event.is_heard, event.text))
    return done


def test_what_was_heard_is_marked(grammar: Grammar, vocabulary: Vocabulary) -> None:
    assert grammar.heard_ids is not None
    ids = [*vocabulary.encode_text(" "), grammar.heard_ids[0], *vocabulary.encode_text(" say hi"), grammar.heard_ids[1]]
    events = read(grammar, vocabulary, [*ids, *vocabulary.encode_text("hi ")])
    assert joined(events) == [(True, "say hi"), (False, "hi")]


@pytest.mark.parametrize("text", ["naïve 🍎🍎 café", "a  b\n\n c", "猫"])
def test_text_comes_as_soon_as_it_is_final(vocabulary: Vocabulary, text: str) -> None:
    """Every id that completes a character other than space shows it at once."""
    reader = AnswerReader(vocabulary)
    shown, ids = "", vocabulary.encode_text(text)
    for count, index in enumerate(ids, start=1):
        shown += "".join(piece.text for piece in reader.push(index) if isinstance(piece, TextPiece))
        assert "\N{REPLACEMENT CHARACTER}" not in shown
        assert shown == vocabulary.text.decode(ids[:count]).rstrip("\N{REPLACEMENT CHARACTER}").rstrip()
    assert shown == text and not list(reader.flush())
