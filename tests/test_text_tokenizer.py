"""Plain text to ids and back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.text_tokenizer import TextTokenizer, train_text_tokenizer

# sentencepiece writes a space as this character, so a text that holds it can't come back as it was.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\N{LOWER ONE EIGHTH BLOCK}"), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(golden_dir: Path) -> TextTokenizer:
    return TextTokenizer(golden_dir / "tokenization/checkpoint/tokenizer.model")


@settings(deadline=None, derandomize=True)
@given(text=TEXTS)
def test_decode_is_the_inverse_of_encode(tokenizer: TextTokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_a_stream_gives_the_same_text_as_decode_and_never_half_a_character(tokenizer: TextTokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=40))
    stream = tokenizer.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == tokenizer.decode(ids)

    text = data.draw(TEXTS)
    stream = tokenizer.stream()
    shown = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(shown) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(shown) or "\N{REPLACEMENT CHARACTER}" in text
    assert stream.flush() == ""


def test_decode_agrees_with_sentencepiece(tokenizer: TextTokenizer):
    for text in ("a cat", " two  spaces ", "café 一只猫 \N{CAT}", "line\nline", "<s> </s> <unk> <0x41>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer._model.decode(ids)
        assert not tokenizer.special_ids.intersection(ids)


def test_an_incomplete_character_is_held_back_and_then_marked(tokenizer: TextTokenizer):
    *head, _last = tokenizer.encode("\N{CAT}")
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in head) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_text_that_is_not_unicode_is_the_users_mistake(tokenizer: TextTokenizer):
    with pytest.raises(AnyGPTError, match="character 3"):
        tokenizer.encode("bad\ud800")


def test_missing_or_damaged_model_names_the_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: missing"):
        TextTokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a sentencepiece model"):
        TextTokenizer(tmp_path / "tokenizer.model")


def test_a_trained_model_is_of_llamas_kind_and_the_same_each_time(tmp_path: Path):
    texts = [f"the {adjective} {noun} is {place} the box" for adjective in ("red", "small") for noun in ("cat", "dog")
             for place in ("in", "near", "under")]  # fmt: skip
    tokenizer = train_text_tokenizer(texts, tmp_path / "a.model", pieces=300)
    train_text_tokenizer(texts, tmp_path / "b.model", pieces=300)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert (tokenizer.size, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (300, 0, 1, 2)
    assert tokenizer.decode(tokenizer.encode("  new wörds \N{CAT} 1999\n")) == "  new wörds \N{CAT} 1999\n"
    with pytest.raises(AnyGPTError, match="could not learn 5000 pieces"):
        train_text_tokenizer(texts, tmp_path / "c.model", pieces=5000)
    assert not (tmp_path / "c.model").exists()
