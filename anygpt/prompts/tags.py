"""Tags at the beginning of an instruction about a picture, as in MiniGPT-v2 (Chen et al. 2023, table 1): plain text."""

import re
from typing import Literal

TAGS = ("caption", "vqa", "grounding", "refer", "detection", "identify")

BoxForm = Literal["alone", "amid text"]
"""How boxes stand in an answer: they are all of it, or they stand in a text."""
_FORMS: dict[str, BoxForm] = {"refer": "alone", "detection": "amid text", "grounding": "amid text"}
_TAG = re.compile(rf"\s*\[({'|'.join(TAGS)})\](?=\s|$)")


def find_tag(instruction: str) -> str | None:
    """The tag that an instruction begins with, None where there is none."""
    match = _TAG.match(instruction)
    return match[1] if match else None


def box_form(instruction: str) -> BoxForm | None:
    """How boxes stand in the answer to an instruction; None where its tag asks for none, or it has no tag."""
    return _FORMS.get(find_tag(instruction) or "")


def tagged(tag: str, instruction: str = "") -> str:
    """An instruction behind its tag."""
    assert tag in TAGS, tag
    return f"[{tag}] {instruction}".strip()
