"""What is read of a public set, and where it lies."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Item:
    """One case of a set: `media` with what people said about them."""

    media: Any
    """A file, or a function that gives a picture."""
    text: str = ""
    """A caption or transcript, or a question."""
    references: tuple[str, ...] = ()
    """All captions, all people's answers, or the choices."""
    truth: dict[str, str] = field(default_factory=dict)
    others: tuple[Any, ...] = ()
    """Further files, such as a voice prompt."""


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A set and its layout."""

    place: str
    """What has to be in the data folder, for messages."""
    read: Callable[[Path], Iterator[Item]]
    """The items below the data folder, in a fixed order."""


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError or ValueError for one that can't be read."""
    return json.loads(path.read_text(encoding="utf-8"))
