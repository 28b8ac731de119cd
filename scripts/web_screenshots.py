"""Pictures of the page for docs/, on a screen and on a phone: python scripts/web_screenshots.py [--model NAME]

Starts `anygpt web`, asks the examples that make pictures and sounds, and writes docs/web.png and docs/web-phone.png.
Needs Chromium (apt-get install -y chromium) and `pip install -e .[dev]`.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
SIZES = {"web": (1100, 1000), "web-phone": (390, 844)}
ASKED = ("Look at", "Compose", "Draw")
"""How the examples' names begin."""
WAIT_MS = 300_000
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="as --model-name-or-path of anygpt web")
    parser.add_argument("--seed", default="1")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no Chromium: apt-get install -y chromium")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = ["--model-name-or-path", arguments.model] if arguments.model else []
    server = subprocess.Popen([sys.executable, "-m", "anygpt", "web", "--port", str(port), *model])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, timeout=120_000)
            for name, (width, height) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(WAIT_MS)
                page.goto(url)
                talk(page, arguments.seed)
                write(page, DOCS / f"{name}.png")
                page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except urllib.error.URLError:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the page's server didn't start")
            time.sleep(0.5)


def talk(page: Page, seed: str) -> None:
    """Ask the examples, one after the other."""
    settings = page.locator("#settings button").first
    settings.click()
    page.locator("#seed input").fill(seed)
    page.locator("#seed input").press("Tab")
    settings.click()
    for number, label in enumerate(ASKED):
        page.get_by_role("button", name=label).click()
        page.wait_for_function(
            "document.querySelector('#message textarea').value || document.querySelector('#message .thumbnail-item')"
        )
        page.wait_for_timeout(500)
        page.locator("#message textarea").press("Enter")
        page.locator("#chat .bot.message").nth(number).wait_for()
        page.get_by_role("button", name="Submit").wait_for()
    page.wait_for_timeout(1500)
    page.evaluate("scrollTo(0, 0)")


def write(page: Page, path: Path) -> None:
    """A screenshot in 256 colours, which are enough for a page."""
    page.screenshot(path=path)
    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(256)
    reduced.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
