"""`anygpt serve`: the model behind an HTTP API in OpenAI's wire format."""

import os
from pathlib import Path

from anygpt.cli.chat import DEFAULT_MODEL as CHAT_MODEL
from anygpt.cli.model_flags import UNSET, ModelFlags
from anygpt.errors import AnyGPTError
from anygpt.paths import resource

KEYS_VARIABLE = "ANYGPT_API_KEYS"


def serve(
    *,
    model: ModelFlags = UNSET,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_name: list[str] | None = None,
    api_key: list[str] | None = None,
    batch_size: int = 16,
    queue_size: int = 64,
    request_timeout_s: float = 300.0,
    shutdown_timeout_s: float = 60.0,
    max_body_mb: float = 30.0,
    max_media_mb: float = 20.0,
    allow_remote_media: bool = False,
    cors_origin: list[str] | None = None,
) -> None:
    """Serve a model over HTTP, for OpenAI's clients.

    Chat, pictures, speech, music and transcription are under /v1, their description under /docs. Requests are answered
    together in one batch; those that find neither a place in it nor in the queue get status 429. SIGTERM and Ctrl-C let
    what was accepted be finished.

    Args:
        model_name_or_path: Folder of a model, or the name of a shipped one; without it the shipped chat model, or base
            model where there is none.
        host: Address to listen on; 0.0.0.0 for all, which should have keys.
        port: Port to listen on; 0 takes a free one.
        served_model_name: What requests call the model; give the flag several times for several. Its folder's name by
            default.
        api_key: A key that requests must have; give the flag several times for several. ANYGPT_API_KEYS has more of
            them, between commas, and doesn't show in the list of processes.
        batch_size: Answers that are made at a time.
        queue_size: Requests that may wait beyond those.
        request_timeout_s: Seconds that a request may take, its wait included.
        shutdown_timeout_s: Seconds that what was accepted gets to be finished in when the server is asked to end.
        max_body_mb: Limit of a request.
        max_media_mb: Limit of one picture or sound in it.
        allow_remote_media: Fetch media of http and https URLs, from public addresses.
        cors_origin: A website whose pages may use the server; give the flag several times for several.
    """
    counts = {"--batch-size": (batch_size, 1), "--queue-size": (queue_size, 0), "--port": (port, 0)}
    for flag, (count, least) in counts.items():
        if count < least:
            raise AnyGPTError(f"{flag} is {count}, expected at least {least}")
    amounts = {
        "--request-timeout-s": request_timeout_s,
        "--shutdown-timeout-s": shutdown_timeout_s,
        "--max-body-mb": max_body_mb,
        "--max-media-mb": max_media_mb,
    }
    for flag, amount in amounts.items():
        if not 0 < amount < 1e6:
            raise AnyGPTError(f"{flag} is {amount:g}, expected a number above 0")
    if port > 65535:
        raise AnyGPTError(f"--port is {port}, expected at most 65535")
    try:
        from anygpt.serving.app import ServerSettings
        from anygpt.serving.gate import read_keys
        from anygpt.serving.media import MediaLimits
        from anygpt.serving.server import model_name
        from anygpt.serving.server import serve as run
    except ImportError as error:
        raise AnyGPTError(f"serving needs the package {error.name}: pip install anygpt[serve]") from None
    from anygpt.engine import find_model

    folder = find_model(model.model_name_or_path or _shipped_chat_model())
    loaded = model.load(folder)
    settings = ServerSettings(
        keys=tuple(read_keys(api_key or [], os.environ.get(KEYS_VARIABLE))),
        batch_size=batch_size,
        queue_size=queue_size,
        request_timeout_s=request_timeout_s,
        max_body_bytes=round(max_body_mb * 1e6),
        media=MediaLimits(max_bytes=round(max_media_mb * 1e6), allow_remote=allow_remote_media),
        cors_origins=tuple(cors_origin or ()),
    )
    run(
        loaded,
        served_model_name or [model_name(folder)],
        settings,
        host=host,
        port=port,
        shutdown_timeout_s=shutdown_timeout_s,
    )


def _shipped_chat_model() -> Path | None:
    """None where there is none: a base model answers all but conversations as well."""
    try:
        return resource("models", CHAT_MODEL)
    except AnyGPTError:
        return None
