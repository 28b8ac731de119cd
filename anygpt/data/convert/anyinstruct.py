"""AnyInstruct (`fnlp/AnyInstruct` on the Hugging Face hub, the paper's section 4): metadata beside tars of media.

The data set card lists `part1/` and `part2/`, each `metadata.json` with `images_224.tar`, `speech.tar` and `music.tar`,
and `speech_conv/`, `metadata.jsonl` with `speech.tar`. A row of the last, as published loaders read it:

    {"chat": [{"role": "USER", "message": "Write a …", "speech": "chunk_00000/0001.mp3"},
              {"role": "AnyGPT", "message": "The …", "speech": "chunk_00000/0002.mp3"}]}

Assumed, since the card does not say it: the metadata of the parts is an array (or JSONL) of such rows, with the names
of pictures and music under `image` and `music` (or the plural, or a list of names; null and "" for none) of the message
that holds them; the list of messages may be called `conversation` and may be grouped in rounds, as the published
training format has it. Where the tars' members lie is left open, see `MediaStore`.

`message` beside `speech` is what is said in it. So a spoken message of a user becomes the recording alone, and what
was said goes in front of the answer (`<-Ins->…<-Res->`), as in the published training rows. A greeting before the first
question is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from anygpt.data.dialogue import MediaRef, Message
from anygpt.data.plain_text import checked_text
from anygpt.errors import AnyGPTError
from anygpt.modality import MODALITIES
from anygpt.prompts.segments import Role

ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "[human]": "user",
    "assistant": "assistant",
    "anygpt": "assistant",
    "[anygpt]": "assistant",
    "mmgpt": "assistant",
    "[mmgpt]": "assistant",
}
"""Role in lower case -> ours."""
CONTAINERS = ("chat", "conversation", "conversations", "messages")
TEXTS = ("message", "text", "content")


def read_anyinstruct(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row; see `JsonSource`. Raises AnyGPTError naming the message and the field."""
    messages: list[Message] = []
    heard: str | None = None
    for number, item in enumerate(_items(row), start=1):
        where = f"message {number}"
        if not isinstance(item, dict):
            raise AnyGPTError(f"{where} is not an object with role and message")
        given = item.get("role")
        role = ROLES.get(given.strip().lower()) if isinstance(given, str) else None
        if role is None:
            raise AnyGPTError(f"{where}: role is {given!r}, expected USER or AnyGPT")
        text = checked_text(_text(item, where), where)
        media = [
            MediaRef(modality=name, caption="", key=key) for name in MODALITIES for key in _names(item, name, where)
        ]
        if role == "assistant":
            if not messages:
                continue  # a greeting
            messages.append(Message(role=role, parts=(*([text] if text else []), *media), heard=heard))
            continue
        is_spoken = any(ref.modality == "speech" for ref in media)
        if is_spoken and not text:
            raise AnyGPTError(f"{where}: speech without the words in it, which the answer repeats")
        heard = text if is_spoken else None
        messages.append(Message(role=role, parts=(*([] if is_spoken or not text else [text]), *media)))
    return messages


def _items(row: Mapping[str, Any]) -> Sequence[Any]:
    """The messages, rounds taken apart."""
    items = next((row[name] for name in CONTAINERS if name in row), None)
    if not isinstance(items, list) or not items:
        raise AnyGPTError("field 'chat' is missing or empty, expected a list of messages")
    return [item for entry in items for item in (entry if isinstance(entry, list) else [entry])]


def _text(item: Mapping[str, Any], where: str) -> str:
    text = next((item[name] for name in TEXTS if item.get(name) is not None), "")
    if not isinstance(text, str):
        raise AnyGPTError(f"{where}: field 'message' is {type(text).__name__}, expected text")
    return text


def _names(item: Mapping[str, Any], modality: str, where: str) -> list[str]:
    """The file names under the modality's field."""
    names: list[str] = []
    for field in (modality, f"{modality}s"):
        value = item.get(field)
        listed = value if isinstance(value, list) else [value]
        for name in listed:
            if name is not None and not isinstance(name, str):
                raise AnyGPTError(f"{where}: field '{field}' is {type(name).__name__}, expected the name of a file")
        names += [name for name in listed if name]
    return names
