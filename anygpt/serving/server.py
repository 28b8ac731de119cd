"""Running the application until a signal ends it."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from anygpt.serving.app import ServerSettings, create_app

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT


def serve(
    model: "AnyGPT", names: list[str], settings: ServerSettings, *, host: str, port: int, shutdown_timeout_s: float
) -> None:
    """Serve until SIGTERM or Ctrl-C: no new requests are taken then, and those that were are answered, for
    `shutdown_timeout_s` at most."""
    run_app(create_app(model, names, settings), host=host, port=port, shutdown_timeout_s=shutdown_timeout_s)


def run_app(app: FastAPI, *, host: str, port: int, shutdown_timeout_s: float, access_log: bool = True) -> None:
    """Run any application so; being asked to end is no failure."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        timeout_graceful_shutdown=max(1, round(shutdown_timeout_s)),
        server_header=False,
        access_log=access_log,
    )
    signal.signal(signal.SIGTERM, _exit)  # uvicorn raises the signal again when it is done
    uvicorn.Server(config).run()


def model_name(folder: Path) -> str:
    """What a model is called by default."""
    return folder.resolve().name


def _exit(*_: Any) -> None:
    sys.exit(0)
