"""From described conversations to turns."""

import pytest
import torch
from torch import Tensor

from anygpt.data.dialogue import HEARD, REPLY, Dialogue, MediaRef, Message, check_messages, to_turns
from anygpt.data.instructions import instruction_row, turns_of
from anygpt.errors import AnyGPTError
from anygpt.paths import resource
from anygpt.prompts.render import render
from anygpt.prompts.segments import Media
from anygpt.prompts.templates import user_turn
from anygpt.vocabulary import Text, Vocabulary
from anygpt.world.dialogues import DialogueWorld

PICTURE = MediaRef(modality="image", caption="a cat")
SAID = MediaRef(modality="speech", caption="draw a cat")


def user(*parts: str | MediaRef) -> Message:
    return Message(role="user", parts=parts)


def assistant(*parts: str | MediaRef, heard: str | None = None) -> Message:
    return Message(role="assistant", parts=parts, heard=heard)


def dialogue(*messages: Message) -> Dialogue:
    return Dialogue(topic="animals", scenario="test", messages=messages)


def codes(ref: MediaRef) -> Tensor:
    """Codes that fit the small model's vocabulary, other ones for each medium."""
    levels, size, frames = {"image": (1, 1024, 32), "speech": (1, 256, 40), "music": (4, 512, 150)}[ref.modality]
    generator = torch.Generator().manual_seed(sum(map(ord, ref.caption + ref.key)))
    return torch.randint(size, (levels, frames), generator=generator)


def test_a_users_message_is_what_chat_makes_of_it() -> None:
    turns = to_turns(dialogue(user("what is", PICTURE, "this?"), assistant("a cat")), codes)
    assert turns[0] == user_turn("what is this?", [Media("image", codes(PICTURE))])
    assert turns[1].segments == (Text("a cat"),)


def test_a_spoken_instruction_is_heard_and_answered() -> None:
    turns = to_turns(dialogue(user(SAID), assistant("Here.", PICTURE, heard="draw a cat")), codes)
    assert turns[0] == user_turn("", [Media("speech", codes(SAID))])
    assert turns[1].segments == (HEARD, Text("draw a cat"), REPLY, Text("Here."), Media("image", codes(PICTURE)))


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((), "0 messages"),
        ((user("hi"),), "1 messages"),
        ((assistant("hi"), user("hi")), r"message 1 \(assistant\): expected user and assistant in turn"),
        ((user("hi"), user("hi")), r"message 2 \(user\): expected user and assistant in turn"),
        ((user(" "), assistant("hi")), "is empty"),
        ((user("hi"), assistant()), "is empty"),
        ((user(PICTURE), assistant("hi")), "expected one instruction, written or spoken"),
        ((user("hi", SAID), assistant("hi", heard="draw a cat")), "expected one instruction"),
        ((user(SAID, SAID), assistant("hi", heard="draw a cat")), "expected one instruction"),
        ((user(SAID), assistant("hi")), "'heard' belongs to answers to spoken"),
        ((user("hi"), assistant("hi", heard="hi")), "'heard' belongs to answers to spoken"),
    ],
)
def test_conversations_that_chat_could_not_have_are_refused(messages: tuple[Message, ...], problem: str) -> None:
    with pytest.raises(AnyGPTError, match=problem):
        check_messages(dialogue(*messages))


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.from_pretrained(resource("models", "anygpt-mini-base"))


def test_rows_hold_the_turns_and_training_begins_as_chat_does(vocab: Vocabulary) -> None:
    world = DialogueWorld("train", seed=3)
    specs = {name: block.spec for name, block in vocab.blocks.items()}
    for index in range(60):
        turns = to_turns(world.dialogue(index), codes)
        assert turns_of(instruction_row(index, turns, specs), vocab, "here") == turns
        trained = render(turns, "AnyGPT", vocab, end_of_text=True)
        for number in range(1, len(turns), 2):
            asked = render(turns[:number], "AnyGPT", vocab).ids
            assert trained.ids[: len(asked)] == asked
