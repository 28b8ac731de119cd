"""One visitor's conversation: questions in, answers part by part, undo, clear, and all of it as an archive.

Nothing here knows of the page: what there is to be shown are `Exchange`s.
"""

import json
import queue
import shutil
import threading
import time
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from anygpt.conversation import save_conversation
from anygpt.engine import save_media
from anygpt.errors import AnyGPTError
from anygpt.forms import INSTRUCTION, TEXT
from anygpt.generation.loop import Answer
from anygpt.generation.policies import Policy
from anygpt.generation.reading import AnswerReader, TextPiece
from anygpt.media import Audio, atomic_write
from anygpt.prompts.segments import Media, Turn
from anygpt.serving.media import MediaReader
from anygpt.session import MediaMade, TurnsDropped
from anygpt.video import Video
from anygpt.vocabulary import Text
from anygpt.web.batch import SharedBatch, Stopped

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

ARCHIVE = "anygpt-conversation"
MEDIA = "media"
"""Folder of the files that the page shows, in that of the conversation."""
MEDIA_TYPES = {
    ".bmp": "image/bmp",
    ".flac": "audio/flac",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".png": "image/png",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webp": "image/webp",
}
"""By the endings that uploaded files keep; nothing that a browser would run."""
THINKING = "…"
PROGRESS_S = 0.25
"""How often the codes of a picture or sound in the making are counted."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a visitor sends."""

    text: str = ""
    files: Sequence[tuple[str, Path]] = ()
    """Modality and file."""
    answer: str | None = None
    """What the answer has to contain: a modality, or "text"; None leaves it to the model."""
    voice: Path | None = None
    """A sample of the voice for speech."""
    seed: int = 0
    policies: Mapping[str, Policy] = field(default_factory=dict)


@dataclass
class Part:
    """Text, what was heard in a spoken instruction, a file, or a note of the page."""

    kind: Literal["text", "heard", "file", "note"]
    text: str = ""
    modality: str = ""
    path: Path | None = None


Event = TextPiece | Part | tuple[Turn, Turn]
"""Of an answer: some more of it, or question and answer at the end."""


@dataclass
class Exchange:
    """A question and what there is of its answer."""

    question: Question
    parts: list[Part] = field(default_factory=list)
    status: str = THINKING
    """What is being done; empty when the answer is complete."""
    turns: tuple[Turn, Turn] | None = None
    """When it is complete."""

    def add(self, piece: TextPiece) -> None:
        kind: Literal["text", "heard"] = "heard" if piece.is_heard else "text"
        if not self.parts or self.parts[-1].kind != kind:
            self.parts.append(Part(kind))
        self.parts[-1].text += piece.text


class Talk:
    """A conversation with a chat model, or questions to a base model that have nothing to do with each other.

    Its methods may be called from any thread; one answer is made at a time.
    """

    def __init__(
        self, model: "AnyGPT", batch: SharedBatch, reader: MediaReader, *, is_chat: bool, folder: Path
    ) -> None:
        """`folder` is made, and removed by `close`. Raises AnyGPTError for a chat with a model that lacks the tokens of
        its template."""
        self.folder = folder
        self.exchanges: list[Exchange] = []
        self._model = model
        self._batch = batch
        self._reader = reader
        self._session = model.session(seed=0, source=self._ids) if is_chat else None
        self.folder.mkdir(mode=0o700, parents=True)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._changes: queue.SimpleQueue[Exchange | Exception | None] = queue.SimpleQueue()
        self._files = 0

    @property
    def is_answering(self) -> bool:
        return self._lock.locked()

    def ask(self, question: Question) -> Generator[Exchange, None, None]:
        """Make an answer, and yield its exchange whenever there is more of it; it then is the last of `exchanges`.

        Where the iteration stops before the end, by an error or because it isn't carried on, the exchange is gone
        again. Raises AnyGPTError for what can't be answered, and Stopped after `stop`.
        """
        self._check_idle()
        try:
            self._stop.clear()
            exchange = Exchange(replace(question, files=[self._kept(*file) for file in question.files]))
            self.exchanges.append(exchange)
            try:
                yield exchange
                yield from self._answered(exchange)
            finally:
                if exchange.turns is None:
                    self.exchanges.remove(exchange)
        finally:
            self._lock.release()

    def stop(self) -> None:
        """Have the answer in the making, if there is one, end as `Stopped`."""
        self._stop.set()

    def undo(self) -> Question | None:
        """Forget the last question and its answer, and return it; None when there is none."""
        self._check_idle()
        try:
            if not self.exchanges:
                return None
            if self._session is not None:
                self._session.undo()  # False for an exchange that the model has forgotten already
            return self.exchanges.pop().question
        finally:
            self._lock.release()

    def clear(self) -> None:
        """Forget everything."""
        self._check_idle()
        try:
            if self._session is not None:
                self._session.clear()
            self.exchanges = []
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Stop, and remove the files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def archive(self) -> Path | None:
        """A ZIP file of the conversation as `anygpt.conversation` writes it, media included; None when it is empty.

        Raises AnyGPTError when it can't be written.
        """
        turns = [turn for exchange in self.exchanges for turn in exchange.turns or ()]
        if not turns:
            return None
        saved = save_conversation(self.folder / "saved" / "conversation.json", turns, self._model)
        target = self.folder / f"{ARCHIVE}.zip"
        named = json.loads(saved.read_text(encoding="utf-8"))
        files = [part["file"] for row in named["turns"] for part in row["message"] if "file" in part]
        with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as content:
            for name in [saved.name, *dict.fromkeys(files)]:
                content.write(saved.parent / name, f"{ARCHIVE}/{name}")
        return target

    def _check_idle(self) -> None:
        """Takes the lock."""
        if not self._lock.acquire(blocking=False):
            raise AnyGPTError("an answer is being made: wait for it, or stop it")

    def _answered(self, exchange: Exchange) -> Iterator[Exchange]:
        """The exchange whenever the thread that makes the answer has changed it."""
        self._changes = queue.SimpleQueue()
        thread = threading.Thread(target=self._work, args=[exchange], name="talk", daemon=True)
        thread.start()
        try:
            while (change := self._changes.get()) is not None:
                if isinstance(change, Exception):
                    raise change
                yield change
        finally:
            self._stop.set()
            thread.join()  # at the next id, or when a sound that is being decoded is done

    def _work(self, exchange: Exchange) -> None:
        self._progress = _Progress(self._model, exchange)
        try:
            for event in self._events(exchange.question):
                match event:
                    case TextPiece():
                        exchange.add(event)
                    case Part():
                        exchange.parts.append(event)
                    case Turn(), Turn():
                        exchange.turns = event
                exchange.status = "" if exchange.turns is not None else THINKING
                self._changes.put(exchange)
            self._changes.put(None)
        except Exception as error:  # raised again where the answer is awaited
            self._changes.put(error)

    def _events(self, question: Question) -> "Iterator[Event]":
        events = self._single(question) if self._session is None else self._chat(question)
        for event in events:
            if self._stop.is_set() and not isinstance(event, tuple):
                events.close()
                raise Stopped
            yield event

    def _chat(self, question: Question) -> "Generator[Event, None, None]":
        assert self._session is not None
        self._session.seed = question.seed
        events = self._session.send(
            question.text,
            media=[self._read(name, path) for name, path in question.files],
            answer=question.answer,
            voice=self._voice(question),
            policies=question.policies,
        )
        try:
            for event in events:
                match event:
                    case TextPiece():
                        yield event
                    case MediaMade():
                        path = self._save(event.modality, event.media)
                        self._session.set_path(event.number, path)
                        yield Part("file", modality=event.modality, path=path)
                    case TurnsDropped():
                        count = event.count // 2
                        what = "exchange" if count == 1 else f"{count} exchanges"
                        yield Part("note", f"The model's context is full: it has forgotten the oldest {what}.")
        finally:
            events.close()
        if (drawn := self._session.draw()) is not None:
            yield self._with_boxes(drawn)
        asked, answered = self._session.turns[-2:]
        yield asked, answered

    def _single(self, question: Question) -> "Generator[Event, None, None]":
        asked, instruction = self._asked(question)
        target = question.answer or TEXT
        content = asked.codes_KT if isinstance(asked, Media) else asked.text
        source = asked.modality if isinstance(asked, Media) else TEXT
        if (source == TEXT) == (target == TEXT):
            got = "a text" if source == TEXT else f"{source} with an answer in {target}"
            raise AnyGPTError(
                f"one of question and answer has to be text and the other not; got {got}: attach a file, or choose "
                f"another answer"
            )
        policy = question.policies.get(target)
        settings: dict[str, Any] = vars(policy) if policy is not None else {}
        voice = self._voice(question)
        if voice is not None and target != TEXT and "voice" in self._model.specs[target].instruction_fields:
            settings = {**settings, "voice": voice}
        if instruction:
            settings = {**settings, INSTRUCTION: instruction}
        began = time.perf_counter()
        task = self._model.prepare(source, target, content, question.seed, settings)
        reader = AnswerReader(self._model.vocabulary)
        making = self._model.making(task)
        for _, index in self._ids(making):
            if len(making) == 1:
                yield from (event for event in reader.push(index) if isinstance(event, TextPiece))
        yield from reader.flush()
        result = self._model.result(task, self._model.chosen(task, making).ids, began)
        if len(making) > 1 and result.text:
            yield TextPiece(result.text)
        answer: Text | Media = Text(result.text or "")
        if result.media is not None:
            assert result.codes_KT is not None
            answer = Media(target, result.codes_KT, self._save(target, result.media))
            yield Part("file", modality=target, path=answer.path)
        if result.boxes:
            assert isinstance(asked, Media) and asked.path is not None
            yield self._with_boxes(replace(result, picture=asked.path).draw())
        words = [Text(f" {instruction}")] if instruction else []
        yield Turn("user", [asked, *words]), Turn("assistant", [answer])

    def _asked(self, question: Question) -> tuple[Text | Media, str]:
        """What a single question is about, and what is wanted of a file, if that is said."""
        text = question.text.strip()
        if len(question.files) > 1:
            raise AnyGPTError("a single question is a text, or one file with a text or without; leave the rest out")
        if not question.files and not text:
            raise AnyGPTError("the question is empty; type a text or attach a file")
        return (self._read(*question.files[0]), text) if question.files else (Text(text), "")

    def _with_boxes(self, drawn: Image.Image) -> Part:
        """A picture that the answer points into."""
        return Part("file", modality="boxes", path=self._save("boxes", drawn))

    def _ids(self, answers: Sequence[Answer]) -> Iterator[tuple[Answer, int]]:
        """The ids of answers from the batch, with word of how far the first one's picture or sound is."""
        for answer, index in self._batch.ids(answers, self._stop):
            if answer is answers[0] and self._progress.push(index):
                self._changes.put(self._progress.exchange)
            yield answer, index

    def _save(self, name: str, media: Image.Image | Audio | Video) -> Path:
        return save_media(self.folder / MEDIA, media, name=self._next_name(name))

    def _kept(self, name: str, path: Path) -> tuple[str, Path]:
        """A copy of the file, which may be gone later; what it is called outside is not what it is called here."""
        suffix = path.suffix.lower()
        kept = self.folder / MEDIA / f"{self._next_name(name)}{suffix if suffix in MEDIA_TYPES else ''}"
        with atomic_write(kept) as temporary:
            shutil.copyfile(path, temporary)
        return name, kept

    def _next_name(self, modality: str) -> str:
        self._files += 1
        return f"{self._files:03}-{modality}"

    def _read(self, name: str, path: Path) -> Media:
        return Media(name, self._reader.encode(name, path.read_bytes(), path.name), path)

    def _voice(self, question: Question) -> Audio | None:
        return None if question.voice is None else self._reader.voice(question.voice.read_bytes(), "the voice")


class _Progress:
    """Says in an exchange's status how many codes of a picture or sound there are."""

    def __init__(self, model: "AnyGPT", exchange: Exchange) -> None:
        self.exchange = exchange
        self._blocks = model.vocabulary.blocks
        self._starts = {block.start_id: name for name, block in self._blocks.items()}
        self._making = ""
        self._count = 0
        self._due_at = 0.0

    def push(self, index: int) -> bool:
        """Take one more id; whether the status is another one, which it is now and then only."""
        if index in self._starts and not self._making:
            self._making, self._count, self._due_at = self._starts[index], 0, 0.0
        elif not self._making:
            return False
        elif index == self._blocks[self._making].end_id:
            self.exchange.status, self._making = f"{self._making}: decoding", ""
            return True
        else:
            self._count += 1
        if (now := time.monotonic()) < self._due_at:
            return False
        self._due_at = now + PROGRESS_S
        spec = self._blocks[self._making].spec
        rate_hz = spec.codes_per_s
        made = f"{self._count} codes" if rate_hz is None else f"{self._count / rate_hz:.1f} s"
        self.exchange.status = f"{self._making}: {made}"
        return True
