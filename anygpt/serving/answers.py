"""From what is asked to ids, and from an answer's ids to text, pictures and sounds: whole, or in parts."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from anygpt.choices import OpeningChoice, SpanChoice, opening_choice, span_choice
from anygpt.generation.loop import Answer
from anygpt.generation.reading import AnswerReader, SpanStart, TextPiece
from anygpt.media import Audio
from anygpt.prompts.segments import Media
from anygpt.serving.scheduler import Scheduler, Ticket
from anygpt.streaming import AudioChunk, SpanSound
from anygpt.tokenizers.streams import StreamingTokenizer
from anygpt.video import Video
from anygpt.vocabulary import Span

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

T = TypeVar("T")
_IDS_PER_PUSH = 16
"""Ids of a sound that are handed to another thread together: a hop costs as much as some ids."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """An answer to be made, and how its media are decoded."""

    answer: Answer
    others: tuple[Answer, ...] = ()
    """More candidates for the answer, where it is wanted whole."""
    choose: Callable[[Sequence[Answer]], Answer] | None = None
    """Chooses among all candidates once they are done."""
    seed: int
    deadline: float
    """When its ids have to be there, on the event loop's clock."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the tokenizers' `decode`, by modality."""
    heard_ids: tuple[int, int] | None = None
    end_ids: frozenset[int]
    ends_after_span: bool = False
    ids: list[int] = field(default_factory=list)
    """Those of the answer that are there, tags included."""
    media: Sequence[Media] = ()
    """Of the message that is answered, in a conversation."""

    @property
    def prompt_length(self) -> int:
        return len(self.answer.prompt_ids)

    @property
    def finish_reason(self) -> str:
        """Of a done answer: "stop", or "length" where a limit cut it off."""
        is_whole = self.ends_after_span or self.ids[-1] in self.end_ids
        return "stop" if is_whole else "length"


@dataclass(frozen=True, eq=False)
class Made:
    """A picture, sound or video of an answer, whole; `codes_KT` int64 [K, T] stand for it."""

    modality: str
    media: Image.Image | Audio | Video
    codes_KT: Tensor


@dataclass(frozen=True, eq=False)
class SoundEnd:
    """The sound whose chunks came before is over."""

    modality: str
    codes_KT: Tensor


@dataclass(kw_only=True, eq=False)
class Outcome:
    """A whole answer."""

    text: str = ""
    heard: str = ""
    """What was heard in a spoken instruction, where the model wrote it down."""
    media: list[Made] = field(default_factory=list)
    ids: int = 0
    finish_reason: str = "stop"


Part = TextPiece | AudioChunk | SoundEnd | Made


class Answers:
    """Runs work on the scheduler, and decodes media in a few threads beside it."""

    def __init__(self, model: "AnyGPT", scheduler: Scheduler, *, threads: int, reading_threads: int) -> None:
        """`threads` decode media of answers, `reading_threads` read and encode those of requests."""
        self._model = model
        self._scheduler = scheduler
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="decoding")
        self._reading = ThreadPoolExecutor(reading_threads, thread_name_prefix="reading")
        self.on_first_ids: Callable[[float], None] = lambda seconds: None
        """Called with the time from when an answer was asked for to its first ids, where it comes in parts."""

    def close(self) -> None:
        for pool in (self._decoding, self._reading):
            pool.shutdown(wait=False, cancel_futures=True)

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long in another thread; if the caller is cancelled before it begins, it doesn't."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, function, *arguments)

    async def prepared(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same for what comes before an answer, which a slow host of remote media may hold up."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, function, *arguments)

    async def whole(self, work: Work) -> Outcome:
        """The answer once all of it is there. Raises TimeoutError and ModelFailure."""
        if work.choose is None:
            async with aclosing(self._drawn(work)) as news:
                async for _ in news:
                    pass
        else:
            candidates = [work.answer, *work.others]
            await self._all_done(candidates, work.deadline)
            work.ids[:] = (await self.aside(work.choose, candidates)).ids
        return await self.aside(self._read, work)

    async def all(self, works: Sequence[Work]) -> list[Outcome]:
        """Several answers, in order; when one fails the others are dropped."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.whole(work)) for work in works]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def parts(self, work: Work, *, streams_sound: bool = True) -> AsyncGenerator[Part, None]:
        """The answer while it is made. Sound comes as chunks and a `SoundEnd` where its tokenizer can, and
        `streams_sound` says so; what else there is comes as `Made`. Raises TimeoutError and ModelFailure."""
        reader = AnswerReader(self._model.vocabulary, heard_ids=work.heard_ids)
        sound: SpanSound | None = None
        pending: list[int] = []
        began: float | None = time.perf_counter()
        async with aclosing(self._drawn(work)) as news:
            async for ids in news:
                if began is not None:
                    self.on_first_ids(time.perf_counter() - began)
                    began = None
                for index in ids:
                    if sound is not None:
                        pending.append(index)
                    for event in reader.push(index):
                        if isinstance(event, TextPiece):
                            yield event
                        elif isinstance(event, SpanStart):
                            sound = await self.aside(self._open, work, event.modality) if streams_sound else None
                        elif sound is None:
                            yield await self.aside(self._decode, work, event)
                        else:
                            for chunk in await self.aside(_push, sound, pending):
                                yield chunk
                            sound, pending = None, []
                            yield SoundEnd(event.spec.name, event.codes_KT)
                    if sound is not None and len(pending) >= _IDS_PER_PUSH:
                        for chunk in await self.aside(_push, sound, pending):
                            yield chunk
                        pending = []
        for event in reader.flush():
            yield event

    async def _drawn(self, work: Work) -> AsyncGenerator[list[int], None]:
        """The answer's ids, some at a time; where there is a choice, the chosen ones come together."""
        answer = work.answer
        choice: OpeningChoice | SpanChoice | None
        choice = opening_choice(self._model, answer, work.media, seed=work.seed)
        while True:
            if choice is not None:
                await self._all_done(choice.candidates, work.deadline)
                chosen = await self.aside(choice.chosen, self._model)
                work.ids.extend(chosen)
                yield chosen
                answer = answer.carried_on(chosen)
            if not answer.is_done:
                with self._ticket(answer, work.deadline) as ticket:
                    async for ids in ticket.ids():
                        work.ids.extend(ids)
                        yield ids
            if not answer.is_paused:
                return
            if (choice := span_choice(self._model, answer, seed=work.seed)) is None:
                answer = answer.carried_on()

    async def _all_done(self, answers: Sequence[Answer], deadline: float) -> None:
        """Wait for several answers. Raises TimeoutError and ModelFailure."""
        with ExitStack() as stack:
            for ticket in [stack.enter_context(self._ticket(answer, deadline)) for answer in answers]:
                await ticket.whole()

    @contextmanager
    def _ticket(self, answer: Answer, deadline: float) -> Iterator[Ticket]:
        """The answer's place: given back however the request ends."""
        ticket = self._scheduler.submit(answer, deadline=deadline)
        try:
            yield ticket
        finally:
            self._scheduler.cancel(ticket)

    def _read(self, work: Work) -> Outcome:
        outcome = Outcome(ids=len(work.ids), finish_reason=work.finish_reason)
        reader = AnswerReader(self._model.vocabulary, heard_ids=work.heard_ids)
        runs: dict[bool, list[str]] = {False: [""], True: [""]}

        def take(piece: TextPiece) -> None:
            runs[piece.is_heard][-1] += piece.text

        for index in work.ids:
            for event in reader.push(index):
                if isinstance(event, TextPiece):
                    take(event)
                elif isinstance(event, Span):
                    outcome.media.append(self._decode(work, event))
                    runs[False].append("")
        for piece in reader.flush():
            take(piece)
        outcome.text = "\n".join(filter(None, runs[False]))
        outcome.heard = "".join(runs[True])
        return outcome

    def _decode(self, work: Work, span: Span) -> Made:
        name = span.spec.name
        media = self._model.decode(name, span.codes_KT, seed=work.seed, **work.settings.get(name, {}))
        return Made(name, media, span.codes_KT)

    def _open(self, work: Work, name: str) -> SpanSound | None:
        """The decoder of a sound that is streamed; None for other media, and for a tokenizer that can't."""
        if self._model.specs[name].media != "audio":
            return None
        tokenizer = self._model.tokenizers.get(name)
        if not isinstance(tokenizer, StreamingTokenizer):
            return None
        generator = torch.Generator().manual_seed(work.seed)
        decoder = tokenizer.stream(generator=generator, **work.settings.get(name, {}))
        return SpanSound(self._model.vocabulary.blocks[name], decoder)


def _push(sound: SpanSound, ids: Sequence[int]) -> list[AudioChunk]:
    return [chunk for index in ids for chunk in sound.push(index)]
