"""LLaVA-style conversations about pictures: a JSON array or JSONL, beside a folder (or tars) of images.

    {"id": "000000033471", "image": "000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}]}

`image` may be a list (as `images` of some descendants); the marks `<image>` take its names in turn. Where a mark stands
in the text is not kept: chat puts the media of a message before its text. Rows without a picture are text chats.
An answer before the first question is left out, as in LLaVA's own preprocessing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from anygpt.data.dialogue import MediaRef, Message
from anygpt.data.plain_text import checked_text
from anygpt.errors import AnyGPTError
from anygpt.prompts.segments import Role

MARK = "<image>"
ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def read_llava(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row; see `JsonSource`. Raises AnyGPTError naming the message and the field."""
    names = _names(row)
    messages: list[Message] = []
    used = 0
    for where, role, item in spoken(row.get("conversations")):
        marks = item["value"].count(MARK)
        if role == "assistant":
            if marks:
                raise AnyGPTError(f"{where} holds {MARK}, but is an answer")
            if not messages:
                continue
        text = checked_text(" ".join(part.strip() for part in item["value"].split(MARK)), where)
        refs = [MediaRef(modality="image", caption="", key=name) for name in names[used : used + marks]]
        used += marks
        messages.append(Message(role=role, parts=(*([text] if text else []), *refs)))
    if used != len(names):
        raise AnyGPTError(f"{used} {MARK} marks, but {len(names)} names of pictures")
    return messages


def spoken(items: Any) -> Iterator[tuple[str, Role, dict[str, Any]]]:
    """The place, role and object of each message, whose `value` is text. Raises AnyGPTError."""
    if not isinstance(items, list) or not items:
        raise AnyGPTError("field 'conversations' is missing or empty, expected a list of messages")
    for number, item in enumerate(items, start=1):
        where = f"message {number}"
        if not isinstance(item, dict) or not isinstance(item.get("value"), str):
            raise AnyGPTError(f"{where} is not an object with from and value")
        role = ROLES.get(item["from"]) if isinstance(item.get("from"), str) else None
        if role is None:
            raise AnyGPTError(f"{where}: 'from' is {item.get('from')!r}, expected human or gpt")
        yield where, role, item


def _names(row: Mapping[str, Any]) -> list[str]:
    value = row.get("image", row.get("images"))
    names = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(name, str) and name for name in names):
        raise AnyGPTError("field 'image' is not the name of a file, or a list of names")
    return names
