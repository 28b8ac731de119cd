"""The ids of all visitors' answers, from one batch, for threads that wait for them."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from anygpt.errors import AnyGPTError
from anygpt.generation.loop import Answer
from anygpt.serving.scheduler import ModelFailure, Scheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anygpt.engine import AnyGPT

_News = tuple[Answer, list[int] | AnyGPTError | None]
"""New ids of an answer, why it failed, or that it is done."""

POLL_S = 0.1
"""How soon an answer that is stopped lets go of its place."""


class Stopped(Exception):
    """The visitor doesn't want this answer any more."""


class SharedBatch:
    """Lets threads draw answers from a `Scheduler`, whose own clients live in an event loop."""

    def __init__(self, model: "AnyGPT", *, batch_size: int, timeout_s: float) -> None:
        """An answer that takes longer than `timeout_s`, its wait included, fails."""
        self._scheduler = Scheduler(model.decoder, batch_size=batch_size)
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def running(self) -> "AsyncIterator[None]":
        """Answers are made within this block of the event loop."""
        self._loop = asyncio.get_running_loop()
        self._scheduler.start()
        try:
            yield
        finally:
            self._scheduler.close()

    @property
    def is_alive(self) -> bool:
        return self._scheduler.is_alive

    @property
    def unfinished(self) -> int:
        """Those in the batch and those that wait for a place."""
        return self._scheduler.running + self._scheduler.waiting

    def ids(self, answers: Sequence[Answer], is_stopped: threading.Event) -> Iterator[tuple[Answer, int]]:
        """The answers' ids, tags included, as they are drawn; not for the event loop's own thread.

        Raises Stopped soon after `is_stopped` is set, and AnyGPTError when an answer takes too long or fails.
        """
        assert self._loop is not None, "outside of running()"
        news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        pumps = [asyncio.run_coroutine_threadsafe(self._pump(answer, news), self._loop) for answer in answers]
        unfinished = len(pumps)
        try:
            while unfinished:
                answer, ids = self._next(news, is_stopped)
                unfinished -= ids is None
                for index in ids or ():
                    yield answer, index
        finally:
            for pump in pumps:
                pump.cancel()

    def _next(self, news: "queue.SimpleQueue[_News]", is_stopped: threading.Event) -> tuple[Answer, list[int] | None]:
        assert self._loop is not None
        while True:
            if is_stopped.is_set():
                raise Stopped
            if self._loop.is_closed() or not self._scheduler.is_alive:
                raise AnyGPTError("the page's server is ending")
            with contextlib.suppress(queue.Empty):
                answer, item = news.get(timeout=POLL_S)
                if isinstance(item, Exception):
                    raise item
                return answer, item

    async def _pump(self, answer: Answer, news: "queue.SimpleQueue[_News]") -> None:
        assert self._loop is not None
        ticket = self._scheduler.submit(answer, deadline=self._loop.time() + self._timeout_s)
        try:
            async for ids in ticket.ids():
                news.put((answer, ids))
            news.put((answer, None))
        except TimeoutError:
            limit = f"the answer took longer than {self._timeout_s:g} s, which is the limit"
            news.put((answer, AnyGPTError(limit)))
        except ModelFailure as error:
            news.put((answer, AnyGPTError(f"{error}; the server's log says why")))
        finally:
            self._scheduler.cancel(ticket)
