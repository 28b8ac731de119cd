"""The grammar of the speech world."""

import random

import pytest

from anygpt.world import sentences
from anygpt.world.sentences import is_held_out, normalise, random_sentence, typed_variant


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    rng = random.Random(0)
    return [random_sentence(rng) for _ in range(20_000)]


def test_has_at_least_600_words_and_announces_them_all(drawn: list[str]) -> None:
    words = {word for text in drawn for word in normalise(text).split()}
    assert len(words) >= 600
    assert words <= sentences.vocabulary()


def test_no_slot_or_doubled_space_is_left(drawn: list[str]) -> None:
    assert not [text for text in drawn if set("{}_") & set(text) or "  " in text or text != text.strip()]


def test_articles_fit_the_next_word(drawn: list[str]) -> None:
    text = " ".join(drawn)
    assert " an apple" in text and " a uniform" in text
    assert " a apple" not in text and " a old " not in text and " an uniform" not in text


def test_most_sentences_have_three_to_nine_words(drawn: list[str]) -> None:
    fitting = sum(3 <= len(text.split()) <= 9 for text in drawn)
    assert fitting > 0.85 * len(drawn)


def test_held_out_sentences_are_few_and_depend_on_the_words_alone(drawn: list[str]) -> None:
    assert 0.03 < sum(map(is_held_out, drawn)) / len(drawn) < 0.07
    assert all(is_held_out(text) == is_held_out(text.upper() + " !") for text in drawn[:200])


def test_words_are_never_held_out(drawn: list[str]) -> None:
    train = {word for text in drawn if not is_held_out(text) for word in normalise(text).split()}
    held_out = {word for text in drawn if is_held_out(text) for word in normalise(text).split()}
    assert held_out <= train


def test_typed_variants_keep_the_words(drawn: list[str]) -> None:
    rng = random.Random(1)
    variants = [typed_variant(text, rng) for text in drawn[:300]]
    assert [normalise(text) for text in variants] == [normalise(text) for text in drawn[:300]]
    assert any(text[0].isupper() for text in variants) and any(text.endswith(".") for text in variants)


@pytest.mark.parametrize(
    ("text", "words"),
    [("Hello, World!", "hello world"), ("it's five o\N{RIGHT SINGLE QUOTATION MARK}clock", "its five oclock"),
     ("well-known  things.", "well known things"), ("?!", "")],
)  # fmt: skip
def test_normalise(text: str, words: str) -> None:
    assert normalise(text) == words


@pytest.mark.parametrize(
    ("noun", "expected"), [("fox", "foxes"), ("pony", "ponies"), ("key", "keys"), ("mouse", "mice")]
)
def test_plural(noun: str, expected: str) -> None:
    assert sentences.plural(noun) == expected
