"""The ASGI application of one model."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from anygpt import __version__
from anygpt.errors import CheckpointError
from anygpt.serving import schemas
from anygpt.serving.answers import Answers
from anygpt.serving.endpoints import Endpoints
from anygpt.serving.errors import ApiError, error_body
from anygpt.serving.gate import OPEN_PATHS, Gate, Places
from anygpt.serving.media import SOUND_FORMATS, MediaLimits, MediaReader
from anygpt.serving.metrics import Metrics
from anygpt.serving.scheduler import Scheduler
from anygpt.serving.streams import EVENT_STREAM, TOLD, as_api_error

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

logger = logging.getLogger(__name__)

REMOTE_THREADS = 16
"""More that read requests, where they may have to wait for remote media."""
GATE_SLACK_S = 15.0
"""What a request gets beyond its time limit before it is cut off: to be told, and to be sent what is ready."""
DESCRIPTION = (
    "One language model over text, images, speech and music, in OpenAI's wire format. "
    "What OpenAI doesn't have is marked as an extension."
)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server behaves."""

    keys: tuple[str, ...] = ()
    """One of them has to come with every request; without any everyone may come in."""
    batch_size: int = 16
    queue_size: int = 64
    """Requests that may wait beyond those that are answered at a time."""
    request_timeout_s: float = 300.0
    body_timeout_s: float = 60.0
    max_body_bytes: int = 30_000_000
    media: MediaLimits = field(default_factory=MediaLimits)
    media_threads: int = 2
    """Threads that decode and encode media, beside the model's."""
    cors_origins: tuple[str, ...] = ()


def create_app(model: "AnyGPT", names: list[str], settings: ServerSettings) -> FastAPI:
    """The application; the model's thread runs from its startup to its shutdown.

    `names` are those that requests may call the model by.
    """
    load_all(model)
    metrics = Metrics()
    scheduler = Scheduler(model.decoder, batch_size=settings.batch_size)
    scheduler.on_ids = lambda count: metrics.tokens("generated", count)
    waiting_threads = REMOTE_THREADS if settings.media.allow_remote else 0
    answers = Answers(
        model, scheduler, threads=settings.media_threads, reading_threads=settings.media_threads + waiting_threads
    )
    answers.on_first_ids = metrics.first_ids
    places = Places(settings.batch_size + settings.queue_size)
    metrics.watch("anygpt_running_answers", "Answers in the batch", lambda: scheduler.running)
    metrics.watch("anygpt_waiting_answers", "Answers without a place in the batch", lambda: scheduler.waiting)
    metrics.watch("anygpt_requests_in_progress", "Requests that were let in", lambda: places.taken)
    endpoints = Endpoints(
        model,
        names=names,
        scheduler=scheduler,
        answers=answers,
        reader=MediaReader(model, settings.media),
        metrics=metrics,
        timeout_s=settings.request_timeout_s,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        scheduler.close()
        answers.close()

    # Its page of the API brings its scripts along, where FastAPI's own fetches them from another site. The other one,
    # Redoc, fetches a logo even so.
    app = FastAPIOffline(
        title="AnyGPT", version=__version__, description=DESCRIPTION, lifespan=lifespan, redoc_url=None
    )
    _add_routes(app, endpoints, needs_key=bool(settings.keys))
    _add_error_handlers(app)
    app.add_middleware(
        Gate,
        keys=settings.keys,
        places=places,
        paths=frozenset(route.path for route in app.routes if isinstance(route, Route)),
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        request_timeout_s=settings.request_timeout_s + GATE_SLACK_S,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


def load_all(model: "AnyGPT") -> None:
    """Tokenizers load when first needed, which isn't made for several threads; and nobody should wait for it."""
    for name in model.specs:
        try:
            model.tokenizers.get(name)
        except CheckpointError as error:
            logger.warning("%s can be neither read nor made: %s", name, error)


def _add_routes(app: FastAPI, endpoints: Endpoints, *, needs_key: bool) -> None:
    # The gate compares keys; this has the page of the API ask for one.
    key = [Depends(HTTPBearer(auto_error=False, description="One of the server's keys"))] if needs_key else []
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": schemas.ErrorResponse},
        "5XX": {"model": schemas.ErrorResponse},
    }
    stream: dict[str, Any] = {EVENT_STREAM: {}}
    files = {kind.media_type: {"schema": {"type": "string", "format": "binary"}} for kind in SOUND_FORMATS.values()}
    text = {"text/plain": {"schema": {"type": "string"}}}

    def add(
        method: str, path: str, handler: Callable[..., Any], content: dict[str, Any] | None = None, **options: Any
    ) -> None:
        responses = errors | ({200: {"content": content}} if content is not None else {})
        dependencies = [] if path in OPEN_PATHS else key
        app.add_api_route(path, handler, methods=[method], responses=responses, dependencies=dependencies, **options)

    sounds: dict[str, Any] = {"content": files | stream, "response_class": Response}
    add("POST", "/v1/chat/completions", endpoints.chat, stream, response_model=schemas.ChatCompletion)
    add("POST", "/v1/images/generations", endpoints.images, response_model=schemas.ImagesResponse)
    add("POST", "/v1/audio/speech", endpoints.speech, **sounds)
    add("POST", "/v1/audio/music", endpoints.music, **sounds)
    add(
        "POST",
        "/v1/audio/transcriptions",
        endpoints.transcriptions,
        stream | text,
        response_model=schemas.Transcription,
    )
    add("GET", "/v1/models", endpoints.models, response_model=schemas.ModelList)
    add("GET", "/v1/models/{name:path}", endpoints.model, response_model=schemas.ModelCard)
    add("GET", "/health", endpoints.health, response_model=schemas.Health)
    add("GET", "/metrics", endpoints.metrics, text, response_class=Response)


def _add_error_handlers(app: FastAPI) -> None:
    async def told(_: Request, error: Exception) -> Response:
        api_error = as_api_error(error)
        return JSONResponse(error_body(api_error), api_error.status_code, api_error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return await told(_, _as_bad_request(error))

    async def failed(_: Request, error: Exception) -> Response:
        return await told(_, ApiError(500, "the server failed on this request; its log says why"))

    for kind in TOLD:
        app.add_exception_handler(kind, told)
    app.add_exception_handler(HTTPException, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


def _as_bad_request(error: RequestValidationError) -> ApiError:
    """The first mistake, and the field that it is in. Of a field with several types each has mistakes of its own: then
    the one that lies deepest, since it is in the type that was meant."""
    mistakes = error.errors()
    if mistakes[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {mistakes[0]['ctx']['error']}", code="invalid_json")
    field = tuple(takewhile(_is_name, mistakes[0]["loc"]))
    first = max((one for one in mistakes if one["loc"][: len(field)] == field), key=lambda one: len(one["loc"]))
    place = [str(part) for part in first["loc"] if _is_name(part) and part not in ("body", "query", "path")]
    param = ".".join(place) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code="invalid_value")


def _is_name(part: str | int) -> bool:
    """Of a field or item; pydantic's names of types are there as well."""
    return isinstance(part, int) or part.isidentifier()
