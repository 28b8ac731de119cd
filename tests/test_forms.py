"""Taking one-line prompts apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anygpt.errors import AnyGPTError
from anygpt.forms import Form, describe_forms, parse_form
from anygpt.modality import MODALITIES

SPECS = list(MODALITIES.values())


@pytest.mark.parametrize("name", MODALITIES)
def test_every_modality_has_both_forms(name: str) -> None:
    assert parse_form(f"text|{name}|some words", SPECS) == Form(source="text", target=name, content="some words")
    assert parse_form(f"{name}|text|a file.x", SPECS) == Form(source=name, target="text", content="a file.x")


@pytest.mark.parametrize("line", describe_forms(SPECS))
def test_described_forms_are_understood(line: str) -> None:
    assert f"{parse_form(line, SPECS).source}|" in line


def test_voice_and_spaces() -> None:
    form = parse_form(" Text | speech | hello there |my voice.wav ", SPECS)
    assert form == Form(source="text", target="speech", content="hello there", fields={"voice": "my voice.wav"})
    assert form.modality == "speech"


@given(st.text().map(str.strip).filter(lambda text: text and not text.endswith("\\")))
def test_escaped_bars_come_back(text: str) -> None:
    assert parse_form("text|image|" + text.replace("|", r"\|"), SPECS).content == text.replace(r"\|", "|")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "unknown form ''; expected text|image"),
        ("hello", "unknown form 'hello'"),
        ("text|image", "unknown form 'text|image'"),
        ("text|imagee|a", "'text|imagee|...' (did you mean 'text|image'?)"),
        ("image|speech|a.png", "unknown form 'image|speech|...'"),
        ("text|text|a", "unknown form 'text|text|...'"),
        ("text|image|", "text|image: the text is empty"),
        ("text|image|  ", "text|image: the text is empty"),
        ("image|text|", "image|text: the path of the image file is empty"),
        ("text|speech|hi|", "text|speech: the voice file is empty"),
        ("text|image|a|b", r"text|image takes 1 field, got 2: write a bar inside a text as \|"),
        ("text|speech|a|b|c", "text|speech takes 2 fields, got 3"),
        ("x" * 5000 + "\n|", "unknown form"),
    ],
)
def test_mistakes_are_one_line(prompt: str, message: str) -> None:
    with pytest.raises(AnyGPTError) as caught:
        parse_form(prompt, SPECS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
