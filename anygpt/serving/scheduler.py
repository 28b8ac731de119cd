"""The thread that owns the model: it makes all answers in one batch, and takes on new ones between two ids."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from anygpt.generation.llama import LlamaDecoder
from anygpt.generation.loop import Answer, Batch

logger = logging.getLogger(__name__)


class ModelFailure(Exception):
    """The model raised while it made an answer; the log has the reason."""


class Ticket:
    """One answer in the making, as its request sees it; used in the event loop only, but for what is noted."""

    def __init__(self, answer: Answer, deadline: float) -> None:
        self.answer = answer
        self._deadline = deadline
        self.is_cancelled = False
        """Set by the event loop, read by the model's thread."""
        self._new: list[int] = []
        self._has_news = asyncio.Event()
        self._is_over = asyncio.Event()
        self._error: ModelFailure | None = None

    async def ids(self) -> AsyncIterator[list[int]]:
        """The answer's ids, tags included, some at a time as they are drawn. Raises TimeoutError and ModelFailure."""
        while True:
            async with asyncio.timeout_at(self._deadline):
                await self._has_news.wait()
            self._has_news.clear()
            new, self._new = self._new, []
            is_over = self._is_over.is_set()
            if new:
                yield new
            if is_over and not self._new:
                break
        if self._error is not None:
            raise self._error

    async def whole(self) -> list[int]:
        """All ids of the answer, once it is done. Raises TimeoutError and ModelFailure."""
        async with asyncio.timeout_at(self._deadline):
            await self._is_over.wait()
        if self._error is not None:
            raise self._error
        return self.answer.ids

    def deliver(self, ids: list[int], *, is_over: bool, error: ModelFailure | None = None) -> None:
        """Hand on news from the model's thread."""
        self._new += ids
        self._error = error
        if is_over:
            self._is_over.set()
        self._has_news.set()


class Scheduler:
    """Makes answers, up to `batch_size` at a time, first come first served; the rest waits."""

    def __init__(self, decoder: LlamaDecoder, *, batch_size: int) -> None:
        self._decoder = decoder
        self._batch_size = batch_size
        self._condition = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Answer, Ticket] = {}
        self._batch = Batch(decoder)
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.on_ids: Callable[[int], None] = lambda count: None
        """Called in the model's thread with the number of ids that were drawn."""

    def start(self) -> None:
        """Begin; within the event loop that the tickets' requests run in."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Drop what is left, and wait for the thread."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Answers in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that no place in the batch is free for."""
        return len(self._waiting)

    def submit(self, answer: Answer, *, deadline: float) -> Ticket:
        """Queue an answer whose request waits until `deadline`, on the event loop's clock."""
        ticket = Ticket(answer, deadline)
        with self._condition:
            self._waiting.append(ticket)
            self._condition.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Drop an answer, or do nothing where it is done; its place is free after the id that is being drawn."""
        with self._condition:
            ticket.is_cancelled = True
            self._condition.notify()

    def _run(self) -> None:
        while self._wait():
            try:
                self._turn()
            except Exception:  # whatever comes up in the model: these answers fail, the server goes on
                logger.exception("the model failed; %d answers are lost", len(self._running))
                self._fail()

    def _wait(self) -> bool:
        """Until there is something to do; False when there won't be."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._waiting or self._running)
            return not self._is_closed

    def _turn(self) -> None:
        """Drop what was cancelled, fill free places, and draw one id for everyone."""
        for answer, ticket in list(self._running.items()):
            if ticket.is_cancelled:
                self._batch.cancel(answer)
                del self._running[answer]
        new: dict[Answer, list[int]] = {}
        while self._batch.size < self._batch_size and (added := self._next()) is not None:
            self._running[added.answer] = added
            self._batch.add(added.answer)
            new[added.answer] = list(added.answer.ids)
        if not self._running:
            return
        drawn = self._batch.step()
        for answer, index in drawn:
            new.setdefault(answer, []).append(index)
        self.on_ids(len(drawn))
        self._tell([_News(self._running[answer], ids, answer.is_done) for answer, ids in new.items()])
        for answer in new:
            if answer.is_done:
                del self._running[answer]

    def _next(self) -> Ticket | None:
        with self._condition:
            while self._waiting:
                ticket = self._waiting.popleft()
                if not ticket.is_cancelled:
                    return ticket
        return None

    def _fail(self) -> None:
        tickets = list(self._running.values())
        self._running = {}
        self._batch = Batch(self._decoder)
        failure = ModelFailure("the model failed on this answer")
        self._tell([_News(ticket, [], True, failure) for ticket in tickets])

    def _tell(self, news: "list[_News]") -> None:
        """Tell the event loop of all answers at once, since every call wakes it."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, news)


class _News(NamedTuple):
    ticket: Ticket
    ids: list[int]
    is_over: bool
    error: ModelFailure | None = None


def _deliver(news: list[_News]) -> None:
    for ticket, ids, is_over, error in news:
        ticket.deliver(ids, is_over=is_over, error=error)
