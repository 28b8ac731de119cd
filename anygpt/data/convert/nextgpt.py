"""NExT-GPT's instructions (`data/IT_data` and `data/T_X_pair_data`), in all the forms that its scripts write.

Prepared (`prepare_data.py`): the marks `<image>`, `<audio>` and `<video>` of the user take the names in `input_<kind>`
in turn, those of the assistant the names in `output_<kind>`, or in `<kind>_caption_embeddings` less their `.npy`:

    {"input_image": "001312382.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, …]}
    {"output_audio": "106158.wav", "conversations": [{…}, {"from": "gpt", "value": "Sure thing! <audio>"}]}
    {"image_captions": ["…"], "image_caption_embeddings": ["it_img_0.jpg.npy"], "conversations": […]}

MosIT as collected: names stand in the text, listed under `<kind>_list`. What stands between such tags and isn't listed
is a description of something that was never made, and left out, as `prepare_data.py` does.

    {"image_list": [{"image_name": "mosit_i_0.jpg", "caption": "…"}], "video_list": [], "audio_list": [],
     "conversation": [{…}, {"from": "gpt", "value": "Here it is. <Image>mosit_i_0.jpg</Image>"}]}

T+X-T and T-T+X as collected: no marks, one name (`image_name` or `mm_name`, of whatever kind, or of a sound the number
in `source_data`), which goes where `input_modality` or `output_modality` of a message says, or without any to the first
question. A row that says so without a name for it is a fault:

    {"image_name": "34706.wav", "conversation": [{"from": "human", "value": "…", "input_modality": "text"},
     {"from": "gpt", "value": "…", "caption": "…", "output_modality": "audio"}]}
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from anygpt.data.convert.llava import MARK, spoken
from anygpt.data.dialogue import MediaRef, Message
from anygpt.data.plain_text import checked_text
from anygpt.data.tars import EXTENSIONS
from anygpt.errors import AnyGPTError
from anygpt.prompts.segments import Role

KINDS = ("image", "audio", "video")
CONTAINERS = ("conversations", "conversation")
NAMES = ("image_name", "mm_name")
HINTS: dict[Role, str] = {"user": "input_modality", "assistant": "output_modality"}
_MARK = re.compile(r"<(?:(?P<kind>image|audio|video)|(?P<tag>Image|Audio|Video)>(?P<name>.*?)</(?P=tag))>", re.DOTALL)


def read_nextgpt(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row; see `JsonSource`. Raises AnyGPTError naming the message and the field."""
    items = list(spoken(next((row[name] for name in CONTAINERS if name in row), None)))
    names = _Names(row)
    has_hints = any(item.keys() & set(HINTS.values()) for _, _, item in items)
    messages: list[Message] = []
    for where, role, item in items:
        refs = [ref for mark in _MARK.finditer(item["value"]) for ref in names.marked(mark, role, where)]
        if not refs:
            hint = item.get(HINTS[role]) if has_hints else None if messages else names.kind
            refs = names.hinted(hint)
            if hint in KINDS and not refs:
                raise AnyGPTError(f"{where}: {HINTS[role]} is {hint}, but the row names no file")
        parts = (part.strip() for part in _MARK.sub(MARK, item["value"]).split(MARK))
        text = checked_text(" ".join(part for part in parts if part), where)
        messages.append(Message(role=role, parts=(*([text] if text else []), *refs)))
    names.check_used()
    return messages


class _Names:
    """The files that a row names, and which of them messages have taken."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._due: dict[tuple[Role, str], list[str]] = {}
        for kind in KINDS:
            outputs = _listed(row, f"output_{kind}")
            made = [name.removesuffix(".npy") for name in _listed(row, f"{kind}_caption_embeddings")]
            self._due["user", kind] = _listed(row, f"input_{kind}")
            self._due["assistant", kind] = outputs or made
        listed = (item for kind in KINDS for item in row.get(f"{kind}_list") or [])
        self._inline = {value for item in listed if isinstance(item, dict) for value in map(str, item.values())}
        is_listed = bool(self._inline) or any(self._due.values())
        fallback = None if is_listed else _source_sound(row)
        self._name = next((row[field] for field in NAMES if isinstance(row.get(field), str)), fallback)

    @property
    def kind(self) -> str | None:
        """Of the row's one name, by its extension; None where it has none."""
        suffix = PurePosixPath(self._name or "").suffix[1:].lower()
        return next((kind for kind in KINDS if suffix in EXTENSIONS[kind]), None)

    def marked(self, mark: re.Match[str], role: Role, where: str) -> list[MediaRef]:
        """What a mark in a message stands for."""
        if mark["tag"] is not None:
            name = mark["name"].strip()
            return [_ref(mark["tag"].lower(), name)] if name in self._inline else []
        due = self._due[role, mark["kind"]]
        if not due and self._name is not None:
            return self.hinted(mark["kind"])
        if not due:
            raise AnyGPTError(f"{where}: <{mark['kind']}>, but no file is left for it")
        return [_ref(mark["kind"], due.pop(0))]

    def hinted(self, kind: Any) -> list[MediaRef]:
        """The row's one name as a medium of a kind; nothing for text."""
        return [_ref(kind, self._name)] if kind in KINDS and self._name is not None else []

    def check_used(self) -> None:
        """Raise AnyGPTError for a file that no message has taken."""
        left = [f"{kind} '{names[0]}'" for (_, kind), names in self._due.items() if names]
        if left:
            raise AnyGPTError(f"no mark stands for the {' and the '.join(left)}")


def _ref(kind: str, name: str) -> MediaRef:
    return MediaRef(modality=kind, caption="", key=name)


def _source_sound(row: Mapping[str, Any]) -> str | None:
    """The file of AudioCaps that a row was written about, named as `prepare_data.py` names it; None for none."""
    source = row.get("source_data")
    number = source.get("audiocap_id") if isinstance(source, dict) else None
    return f"{number}.wav" if isinstance(number, int | str) and str(number).isdigit() else None


def _listed(row: Mapping[str, Any], field: str) -> list[str]:
    value = row.get(field)
    names: Sequence[Any] = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(name, str) and name for name in names):
        raise AnyGPTError(f"field '{field}' is not the name of a file, or a list of names")
    return list(names)
