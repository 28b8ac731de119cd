"""Boxes in answers: whatever is drawn, every box is whole, in range and in order, and fits into the room there is."""

import random

import pytest
from fixtures_tiny import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from anygpt.boxes import DELIMITER, Box, find_boxes, format_boxes
from anygpt.errors import AnyGPTError
from anygpt.generation.box_text import SHORTEST_BOX, BoxPieces, BoxText
from anygpt.generation.grammar import Automaton, Grammar, Request
from anygpt.generation.policies import Policy
from anygpt.prompts.tags import BoxForm
from anygpt.text_tokenizer import TextTokenizer, train_text_tokenizer
from anygpt.vocabulary import Text, Vocabulary


def policies(grammar: Grammar, most: int) -> dict[str, Policy]:
    return {name: Policy(max_new_tokens=most, min_new_tokens=0) for name in ("text", *grammar.blocks)}


def draw(automaton: Automaton, rng: random.Random, *, keen: float = 0.5) -> list[int]:
    """`keen` is the share of draws among the rarer ids, those that belong to boxes, where there are any."""
    ids: list[int] = []
    while not automaton.is_done:
        ranges = automaton.allowed()
        short = [one for one in ranges if len(one) < 20]
        ids.append(rng.choice(rng.choice(short if short and rng.random() < keen else ranges)))
        automaton.push(ids[-1])
    return ids


def text_of(vocabulary: Vocabulary, ids: list[int]) -> str:
    return "".join(item.text for item in vocabulary.decode_ids(ids) if isinstance(item, Text))


@given(
    form=st.sampled_from(["alone", "amid text"]),
    most=st.integers(SHORTEST_BOX, 80),
    room=st.integers(0, 60),
    seed=st.integers(0, 2**32),
    keen=st.sampled_from([0.5, 0.95, 1.0]),
)
def test_every_box_is_whole(
    grammar: Grammar, vocabulary: Vocabulary, form: BoxForm, most: int, room: int, seed: int, keen: float
) -> None:
    request = Request(boxes=form)
    context = 1 + grammar.shortest_answer(request) + room
    automaton = grammar.start(request, policies(grammar, most), prompt_length=1, context=context)
    ids = draw(automaton, random.Random(seed), keen=keen)
    assert 1 <= len(ids) <= context - 1 and sum(map(vocabulary.is_text, ids)) <= most
    text = text_of(vocabulary, ids)
    boxes = find_boxes(text)
    assert text.strip() and text.count("{") == len(boxes)
    if form == "alone":
        assert boxes and text.strip() == format_boxes(boxes)


def test_what_a_checkpoint_learned_to_write_may_come(grammar: Grammar, vocabulary: Vocabulary) -> None:
    """The ids of the tokenizer's own encoding are allowed one after the other, and the answer may end behind them."""
    boxes = [Box(0, 3, 45, 100), Box(12, 0, 12, 99)]
    texts: dict[BoxForm, str] = {
        "alone": format_boxes(boxes),
        "amid text": f"<p>a red apple</p> {format_boxes(boxes)} on a table 1 < 2",
    }
    for form, text in texts.items():
        automaton = grammar.start(Request(boxes=form), policies(grammar, 300), prompt_length=1, context=320)
        for index in vocabulary.encode_text(text):
            assert any(index in ids for ids in automaton.allowed()), (text, vocabulary.text.piece(index))
            automaton.push(index)
        assert any(vocabulary.text_eos_id in ids for ids in automaton.allowed())


@pytest.mark.parametrize(
    ("begun", "following"),
    [
        ("{<40><2", set("0123456789>")),
        ("{<40><2><", set("456789") | {"1"}),
        ("{<40><2><1", set("0")),
        ("{<40><2><4", set("0123456789")),
        ("{<100><2><", {"1"}),
        ("{<0", {">"}),
        ("{<0><0><0><0>", {"}"}),
        ("{<0><0><0><0>}", {"<"}),
        ("{<0><0><0><0>}<delim", {">"}),
        ("{<0><0><0><0>}<delim>", {"{"}),
        ("{", {"<"}),
    ],
)
def test_one_character_after_another(grammar: Grammar, vocabulary: Vocabulary, begun: str, following: set[str]) -> None:
    automaton = grammar.start(Request(boxes="alone"), policies(grammar, 300), prompt_length=1, context=320)
    for index in vocabulary.encode_text(begun):
        automaton.push(index)
    allowed = {index for ids in automaton.allowed() for index in ids if vocabulary.is_text(index)}
    first = {vocabulary.text.piece(index)[:1] for index in allowed if not vocabulary.text.is_byte(index)}
    first |= {chr(int(vocabulary.text.piece(i)[3:5], 16)) for i in allowed if vocabulary.text.is_byte(i)}
    assert first == following


def test_pieces_of_several_characters(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As LLaMA's vocabulary has them, where `><` and `>}` are one piece each."""
    rng = random.Random(1)
    texts = ["{" + "".join(f"<{rng.randrange(101)}>" for _ in range(4)) + "}" + DELIMITER for _ in range(300)]
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    tokenizer: TextTokenizer = train_text_tokenizer([*texts, *TEXTS], path, pieces=330)
    joined = {tokenizer.piece(index) for index in range(tokenizer.size)}
    assert {"><", ">}"} & joined
    ids = [index for index in range(tokenizer.size) if index not in tokenizer.special_ids]
    pieces = BoxPieces(tokenizer, ids)
    for seed in range(30):
        rng, state, room = random.Random(seed), BoxText(pieces, "alone"), 40
        drawn: list[int] = []
        while state.due or (room and rng.random() < 0.9):
            choices = sorted(frozenset().union(*state.allowed(room)))
            if not choices:
                break
            drawn.append(rng.choice(choices))
            state.push(drawn[-1])
            room -= 1
        text = tokenizer.decode(drawn)
        assert not state.due and text.strip() == format_boxes(find_boxes(text)), text


def test_limits_that_no_box_fits_in(grammar: Grammar) -> None:
    with pytest.raises(AnyGPTError, match=r"'max_new_tokens' of text is 12, expected at least 14"):
        grammar.start(Request(boxes="alone"), policies(grammar, 12), prompt_length=1, context=320)
    with pytest.raises(AnyGPTError, match=r"answer at least 14, together more than"):
        grammar.start(Request(boxes="alone"), policies(grammar, 50), prompt_length=310, context=320)
    assert grammar.start(Request(boxes="amid text"), policies(grammar, 1), prompt_length=1, context=320).allowed()
