"""The published instruction JSONL: one conversation a line.

`{"id": 1, "conversation": [[{"role": "user", "message": "…<sosp>…<eosp>…"}, {"role": "assistant", "message": "…"}]]}`:
a list of rounds, each a user's message and the assistant's answer. Further keys of a row are left alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from anygpt.errors import AnyGPTError
from anygpt.modality import ModalitySpec
from anygpt.prompts.segments import Role, Turn, segments_from_marked, segments_to_marked
from anygpt.vocabulary import Control, Vocabulary

ROUND: tuple[Role, ...] = ("user", "assistant")
MESSAGE_CONTROLS = ("<-Ins->", "<-Res->")
"""Control tokens that a message may hold: before what was heard, and before the reply to it."""


def instruction_row(id: int | str, turns: Sequence[Turn], specs: Mapping[str, ModalitySpec]) -> dict[str, Any]:
    """The row of a conversation in which user and assistant take turns; `specs` by modality name.

    Raises AnyGPTError for turns that are no whole rounds, CodeError for codes that don't fit.
    """
    roles = [turn.role for turn in turns]
    if not turns or roles != list(ROUND) * (len(turns) // 2):
        raise AnyGPTError(f"conversation {id}: roles are {', '.join(roles) or 'none'}; expected user, assistant, …")
    messages = [{"role": turn.role, "message": segments_to_marked(turn.segments, specs)} for turn in turns]
    return {"id": id, "conversation": [messages[at : at + 2] for at in range(0, len(messages), 2)]}


def turns_of(row: Mapping[str, Any], vocab: Vocabulary, where: str) -> list[Turn]:
    """The turns of a row, the inverse of `instruction_row`; `where` (file and line) begins every message.

    Raises AnyGPTError for a row of another form, an empty message, a control token that can't stand in a message, or
    a broken span.
    """
    turns = []
    for number, (role, message) in enumerate(messages_of(row, where), start=1):
        try:
            segments = segments_from_marked(message, vocab)
        except AnyGPTError as error:
            raise AnyGPTError(f"{where}: message {number} ({role}): {error}") from None
        for segment in segments:
            if isinstance(segment, Control) and segment.token not in MESSAGE_CONTROLS:
                raise AnyGPTError(
                    f"{where}: message {number} ({role}) holds {segment.token}; of control tokens only "
                    f"{' and '.join(MESSAGE_CONTROLS)} may stand in a message"
                )
        turns.append(Turn(role, segments))
    return turns


def messages_of(row: Mapping[str, Any], where: str) -> list[tuple[Role, str]]:
    """Role and marked message of every turn of a row, without reading the codes. Raises AnyGPTError."""
    rounds = row.get("conversation")
    if not isinstance(rounds, list) or not rounds:
        raise AnyGPTError(f"{where}: field 'conversation' is missing or empty; expected a list of rounds")
    messages: list[tuple[Role, str]] = []
    for number, turns in enumerate(rounds, start=1):
        if not isinstance(turns, list) or len(turns) != len(ROUND):
            raise AnyGPTError(f"{where}: round {number} is not a list of a user's and an assistant's message")
        for role, turn in zip(ROUND, turns, strict=True):
            if not isinstance(turn, dict) or turn.get("role") != role:
                got = turn.get("role") if isinstance(turn, dict) else turn
                raise AnyGPTError(f"{where}: round {number}: role is {got!r} where '{role}' is due")
            message = turn.get("message")
            if not isinstance(message, str) or not message.strip():
                raise AnyGPTError(f"{where}: round {number}: the {role}'s 'message' is missing or empty")
            messages.append((role, message))
    return messages
