"""Our manifests (`anygpt.data.media_manifest`): each pair of text and media becomes one question and its answer."""

import random
from collections.abc import Iterator
from pathlib import Path

from anygpt.data.convert.source import Draft, Source, draft
from anygpt.data.dialogue import MediaRef, Message
from anygpt.data.media_codes import Fault
from anygpt.data.media_manifest import MediaManifest, Row
from anygpt.data.plain_text import checked_text
from anygpt.data.storage import Place
from anygpt.errors import AnyGPTError
from anygpt.prompts.render import question
from anygpt.prompts.tasks import TaskPrompts
from anygpt.prompts.templates import DIRECTIONS, Direction
from anygpt.vocabulary import Text


class PairsSource(Source):
    """The rows of a manifest as conversations of one round, with the wordings of `task_prompts/base.yaml`.

    `direction` x2text asks about the media and answers with the text; text2x asks for media and answers with it, in the
    words of the base prompt; both draws one for each row, by `seed`. Speech knows text2x only: in chat a user's speech
    is an instruction itself, so nothing can be asked about it. Raises AnyGPTError as `MediaManifest` does.
    """

    def __init__(self, path: Path, *, modality: str | None = None, direction: str = "both", seed: int = 0) -> None:
        self._manifest = MediaManifest(path, modality)
        self._prompts = TaskPrompts.load()
        self._seed = seed
        self.path, self.sha256, self.rows = self._manifest.path, self._manifest.sha256, self._manifest.lines
        self.modality = self._manifest.modality
        if direction not in ("both", *DIRECTIONS):
            raise AnyGPTError(f"--direction is '{direction}', expected both, {' or '.join(DIRECTIONS)}")
        possible: tuple[Direction, ...] = DIRECTIONS if self.modality != "speech" else ("text2x",)
        if direction != "both" and direction not in possible:
            reason = "in chat a user's speech is an instruction itself, and can't be asked about"
            raise AnyGPTError(f"--direction is {direction}, but the manifest has {self.modality}: {reason}")
        self._directions = tuple(each for each in possible if direction in ("both", each))
        for each in self._directions:
            self._prompts.wordings(self.modality, each)

    @property
    def settings(self) -> str:
        return f"{self.modality} pairs, {' and '.join(self._directions)}, seed {self._seed}"

    def drafts(self, first: int = 0) -> Iterator[Draft | None]:
        line = first
        for batch in self._manifest.batches(1, first):
            line += 1
            if not batch.rows:
                yield None
            for row in batch.rows:
                yield self._draft(row)

    def find(self, modality: str, name: str) -> Place | Fault:
        return Place(self._manifest.located(name))

    def _draft(self, row: Row) -> Draft:
        if row.fault is not None:
            return Draft(row=row.line, id=row.line, fault=row.fault)
        if not row.is_whole_file:
            fault = "bytes in a manifest and parts of recordings are for `anygpt tokenize` only; give whole files here"
            return Draft(row=row.line, id=row.line, fault=fault)
        return draft(row.line, row.line, lambda: self._messages(row))

    def _messages(self, row: Row) -> list[Message]:
        assert row.path is not None, row
        text = checked_text(row.text, "field 'text'")
        media = MediaRef(modality=self.modality, caption=text, key=row.path)
        rng = random.Random(f"{self._seed}/{row.line}")
        direction = rng.choice(self._directions)
        instruction = self._prompts.sample(self.modality, direction, rng)
        if direction == "x2text":
            return [Message(role="user", parts=(instruction, media)), Message(role="assistant", parts=(text,))]
        asked = _as_typed(direction, instruction, text)
        return [Message(role="user", parts=(asked,)), Message(role="assistant", parts=(media,))]


def _as_typed(direction: Direction, instruction: str, text: str) -> str:
    """What stands between the tags of a base prompt: the words that the base model knows."""
    segments = question(direction, instruction, [Text(text)])
    joined = "".join(segment.text for segment in segments if isinstance(segment, Text))
    return joined.removeprefix(":").removesuffix(":").strip()
