"""The instruction JSONL: rows and turns are inverses, and what a bad row says."""

from typing import Any

import pytest
import torch
from fixtures_tiny import SPECS, build_vocabulary

from anygpt.data.instructions import instruction_row, turns_of
from anygpt.errors import AnyGPTError
from anygpt.prompts.segments import Media, Turn
from anygpt.vocabulary import Control, Text, Vocabulary

WHERE = "chat.jsonl: line 3"


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return build_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def _turns() -> list[Turn]:
    picture = Media("image", torch.arange(24).repeat(2)[None, :32] % 24)
    speech = Media("speech", torch.tensor([[3, 1, 4]]))
    heard = [Control("<-Ins->"), Text("draw it"), Control("<-Res->"), Text("Here it is. "), picture]
    return [
        Turn("user", [picture, Text(" What is this?")]),
        Turn("assistant", [Text("A square.")]),
        Turn("user", [speech, Text(" Please answer")]),
        Turn("assistant", heard),
    ]


def test_rows_and_turns_are_inverses(vocab: Vocabulary) -> None:
    row = instruction_row(7, _turns(), SPECS)
    assert row["id"] == 7 and [len(pair) for pair in row["conversation"]] == [2, 2]
    assert row["conversation"][1][1]["message"].startswith("<-Ins->draw it<-Res->Here it is. <soim>")
    assert turns_of({**row, "scenario": "any"}, vocab, WHERE) == _turns()


def test_only_whole_rounds_are_written() -> None:
    for turns in ([], _turns()[:1], _turns()[1:3]):
        with pytest.raises(AnyGPTError, match="expected user, assistant"):
            instruction_row(7, turns, SPECS)


def _row(user: Any, assistant: Any = "fine") -> dict[str, Any]:
    return {"conversation": [[{"role": "user", "message": user}, {"role": "assistant", "message": assistant}]]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "field 'conversation' is missing or empty"),
        ({"conversation": [{"role": "user"}]}, "round 1 is not a list"),
        ({"conversation": [[{"role": "human", "message": "a"}] * 2]}, "role is 'human' where 'user' is due"),
        ({"conversation": [["a", "b"]]}, "role is 'a' where 'user' is due"),
        (_row(" "), "the user's 'message' is missing or empty"),
        (_row("hi", 3), "the assistant's 'message' is missing or empty"),
        (_row("look <soim><\N{EYES}3><eoim>"), r"message 1 \(user\): image: 1 frames"),
        (_row("hi", "well<eom>[Human]"), r"message 2 \(assistant\) holds <eom>"),
        (_row("</s>"), "holds </s>"),
    ],
)
def test_a_bad_row_is_told_with_its_place(vocab: Vocabulary, row: dict[str, Any], message: str) -> None:
    with pytest.raises(AnyGPTError, match=f"^{WHERE}: .*{message}") as caught:
        turns_of(row, vocab, WHERE)
    assert "\n" not in str(caught.value)
