"""`anygpt web`: a page to talk with the model in a browser."""

import sys
from pathlib import Path

from anygpt.cli.model_flags import UNSET, ModelFlags
from anygpt.errors import AnyGPTError
from anygpt.paths import resource

CHAT_MODEL, BASE_MODEL = "anygpt-mini-chat", "anygpt-mini-base"


def web(
    *,
    model: ModelFlags = UNSET,
    single_questions: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    batch_size: int = 8,
    queue_size: int = 64,
    request_timeout_s: float = 300.0,
    max_media_mb: float = 20.0,
) -> None:
    """Show a page to talk with a model in a browser.

    Type, record or upload; answers come as text, pictures and sounds. The page needs no network besides, and several
    people can use it at a time. Without a chat model it asks the base model single questions.

    Args:
        model_name_or_path: Folder of a model, or the name of a shipped one; without it the shipped chat model, or base
            model where there is none.
        single_questions: Each question stands alone, in the forms of `anygpt base`: for base models.
        host: Address to listen on; 0.0.0.0 for all. The page has no keys: put something that does before it.
        port: Port to listen on.
        batch_size: Answers that are made at a time.
        queue_size: Answers that may wait beyond those.
        request_timeout_s: Seconds that an answer may take, its wait included.
        max_media_mb: Limit of one picture or sound.
    """
    counts = {"--batch-size": (batch_size, 1), "--queue-size": (queue_size, 0), "--port": (port, 0)}
    for flag, (count, least) in counts.items():
        if count < least:
            raise AnyGPTError(f"{flag} is {count}, expected at least {least}")
    for flag, amount in {"--request-timeout-s": request_timeout_s, "--max-media-mb": max_media_mb}.items():
        if not 0 < amount < 1e6:
            raise AnyGPTError(f"{flag} is {amount:g}, expected a number above 0")
    if port > 65535:
        raise AnyGPTError(f"--port is {port}, expected at most 65535")
    try:
        import gradio  # noqa: F401

        from anygpt.serving.media import MediaLimits
        from anygpt.web.app import PageSettings
        from anygpt.web.app import serve as run
    except ImportError as error:
        raise AnyGPTError(f"the page needs the package {error.name}: pip install anygpt[web]") from None
    from anygpt.engine import find_model

    if model.model_name_or_path is not None:
        folder = find_model(model.model_name_or_path)
    else:
        folder, is_base = _default_model()
        if is_base and not single_questions:
            print(f"anygpt: no chat model is installed; {folder.name} answers single questions", file=sys.stderr)
        single_questions |= is_base
    loaded = model.load(folder)
    settings = PageSettings(
        is_chat=not single_questions,
        batch_size=batch_size,
        queue_size=queue_size,
        request_timeout_s=request_timeout_s,
        media=MediaLimits(max_bytes=round(max_media_mb * 1e6)),
    )
    run(loaded, folder.resolve().name, settings, host=host, port=port)


def _default_model() -> tuple[Path, bool]:
    """The shipped chat model, else the base model; and whether it is the latter."""
    try:
        return resource("models", CHAT_MODEL), False
    except AnyGPTError:
        return resource("models", BASE_MODEL), True
