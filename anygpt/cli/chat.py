"""`anygpt chat`: a conversation, from the command line, standard input, a script or a terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anygpt.chat_lines import Command, Message, describe_lines, find_attachments, parse_line
from anygpt.cli.chat_page import Exchange, read_script, write_page
from anygpt.cli.console import (
    QUIT,
    LineReader,
    Progress,
    box_rows,
    interact,
    print_json,
    print_mistake,
    printable,
    state_file,
)
from anygpt.cli.model_flags import UNSET, ModelFlags
from anygpt.errors import AnyGPTError
from anygpt.media import ensure_writable
from anygpt.paths import resource

if TYPE_CHECKING:
    from anygpt.boxes import Box
    from anygpt.engine import AnyGPT
    from anygpt.prompts.segments import Turn
    from anygpt.session import Event, MediaMade, Session

DEFAULT_MODEL = "anygpt-mini-chat"


def chat(
    *,
    prompt: list[str] | None = None,
    script: Path | None = None,
    page: Path | None = None,
    model: ModelFlags = UNSET,
    output_dir: Path = Path("infer_output/chat"),
    seed: int | None = None,
    json: bool = False,
) -> None:
    """Talk with a chat model in text, pictures, speech and music.

    Without --prompt and --script, lines are read from standard input; on a terminal, `|help` shows their forms. All of
    them are one conversation. Pictures and sounds are saved, and their paths printed as soon as they are made. The exit
    code is 2 when a line failed.

    Args:
        prompt: A line of the conversation; give the flag several times for several.
        script: File with the lines of a conversation; `# …` is a heading for the page.
        page: Also write the conversation, where no line failed, as this Markdown file, its media in a folder beside it.
        model_name_or_path: Folder of a model, or the name of a shipped one; without it the shipped chat model.
        output_dir: Folder for pictures and sounds.
        seed: The same seed gives the same answers.
        json: Print one JSON object per line of the conversation.
    """
    if prompt is not None and script is not None:
        raise AnyGPTError("--prompt and --script both give the lines: leave one out")
    lines = read_script(script) if script is not None else [("", line) for line in prompt] if prompt else None
    if page is not None and lines is None:
        raise AnyGPTError("--page needs --script or --prompt")
    output_dir = ensure_writable(output_dir)
    if page is not None:
        ensure_writable(page.parent)
    if lines is not None:
        _check_any_line([line for _, line in lines])
    loaded = model.load(None if model.model_name_or_path else resource("models", DEFAULT_MODEL), seed=seed)
    console = _Console(loaded, loaded.session(seed=seed), output_dir, as_json=json)
    if lines is None and sys.stdin.isatty():
        console.interact()
        return
    succeeded = console.run_all(lines if lines is not None else (("", line.strip()) for line in sys.stdin))
    if not succeeded:
        sys.exit(2)
    if page is not None:
        write_page(page, console.exchanges, introduction=_introduction(model.model_name_or_path, script, seed))
        print(page, file=sys.stderr)


def _check_any_line(lines: Sequence[str]) -> None:
    """Raise the first line's mistake, before a model is loaded, when none of them is well-formed."""
    mistakes: list[AnyGPTError] = []
    for line in lines:
        try:
            parse_line(line)
        except AnyGPTError as error:
            mistakes.append(error)
    if len(mistakes) == len(lines):
        raise mistakes[0]


def _introduction(model: str | None, script: Path | None, seed: int | None) -> str:
    """How a page came about; nobody chose among the answers."""
    source = f"the lines of `{script}`" if script is not None else "these lines"
    drawn = "with a random seed" if seed is None else f"with seed {seed}"
    return (
        f"{source[0].upper()}{source[1:]}, one after the other, answered by `{Path(model or DEFAULT_MODEL).name}` "
        f"{drawn}: what was typed, what it showed the model, what came back. Nothing is edited or chosen."
    )


class _Console:
    """One conversation: takes its lines, prints the answers."""

    def __init__(self, model: "AnyGPT", session: "Session", output_dir: Path, *, as_json: bool) -> None:
        self.exchanges: list[Exchange] = []
        self._model = model
        self._session = session
        self._output_dir = output_dir
        self._as_json = as_json
        self._is_over = False
        self._commands: dict[str, Callable[[str], list[str]]] = {
            "clear": self._clear,
            "undo": self._undo,
            "save": self._save,
            "load": self._load,
            "history": lambda _: self._history(),
            "help": lambda _: describe_lines(self._model.specs.values()),
            "quit": self._quit,
        }

    def interact(self) -> None:
        """Read lines from the terminal until `|quit`; neither a mistake nor Ctrl-C ends it."""
        from anygpt.cli.completion import LineCompleter

        completer = LineCompleter([*self._model.specs, "text"])
        print("Type a message, `|help` for what else there is, or `|quit`.")
        interact(LineReader(history=state_file("chat_history"), completer=completer), self._handle, leave="|quit")

    def run_all(self, lines: Iterable[tuple[str, str]]) -> bool:
        """Take (heading, line) after (heading, line), empty ones skipped; whether none failed."""
        succeeded = True
        for heading, line in lines:
            if line:
                succeeded &= self.run(line, heading)
            if self._is_over:
                break
        return succeeded

    def run(self, line: str, heading: str = "") -> bool:
        """Do what one line asks, print what comes of it or the mistake, and say whether it went well."""
        try:
            asked = parse_line(line, self._model.specs.values())
            if isinstance(asked, Command):
                notes = self._commands[asked.name](asked.argument)
                self._print_notes(line, notes)
                self.exchanges.append(Exchange(line=line, heading=heading, notes=notes))
            else:
                turns = self._answer(line, asked)
                self.exchanges.append(Exchange(line=line, heading=heading, turns=turns))
        except BrokenPipeError:
            raise
        except (AnyGPTError, OSError) as error:
            print_mistake(line, _reason(error), as_json=self._as_json)
            return False
        return True

    def _handle(self, line: str) -> bool:
        """A line typed at the terminal, where the words that other commands leave with also do."""
        if line in QUIT:
            return False
        self.run({"help": "|help"}.get(line, line))
        return not self._is_over

    def _answer(self, line: str, message: Message) -> list["Turn"]:
        """Ask the model, print the answer as it comes, and return question and answer."""
        from anygpt.engine import save_media

        began = time.perf_counter()
        attachments = find_attachments(message)
        answer = _Answer(as_json=self._as_json)
        name = message.text or Path(message.speech[0]).stem
        events = self._session.send(
            message.text, media=attachments.media, answer=message.answer, voice=attachments.voice
        )
        try:
            for event in events:
                self._show(event, answer, name)
            if (drawn := self._session.draw()) is not None:
                answer.add_boxes(self._session.boxes, save_media(self._output_dir, drawn, name=name))
        finally:
            events.close()  # at an error or Ctrl-C: takes the message back
            answer.end()
        if self._as_json:
            print_json({"prompt": line, **answer.row(), "seconds": round(time.perf_counter() - began, 3)})
        return self._session.turns[-2:]

    def _show(self, event: "Event", answer: "_Answer", name: str) -> None:
        from anygpt.engine import save_media
        from anygpt.generation.reading import SpanStart, TextPiece
        from anygpt.session import MediaMade, TurnsDropped

        match event:
            case TextPiece():
                answer.add_text(event.text, is_heard=event.is_heard)
            case SpanStart():
                answer.progress.show(f"making {event.modality}")
            case MediaMade():
                path = save_media(self._output_dir, event.media, name=name)
                self._session.set_path(event.number, path)
                answer.add_file(event, path)
            case TurnsDropped():
                answer.note_dropped(event.count)

    def _print_notes(self, line: str, notes: Sequence[str]) -> None:
        if self._as_json:
            print_json({"prompt": line, "notes": list(notes)})
            return
        for note in notes:
            print(printable(note), flush=True)

    def _clear(self, _: str) -> list[str]:
        self._session.clear()
        return ["the conversation is forgotten"]

    def _undo(self, _: str) -> list[str]:
        if not self._session.undo():
            raise AnyGPTError("nothing to undo: the conversation is empty")
        return ["the last exchange is forgotten"]

    def _save(self, argument: str) -> list[str]:
        from anygpt.conversation import save_conversation

        return [f"saved to {save_conversation(argument, self._session.turns, self._model)}"]

    def _load(self, argument: str) -> list[str]:
        from anygpt.conversation import load_conversation

        turns = load_conversation(argument, self._model)
        self._session.restore(turns)
        return self._history()

    def _history(self) -> list[str]:
        turns = self._session.turns
        names = {"user": "you", "assistant": "model"}
        return [f"{names[turn.role]}: {_summary(turn)}" for turn in turns] or ["the conversation is empty"]

    def _quit(self, _: str) -> list[str]:
        self._is_over = True
        return []


class _Answer:
    """Prints an answer while it is made, or collects it for JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self.progress = Progress()
        self._as_json = as_json
        self._parts: list[dict[str, Any]] = []
        self._heard = ""
        self._line = ""
        """What the current line of the terminal is part of: "heard", "text", or "" at the start of a line."""
        self._dropped = 0

    def add_text(self, text: str, *, is_heard: bool) -> None:
        """Print some more text; what was heard in a spoken instruction gets a line of its own."""
        self.progress.clear()
        kind = "heard" if is_heard else "text"
        is_new = self._line != kind
        if is_new:
            self.end()
        if is_heard:
            self._heard += text
        elif is_new:
            self._parts.append({"text": text})
        else:
            self._parts[-1]["text"] += text
        self._line = kind
        if not self._as_json:
            print(f"{'heard: ' if is_heard and is_new else ''}{printable(text)}", end="", flush=True)

    def add_file(self, made: "MediaMade", path: Path) -> None:
        self.end()
        part: dict[str, Any] = {"modality": made.modality, "path": str(path), "frames": made.codes_KT.shape[1]}
        if hasattr(made.media, "duration_s"):
            part["duration_s"] = round(made.media.duration_s, 3)
        self._parts.append(part)
        if not self._as_json:
            print(path, flush=True)

    def add_boxes(self, boxes: "Sequence[Box]", path: Path) -> None:
        """What the answer points at, and where the picture with it is."""
        self.end()
        self._parts.append({"boxes": box_rows(boxes), "path": str(path)})
        if not self._as_json:
            print(path, flush=True)

    def note_dropped(self, count: int) -> None:
        self._dropped = count
        what = f"the oldest {count} messages are" if count > 1 else "the oldest message is"
        print(f"anygpt: the conversation exceeds the model's context: {what} forgotten", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the cursor at the start of a line."""
        self.progress.clear()
        if self._line and not self._as_json:
            print(flush=True)
        self._line = ""

    def row(self) -> dict[str, Any]:
        """The answer for JSON: what was heard, all text, and the parts in their order."""
        row: dict[str, Any] = {"heard": self._heard} if self._heard else {}
        row |= {"text": "\n".join(part["text"] for part in self._parts if "text" in part), "answer": self._parts}
        return row | ({"dropped_turns": self._dropped} if self._dropped else {})


def _summary(turn: "Turn") -> str:
    """A turn on one line: media as their files, the fixed requests that a template adds left out."""
    from anygpt.prompts.segments import Media
    from anygpt.prompts.templates import load_templates
    from anygpt.vocabulary import Control

    words = []
    for segment in turn.segments:
        if isinstance(segment, Media):
            words.append(f"[{segment.modality}{f': {segment.path}' if segment.path is not None else ''}]")
        else:
            words.append(segment.token if isinstance(segment, Control) else segment.text)
    line = " ".join(" ".join(words).split())
    for request in load_templates().message.requests.values():
        line = line.removesuffix(f" {request}")
    return line


def _reason(error: AnyGPTError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'file system'}: {error.strerror or error}"
    return str(error)
