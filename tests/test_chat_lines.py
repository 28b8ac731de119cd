"""Lines of a conversation: what they mean, and that every mistake is one line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anygpt.chat_lines import (
    COMMANDS,
    FIELDS,
    Attachments,
    Command,
    Message,
    describe_lines,
    find_attachments,
    parse_line,
)
from anygpt.errors import AnyGPTError
from anygpt.media import Audio, save_audio, save_image

words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=20).filter(
    lambda text: not text.endswith("\\")
)
names = words.filter(lambda text: "\\" not in text)


def escaped(text: str) -> str:
    return text.replace("|", r"\|")


def listed(files: list[str]) -> str:
    return ",".join(escaped(file).replace(",", r"\,") for file in files)


@given(words)
def test_a_bare_line_is_a_text_instruction(text: str) -> None:
    assert parse_line(escaped(text)) == Message(text=text)


@settings(max_examples=50)
@given(
    text=words | st.just(""),
    answer=st.sampled_from([None, "text", "image", "speech", "music", "audio"]),
    fields=st.tuples(*[st.lists(names, max_size=3)] * 5),
    space=st.sampled_from(["", " "]),
)
def test_fields_come_out_as_they_went_in(
    text: str, answer: str | None, fields: tuple[list[str], ...], space: str
) -> None:
    third, fourth, speech, music, audio = fields
    line = f"{space}|{space}".join(["interleaved", escaped(text), answer or "", *map(listed, fields)])
    if bool(text) == bool(speech):
        with pytest.raises(AnyGPTError, match="two instructions|no instruction"):
            parse_line(line)
        return
    expected = Message(
        text=text,
        answer=answer,
        images_or_voice=(tuple(third), tuple(fourth)),
        speech=tuple(speech),
        music=tuple(music),
        audio=tuple(audio),
    )
    assert parse_line(line) == expected
    assert parse_line(line.rstrip("| ")) == expected or text.endswith("|") or not line.rstrip("| ")


@given(st.text(max_size=60))
def test_any_line_is_understood_or_refused_in_one_line(line: str) -> None:
    try:
        parsed = parse_line(line)
    except AnyGPTError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 500
    else:
        assert isinstance(parsed, Message | Command)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("|clear", Command(name="clear")),
        (" |Undo ", Command(name="undo")),
        ("|clear||", Command(name="clear")),
        ("|save my talk.json", Command(name="save", argument="my talk.json")),
        (r"|load a\|b.json", Command(name="load", argument="a|b.json")),
        ("clear", Message(text="clear")),
        ("Interleaved|hello|IMAGE", Message(text="hello", answer="image")),
        (r"interleaved|a \| b, c", Message(text="a | b, c")),
        ("interleaved|what is this?||||||b.wav", Message(text="what is this?", audio=("b.wav",))),
        ("interleaved||speech|||a.wav", Message(answer="speech", speech=("a.wav",))),
        (
            r"interleaved|x||a\,b.jpg, c.jpg|v.wav||m.wav",
            Message(text="x", images_or_voice=(("a,b.jpg", "c.jpg"), ("v.wav",)), music=("m.wav",)),
        ),
    ],
)
def test_lines(line: str, expected: Message | Command) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the line is empty"),
        ("|", r"unknown command '\|'"),
        ("|cler", r"unknown command '\|cler' \(did you mean '\|clear'\?\)"),
        ("|history now", r"\|history takes nothing after it, got 'now'"),
        ("|save", r"\|save needs a file name"),
        ("|clear|now", r"\|clear takes no fields"),
        ("|hello|image", r"unknown command '\|hello'.*begins with interleaved\|"),
        ("interleaved|", "no instruction"),
        ("interleaved|a|||| s.wav", "two instructions"),
        ("interleaved|a|picture", "unknown modality 'picture'; known: image, speech, music, audio, video, text"),
        ("interleaved|a|imge", r"unknown modality 'imge' \(did you mean 'image'\?\)"),
        ("interleaved|a|image|a.jpg,,b.jpg", r"image path: an empty file name in 'a.jpg,,b.jpg'"),
        ("interleaved|a||||||||x", r"takes 8 fields, got 9: write a bar inside a text as \\\|"),
        ("interleave|a", r"unknown task 'interleave' \(did you mean 'interleaved'\?\)"),
        ("one | two", r"unknown task 'one', expected interleaved\|...; a bar inside a text is written \\\|"),
        ("text|image|a red apple", "prompt of `anygpt base`"),
        ("Image Captioning|x||a.jpg", "the task 'Image Captioning' only words an instruction"),
    ],
)
def test_mistakes_say_what_to_type(line: str, message: str) -> None:
    with pytest.raises(AnyGPTError, match=message) as caught:
        parse_line(line)
    assert "\n" not in str(caught.value)


def test_help_names_every_field_and_command() -> None:
    text = "\n".join(describe_lines())
    assert all(f"{{{field}}}" in text for field in FIELDS)
    assert all(f"|{command}" in text for command in COMMANDS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, two sounds and a text; names that say something else than the content."""
    monkeypatch.chdir(tmp_path)
    image, sound = Image.new("RGB", (16, 16)), Audio(np.full((1, 1600), 0.5, np.float32), 16_000)
    save_image("a.jpg", image)
    save_image("b.png", image)
    save_audio("v.wav", sound)
    save_audio("w.wav", sound)
    Path("picture.wav").write_bytes(Path("b.png").read_bytes())
    Path("sound.jpg").write_bytes(Path("v.wav").read_bytes())
    Path("text.jpg").write_text("hello")
    Path("empty.jpg").touch()
    return tmp_path


def attachments(*fields: str) -> Attachments:
    message = parse_line("|".join(["interleaved", "x", "", *fields]))
    assert isinstance(message, Message)
    return find_attachments(message)


def test_pictures_and_voice_in_both_orders(folder: Path) -> None:
    expected = Attachments(media=(("image", "a.jpg"), ("image", "b.png")), voice="v.wav")
    assert attachments("a.jpg, b.png", "v.wav") == attachments("v.wav", "a.jpg,b.png") == expected
    assert attachments("v.wav") == attachments("", "v.wav") == Attachments(voice="v.wav")
    assert attachments("a.jpg") == attachments("", "a.jpg") == Attachments(media=(("image", "a.jpg"),))


def test_content_counts_and_not_the_name(folder: Path) -> None:
    assert attachments("sound.jpg", "picture.wav") == Attachments(media=(("image", "picture.wav"),), voice="sound.jpg")


def test_music_and_speech_have_their_fields(folder: Path) -> None:
    assert attachments("", "", "", "v.wav,w.wav").media == (("music", "v.wav"), ("music", "w.wav"))
    assert attachments("a.jpg", "", "", "v.wav", "w.wav").media == (
        ("image", "a.jpg"),
        ("music", "v.wav"),
        ("audio", "w.wav"),
    )
    spoken = parse_line("interleaved||speech|a.jpg||v.wav|w.wav")
    assert isinstance(spoken, Message)
    assert find_attachments(spoken).media == (("image", "a.jpg"), ("music", "w.wav"), ("speech", "v.wav"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file"),
        (["a.jpg", "nowhere.wav"], "nowhere.wav: no such file"),
        ([".", ""], ".: is a directory"),
        (["empty.jpg"], r"empty.jpg: the file is empty \(0 bytes\)"),
        (["text.jpg"], "text.jpg: neither a picture nor a sound"),
        (["a.jpg,v.wav"], "'a.jpg' is a picture and 'v.wav' a sound"),
        (["a.jpg", "b.png"], "both the image path and the voice prompt are pictures: put all pictures into one"),
        (["v.wav", "w.wav"], "both the image path and the voice prompt are sounds"),
        (["v.wav,w.wav"], "2 voice prompts"),
        (["", "", "", "a.jpg"], "a.jpg: is a picture, expected a sound for the music path"),
        (["\0"], "no such file"),
        (["x" * 5000], "can't be read"),
    ],
)
def test_unfit_files_are_one_line(folder: Path, fields: list[str], message: str) -> None:
    with pytest.raises(AnyGPTError, match=message) as caught:
        attachments(*fields)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
