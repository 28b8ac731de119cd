"""The page on a real port, in a thread of its own, and a browser before it."""

import asyncio
import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from anygpt import AnyGPT
from anygpt.web.app import PageSettings, create_app
from anygpt.web.batch import SharedBatch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@contextlib.contextmanager
def showing(model: AnyGPT, settings: PageSettings) -> Iterator[str]:
    """The page's address, while it is served."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_app(model, "tiny", settings), log_level="critical", timeout_graceful_shutdown=3)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 120
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def find_browser() -> Path | None:
    """Chromium, where it is installed; CHROMIUM names another one."""
    names = (os.environ.get("CHROMIUM", ""), *BROWSER_NAMES)
    return next((Path(found) for name in names if name and (found := shutil.which(name))), None)


@contextlib.contextmanager
def opened(browser: Path) -> Iterator["Browser"]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=list(FLAGS), timeout=120_000)
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def drawing(model: AnyGPT, *, batch_size: int = 4, timeout_s: float = 60.0) -> Iterator[SharedBatch]:
    """A batch whose event loop runs in a thread of its own."""
    batch = SharedBatch(model, batch_size=batch_size, timeout_s=timeout_s)
    loop = asyncio.new_event_loop()
    is_ready, is_over = threading.Event(), asyncio.Event()

    async def main() -> None:
        async with batch.running():
            is_ready.set()
            await is_over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[main()], daemon=True)
    thread.start()
    try:
        assert is_ready.wait(30)
        yield batch
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()
