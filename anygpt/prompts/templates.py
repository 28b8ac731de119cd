"""The templates of `task_prompts/templates.yaml`: role tags, separators, system lines, forms of base prompts."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from anygpt.config import load_config
from anygpt.errors import ConfigError, nearest
from anygpt.modality import MODALITIES
from anygpt.paths import resource
from anygpt.prompts.segments import Media, Segment, Turn
from anygpt.vocabulary import Control, Text

Direction = Literal["x2text", "text2x"]
"""Of a task: any modality to text, or text to any modality."""
DIRECTIONS: tuple[Direction, ...] = ("x2text", "text2x")


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a checkpoint's conversations are written. Roles and ends are control tokens of its vocabulary."""

    system: str
    user: str
    assistant: str
    user_end: str
    assistant_end: str
    words_first: bool = False
    """Whether the text of a user's message that follows its media is written before them: a small model reads media
    best where they always stand, right before its answer."""
    perceives: dict[str, str] = field(default_factory=dict)
    """By modality the pattern of words in an answer that say what is shown or played to it; its first group is that."""
    announces: str = ""
    """The pattern of words before a picture or sound in an answer; its first group says what that is."""

    def __post_init__(self) -> None:
        for name in self.perceives:
            if name not in MODALITIES:
                raise ConfigError(f"'perceives': unknown modality '{name}'{nearest(name, MODALITIES)}")
        for pattern in filter(None, (self.announces, *self.perceives.values())):
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ConfigError(f"{pattern!r} is no regular expression: {error}") from None
            if groups < 1:
                raise ConfigError(f"{pattern!r} has no group, expected one such as 'Here is (.+)'")

    def announced(self, text: str) -> str:
        """What `text` says that follows it: what the pattern finds last, else all of it."""
        found = list(re.finditer(self.announces, text)) if self.announces else []
        return found[-1].group(1) if found else text

    def tags(self, role: str) -> tuple[Control, Control]:
        """The role tag and the end tag of a turn."""
        if role == "user":
            return Control(self.user), Control(self.user_end)
        return Control(self.assistant), Control(self.assistant_end)


@dataclass(frozen=True, kw_only=True)
class MessageForm:
    """How a user's media and text become one message."""

    order: tuple[str, ...]
    requests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.order, *self.requests):
            if name not in MODALITIES:
                raise ConfigError(f"message: unknown modality '{name}'{nearest(name, MODALITIES)}")


@dataclass(frozen=True, kw_only=True)
class BaseTemplate:
    """The forms of one question and one answer, with the fields {instruction}, {input} and {output}."""

    user: str
    assistant: str
    user_end: str
    assistant_end: str
    x2text: str
    text2x: str
    custom: str
    answer: str

    def fill(self, form: str, **fields: Sequence[Segment]) -> list[Segment]:
        """The segments of `form` (`x2text`, `text2x`, `custom` or `answer`) with its fields replaced."""
        controls = (self.user, self.assistant, self.user_end, self.assistant_end)
        tokens = "|".join(map(re.escape, controls))
        filled: list[Segment] = []
        for part in re.split(rf"({tokens}|\{{[a-z]+\}})", getattr(self, form)):
            if part in controls:
                filled.append(Control(part))
            elif part.startswith("{"):
                filled += fields[part[1:-1]]
            elif part:
                filled.append(Text(part))
        return filled


@dataclass(frozen=True, kw_only=True)
class Templates:
    """The whole file."""

    chat: dict[str, ChatTemplate]
    message: MessageForm
    base: BaseTemplate


@cache
def load_templates() -> Templates:
    """Read `task_prompts/templates.yaml`, once. Raises ConfigError for a key that is unknown or missing."""
    return load_config(Templates, resource("task_prompts", "templates.yaml"))


def get_template(name: str) -> ChatTemplate:
    """The chat template called `name`. Raises ConfigError that lists the known names."""
    templates = load_templates().chat
    try:
        return templates[name]
    except KeyError:
        known = ", ".join(templates)
        raise ConfigError(f"unknown template '{name}'{nearest(name, templates)}; known: {known}") from None


def user_turn(text: str, media: Iterable[Media] = ()) -> Turn:
    """A user's message the way checkpoints saw it in training: media by kind, each followed by a space, then text.

    With speech in it, a fixed request for a spoken reply is appended, as in the released chat model.
    """
    form = load_templates().message
    place = {name: number for number, name in enumerate(form.order)}
    ordered = sorted(media, key=lambda item: place.get(item.modality, len(place)))
    segments: list[Segment] = []
    for item in ordered:
        segments += (item, Text(" "))
    present = {item.modality for item in ordered}
    requests = [f" {request}" for name, request in form.requests.items() if name in present]
    segments.append(Text(text + "".join(requests)))
    return Turn("user", strip_segments(segments))


def strip_segments(segments: Iterable[Segment]) -> list[Segment]:
    """The segments with neighbouring texts joined, empty ones dropped and no space at either end."""
    joined = join_texts(segments)
    if joined and isinstance(joined[0], Text):
        joined[0] = Text(joined[0].text.lstrip())
    if joined and isinstance(joined[-1], Text):
        joined[-1] = Text(joined[-1].text.rstrip())
    return [segment for segment in joined if segment != Text("")]


def join_texts(segments: Iterable[Segment]) -> list[Segment]:
    """The segments with neighbouring texts joined and empty ones dropped."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if isinstance(segment, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + segment.text)
        elif segment != Text(""):
            joined.append(segment)
    return joined
