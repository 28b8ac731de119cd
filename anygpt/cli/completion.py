"""Completion (Tab) of the lines of a conversation: commands, modalities and paths."""

import re
from collections.abc import Iterable, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from anygpt.chat_lines import COMMANDS, TASK, WITH_FILE

_FIRST_FILE = 3
"""Where the fields with files begin: after the task, the text and the modality."""


class LineCompleter(Completer):
    """What may follow the part of a line before the cursor."""

    def __init__(self, modalities: Sequence[str]) -> None:
        """`modalities` are the names that the second field takes."""
        self._modalities = modalities
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor.lstrip()
        fields = re.split(r"(?<!\\)\|", line)
        if line.startswith("|"):
            word, space, argument = line[1:].partition(" ")
            if not space:
                yield from _words([name + (" " if name in WITH_FILE else "") for name in COMMANDS], word)
            elif word.lower() in WITH_FILE:
                yield from self._files(argument.lstrip(), complete_event)
        elif len(fields) == 1:
            yield from _words([f"{TASK}|"] if line else [], line)
        elif len(fields) == _FIRST_FILE:
            yield from _words(self._modalities, fields[-1].strip())
        elif len(fields) > _FIRST_FILE:
            yield from self._files(re.split(r"(?<!\\),", fields[-1])[-1].lstrip(), complete_event)

    def _files(self, typed: str, event: CompleteEvent) -> Iterable[Completion]:
        plain = typed.replace(r"\|", "|").replace(r"\,", ",")
        for found in self._paths.get_completions(Document(plain), event):
            escaped = re.sub(r"([|,])", r"\\\1", found.text)
            yield Completion(escaped, found.start_position, display=found.display)


def _words(words: Iterable[str], typed: str) -> Iterable[Completion]:
    for word in words:
        if word.startswith(typed.lower()):
            yield Completion(word, -len(typed))
