"""The wordings of the base tasks' instructions: `task_prompts/base.yaml`."""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anygpt.config import from_dict, read_mapping
from anygpt.errors import ConfigError, nearest
from anygpt.modality import MODALITIES
from anygpt.paths import resource
from anygpt.prompts.templates import DIRECTIONS, Direction

# A wording that looked like a tag or a field of a form would not reach the model as written.
_MARKUP = re.compile(r"[<>{}\[\]\n]")


@dataclass(frozen=True, kw_only=True)
class Wordings:
    """The instructions of one task."""

    canonical: str
    """What inference uses; it is also among those that training draws from."""
    varied: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for wording in self.all:
            if wording != wording.strip() or not wording:
                raise ConfigError(f"wording {wording!r} is empty or has space at an end")
            if _MARKUP.search(wording):
                raise ConfigError(f"wording {wording!r} holds a line break or one of < > {{ }} [ ]")
            if self.all.count(wording) > 1:
                raise ConfigError(f"wording {wording!r} is there twice")

    @property
    def all(self) -> tuple[str, ...]:
        """The canonical wording and the varied ones."""
        return (self.canonical, *self.varied)


class TaskPrompts:
    """Instructions by modality and direction."""

    def __init__(self, wordings: dict[str, dict[Direction, Wordings]], source: str) -> None:
        self._wordings = wordings
        self._source = source

    @classmethod
    def load(cls, path: Path | str | None = None) -> "TaskPrompts":
        """Read the wordings from `path` or the shipped file.

        Raises ConfigError naming the file, modality and direction for an unknown or missing key, and for wordings
        that are empty, double or hold markup.
        """
        path = Path(path) if path is not None else resource("task_prompts", "base.yaml")
        tasks = {name: _checked_task(name, task, str(path)) for name, task in read_mapping(path).items()}
        return cls(tasks, str(path))

    def wordings(self, modality: str, direction: Direction) -> Wordings:
        """All instructions of one task. Raises ConfigError when the file has none for the modality."""
        try:
            return self._wordings[modality][direction]
        except KeyError:
            known = ", ".join(self._wordings)
            raise ConfigError(f"{self._source}: no wordings for '{modality}' {direction}; there are: {known}") from None

    def canonical(self, modality: str, direction: Direction) -> str:
        """The one instruction that inference uses."""
        return self.wordings(modality, direction).canonical

    def sample(self, modality: str, direction: Direction, rng: random.Random) -> str:
        """One instruction, each equally likely."""
        return rng.choice(self.wordings(modality, direction).all)


def _checked_task(modality: str, directions: Any, source: str) -> dict[Direction, Wordings]:
    if modality not in MODALITIES:
        hint, known = nearest(modality, MODALITIES), ", ".join(MODALITIES)
        raise ConfigError(f"{source}: unknown modality '{modality}'{hint}; known: {known}")
    if not isinstance(directions, dict) or set(directions) != set(DIRECTIONS):
        got = ", ".join(map(str, directions)) if isinstance(directions, dict) else repr(directions)
        raise ConfigError(f"{source}: '{modality}' must have the keys {' and '.join(DIRECTIONS)}, got {got}")
    checked: dict[Direction, Wordings] = {}
    for direction in DIRECTIONS:
        where, task = f"{source}: {modality} {direction}", directions[direction]
        if not isinstance(task, dict):
            raise ConfigError(f"{where}: expected the keys canonical and varied, got {task!r}")
        checked[direction] = from_dict(Wordings, task, where)
    return checked
