"""Answers in parts over HTTP: server-sent events and bytes, with errors told where a client can still hear them."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.serving.errors import ApiError, error_body
from anygpt.serving.scheduler import ModelFailure

T = TypeVar("T")
EVENT_STREAM = "text/event-stream"
TOLD = (HTTPException, AnyGPTError, TimeoutError, ModelFailure)
"""Errors that are answers; others are bugs."""
KEEP_ALIVE_S = 10.0
"""Server-sent events that pause for so long get a comment, which clients skip: what stands between, proxies for one,
closes connections that are silent. An answer may wait for its place, or for its picture to be painted."""


class Streamed(StreamingResponse):
    """A streamed body whose source is closed when the response is over, also where the client has left."""

    def __init__(self, source: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(
            source, media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._source = source

    async def stream_response(self, send: Send) -> None:
        sender = _Sender(send)
        comments = asyncio.create_task(sender.comment()) if self.media_type == EVENT_STREAM else None
        try:
            async with aclosing(self._source):
                await super().stream_response(sender)
        finally:
            if comments is not None:
                comments.cancel()


class _Sender:
    """Sends one message after the other, whichever task they come from."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self._last_s = time.monotonic()

    async def __call__(self, message: Message) -> None:
        async with self._lock:
            await self._send(message)
            self._last_s = time.monotonic()

    async def comment(self) -> None:
        """Fill every pause of `KEEP_ALIVE_S`, until cancelled or the client has left."""
        while True:
            pause_s = time.monotonic() - self._last_s
            if pause_s < KEEP_ALIVE_S:
                await asyncio.sleep(KEEP_ALIVE_S - pause_s)
                continue
            try:
                await self({"type": "http.response.body", "body": b": still at work\n\n", "more_body": True})
            except OSError:
                return


async def begun(source: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same source with its first piece made already, so that an error before it can still become a status."""
    first = await anext(source, b"")

    async def pieces() -> AsyncGenerator[bytes, None]:
        async with aclosing(source):
            yield first
            async for piece in source:
                yield piece

    return pieces()


async def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of several sources as they come; all are closed at the end, and when one of them raises."""
    news: asyncio.Queue[T | Exception | None] = asyncio.Queue(maxsize=1)

    async def hand_on(source: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(source) as items:
                async for item in items:
                    await news.put(item)
            await news.put(None)
        except Exception as error:  # raised again where the items are awaited
            await news.put(error)

    tasks = [asyncio.create_task(hand_on(source)) for source in sources]
    unfinished = len(tasks)
    try:
        while unfinished:
            item = await news.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                unfinished -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def events(source: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Server-sent events of objects, and `[DONE]`; an error on the way is the last event."""
    try:
        async with aclosing(source) as objects:
            async for item in objects:
                yield _event(item)
    except TOLD as error:
        yield _event(error_body(as_api_error(error)))
        return
    yield b"data: [DONE]\n\n"


def as_api_error(error: Exception) -> HTTPException:
    """How one of `TOLD` is answered."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, TimeoutError):
        return ApiError(504, "the answer took longer than the server's limit", code="timeout")
    if isinstance(error, CheckpointError):
        return ApiError(503, str(error))
    if isinstance(error, AnyGPTError):
        return ApiError(400, str(error))
    return ApiError(500, str(error))


def _event(item: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(item, ensure_ascii=False)}\n\n".encode()
