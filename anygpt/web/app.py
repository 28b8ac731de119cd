"""The ASGI application of the page, and running it."""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anygpt.errors import AnyGPTError
from anygpt.serving.app import load_all
from anygpt.serving.media import MediaLimits, MediaReader
from anygpt.serving.server import run_app
from anygpt.web.batch import SharedBatch
from anygpt.web.talk import MEDIA, MEDIA_TYPES, Talk

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

SHUTDOWN_S = 5.0
"""What open pages get when the server is asked to end."""

CONTENT_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""Browsers load nothing from elsewhere, whatever a page asks for. Gradio's scripts need the exceptions."""
_KEY, _NAME = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-z][0-9a-z-]*(\.[0-9a-z]+)?")
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """How the page behaves."""

    is_chat: bool = True
    """Whether questions make a conversation; else each stands alone, in the base model's forms."""
    batch_size: int = 8
    queue_size: int = 64
    """Answers that may wait beyond those that are made at a time."""
    request_timeout_s: float = 300.0
    media: MediaLimits = field(default_factory=MediaLimits)


def create_app(model: "AnyGPT", name: str, settings: PageSettings) -> FastAPI:
    """The application; the model's thread runs from its startup to its shutdown.

    `name` is what the page calls the model. Raises AnyGPTError for a conversation with a model that lacks the tokens of
    its template.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from anygpt.web.page import CSS, HEAD, Page, theme

    load_all(model)
    batch = SharedBatch(model, batch_size=settings.batch_size, timeout_s=settings.request_timeout_s)
    reader = MediaReader(model, settings.media)

    root = Path(tempfile.mkdtemp(prefix="anygpt-web-"))

    def new_talk() -> Talk:
        return Talk(model, batch, reader, is_chat=settings.is_chat, folder=root / secrets.token_hex(16))

    try:
        new_talk().close()  # a model that can't hold conversations is told of now
    except AnyGPTError as error:
        raise AnyGPTError(f"{error}; for single questions to a base model: --single-questions") from None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with batch.running():
                yield
        finally:
            shutil.rmtree(root, ignore_errors=True)

    app = FastAPI(title="AnyGPT", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> Response:
        """The answers are those that are made and those that wait."""
        status = "ok" if batch.is_alive else "the model has ended"
        return JSONResponse({"status": status, "answers": batch.unfinished}, 200 if batch.is_alive else 503)

    @app.get("/media/{key}/{name}")
    def media(key: str, name: str) -> Response:
        """A file of a conversation, for whoever knows its key."""
        path = root / key / MEDIA / name
        if not (_KEY.fullmatch(key) and _NAME.fullmatch(name) and path.is_file()):
            return Response(status_code=404)
        return FileResponse(path, media_type=MEDIA_TYPES.get(path.suffix, "application/octet-stream"))

    blocks = Page(model, name, new_talk, is_chat=settings.is_chat).build()
    blocks.queue(max_size=settings.batch_size + settings.queue_size, api_open=False)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        ssr_mode=False,
        max_file_size=settings.media.max_bytes,
        footer_links=[],
        show_error=False,
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    app.add_middleware(_Headers)
    return app


def serve(model: "AnyGPT", name: str, settings: PageSettings, *, host: str, port: int) -> None:
    """Show the page until SIGTERM or Ctrl-C."""
    app = create_app(model, name, settings)
    run_app(app, host=host, port=port, shutdown_timeout_s=SHUTDOWN_S, access_log=False)  # a page asks for a lot


class _Headers:
    """Adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)
