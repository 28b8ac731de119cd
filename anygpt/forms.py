"""The one-line prompts of the base command: `text|image|a red apple`, `speech|text|hello.wav`.

The forms follow from the modality table: each modality has one that makes it from text and one that reads it, which may
say what is wanted: `image|text|photo.jpg|[refer] the red apple`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from anygpt.errors import AnyGPTError, nearest
from anygpt.modality import MODALITIES, ModalitySpec

TEXT = "text"
INSTRUCTION = "instruction"
"""The field behind a file that says what is wanted of it, in place of the form's own words."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A prompt taken apart."""

    source: str
    """Modality of `content`, or "text"."""
    target: str
    """Modality of the answer, or "text"."""
    content: str
    """The text itself, or the path of a file."""
    fields: dict[str, str] = field(default_factory=dict)
    """What followed the content: the target's `instruction_fields`, or behind a file an instruction."""

    @property
    def modality(self) -> str:
        """The one of the two that is not text."""
        return self.target if self.source == TEXT else self.source


def describe_forms(specs: Iterable[ModalitySpec]) -> list[str]:
    """The forms of these modalities as the help shows them, without optional fields first; the instruction that may
    stand behind a file is left out."""
    lines: list[str] = []
    for spec in specs:
        lines.append(f"text|{spec.name}|<text>")
        if spec.instruction_fields:
            lines.append(lines[-1] + "".join(f"|<{name} file>" for name in spec.instruction_fields))
        lines.append(f"{spec.name}|text|<{spec.name} file>")
    return lines


def parse_form(prompt: str, specs: Iterable[ModalitySpec]) -> Form:
    r"""Take a prompt apart; `\|` is a bar that belongs to the text.

    Raises AnyGPTError for an unknown form, an empty field or too many of them.
    """
    rows = {spec.name: spec for spec in specs}
    parts = split_bars(prompt)
    pairs = [f"text|{name}" for name in rows] + [f"{name}|text" for name in rows]
    if len(parts) < 3:
        raise AnyGPTError(f"unknown form {quoted(prompt)}; expected {', '.join(f'{pair}|...' for pair in pairs)}")
    pair = "|".join(parts[:2]).lower()
    if pair not in pairs:
        lacking = [name for name in pair.split("|") if name in MODALITIES and name not in rows]
        hint = f", this model has no {lacking[0]}" if lacking else nearest(pair, pairs)
        raise AnyGPTError(f"unknown form '{quoted(pair)[1:-1]}|...'{hint}; known: {', '.join(pairs)}")
    source, target = pair.split("|")
    names = rows[target].instruction_fields if source == TEXT else (INSTRUCTION,)
    content, extra = parts[2], parts[3:]
    if len(extra) > len(names):
        raise AnyGPTError(
            f"{pair} takes {1 + len(names)} field{'s' if names else ''}, got {1 + len(extra)}: "
            rf"write a bar inside a text as \|"
        )
    what = "text" if source == TEXT else f"path of the {source} file"
    called = [name if name == INSTRUCTION else f"{name} file" for name in names]
    for name, value in zip([what, *called], [content, *extra], strict=False):
        if not value:
            raise AnyGPTError(f"{pair}: the {name} is empty")
    return Form(source=source, target=target, content=content, fields=dict(zip(names, extra, strict=False)))


def split_bars(prompt: str) -> list[str]:
    r"""The fields of a prompt without space at their ends, `\|` replaced by a bar."""
    return [part.replace(r"\|", "|").strip() for part in re.split(r"(?<!\\)\|", prompt)]


def quoted(text: str) -> str:
    """For messages: on one line and of bounded length."""
    return repr(text if len(text) <= 60 else text[:59] + "…")
