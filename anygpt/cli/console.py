"""What the commands that talk with a model share: reading lines at a terminal, showing progress, printing."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History

    from anygpt.boxes import Box

PROMPT = "anygpt> "
QUIT = ("quit", "exit")


class LineReader:
    """Lines from someone at a terminal, with line editing, history and completion (Tab) where it isn't a dumb one."""

    def __init__(self, *, history: Path | None = None, completer: "Completer | None" = None) -> None:
        """`history` is the file that keeps lines from one run to the next; without it they last for this one."""
        self._pending: list[str] = []
        self._ask: Callable[[], str] = lambda: input(PROMPT)
        from prompt_toolkit import PromptSession
        from prompt_toolkit.shortcuts import CompleteStyle
        from prompt_toolkit.utils import is_dumb_terminal

        if sys.stdout.isatty() and not is_dumb_terminal():
            session: PromptSession[str] = PromptSession(
                PROMPT,
                history=_history(history),
                completer=completer,
                complete_while_typing=False,
                complete_style=CompleteStyle.READLINE_LIKE,
            )
            self._ask = session.prompt

    def read(self) -> str | None:
        """The next line without space at its ends, None at the end of the input. Ctrl-C raises KeyboardInterrupt."""
        if not self._pending:  # what is pasted may hold several lines
            try:
                self._pending = self._ask().splitlines() or [""]
            except EOFError:
                return None
        return self._pending.pop(0).strip()


def interact(reader: LineReader, handle: Callable[[str], bool], *, leave: str) -> None:
    """Hand line after line to `handle` until it returns False or the input ends; Ctrl-C only stops one line.

    `leave` is what to type to leave, named after a Ctrl-C.
    """
    while True:
        try:
            line = reader.read()
            if line is None or (line and not handle(line)):
                return
        except KeyboardInterrupt:
            print(f"\nstopped; `{leave}` leaves")


def printable(text: str) -> str:
    """Without the control characters that a model may emit and a terminal would obey."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def print_json(row: dict[str, object]) -> None:
    """One JSON object on one line of standard output."""
    print(json.dumps(row, ensure_ascii=False), flush=True)


def box_rows(boxes: "Sequence[Box]") -> list[dict[str, object]]:
    """Boxes as JSON, in percents, with their phrases where they have any."""
    return [{"box": box.values} | ({"phrase": box.phrase} if box.phrase else {}) for box in boxes]


def print_mistake(prompt: str, message: str, *, as_json: bool) -> None:
    """One line on standard error; as JSON also an object with `prompt` and `error` on standard output."""
    message = " ".join(message.split())
    if as_json:
        print_json({"prompt": prompt, "error": message})
    print(f"anygpt: {message}", file=sys.stderr, flush=True)


class Progress:
    """A line on standard error while an answer is generated, where that is a terminal."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, count: int, most: int) -> None:
        """Count ids."""
        now = time.monotonic()
        if now - self._last > 0.1:
            self._last = now
            self.show(f"generating {count} of at most {most} ids")

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._is_shown:
            self._last = time.monotonic()
            print(f"\r\033[K{text} ", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the line."""
        if self._is_shown and self._last:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def state_file(name: str) -> Path:
    """Where a file that outlives a run belongs: `$XDG_STATE_HOME/anygpt`, else `~/.local/state/anygpt`."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path("~/.local/state").expanduser()) / "anygpt" / name


def _history(path: Path | None) -> "History":
    """The lines of earlier runs; a file that can't be read or written costs the history and nothing else."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Lines(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

    if path is None:
        return InMemoryHistory()
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Lines(str(path))
