"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from fixtures_web import find_browser, opened, showing
from PIL import Image, ImageColor

from anygpt import AnyGPT
from anygpt.boxes import COLOURS, find_boxes
from anygpt.serving.scheduler import Scheduler
from anygpt.web.app import PageSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

WAIT_MS = 60_000
BROWSER = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install -y chromium, or name one in CHROMIUM"),
]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    assert BROWSER is not None
    with opened(BROWSER) as started:
        yield started


@pytest.fixture(scope="module")
def address(web_model: AnyGPT) -> Iterator[str]:
    with showing(web_model, PageSettings()) as url:
        yield url


@pytest.fixture
def visit(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Opens a page; it may load nothing from elsewhere and have no errors in its scripts."""
    pages: list[Page] = []
    wrong: list[str] = []

    def open_page(url: str, size: dict[str, int] | None = None) -> "Page":
        page = browser.new_page(viewport=size or {"width": 1100, "height": 900})  # type: ignore[arg-type]
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: _check_address(request.url, url, wrong))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.get_by_role("textbox", name="Message").wait_for()
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


def _check_address(asked: str, url: str, wrong: list[str]) -> None:
    if not asked.startswith((url, "data:", "blob:")):
        wrong.append(asked)


def message_box(page: "Page") -> "Locator":
    return page.get_by_role("textbox", name="Message")


def send(page: "Page", text: str = "", *, answer: str = "text", file: Path | None = None) -> None:
    """Say something and wait for the whole answer."""
    count = page.locator("#chat .bot.message").count()
    page.locator(f"#answer input[value={answer}]").check()
    if file is not None:
        page.locator("#message input[type=file]").set_input_files(file)
        page.locator("#message .thumbnail-item, #message .thumbnail-wrapper").first.wait_for()
    message_box(page).fill(text)
    message_box(page).press("Enter")
    page.locator("#chat .bot.message").nth(count).wait_for()
    page.get_by_role("button", name="Submit").wait_for()


def users(page: "Page") -> "Locator":
    return page.locator("#chat .user.message")


def test_a_conversation(visit: "Callable[..., Page]", address: str, picture: Path, sound: Path, tmp_path: Path) -> None:
    """The page draws a seed for every visitor, and with some of them an answer has more than what was asked for."""
    page = visit(address)
    send(page, "a red apple")
    assert page.locator("#chat .bot.message").inner_text().strip()

    send(page, "what is it?", answer="image", file=picture)
    assert users(page).count() == 2
    page.wait_for_function(
        "[...document.querySelectorAll('#chat img')].filter(one => one.naturalWidth > 0).length >= 2"
    )

    send(page, answer="speech", file=sound)
    sounds = page.locator("#chat audio")
    assert sounds.count() >= 2
    page.wait_for_function("[...document.querySelectorAll('#chat audio')].every(sound => sound.duration > 0)")
    played = page.evaluate(
        """async () => {
            const sound = [...document.querySelectorAll('#chat audio')].at(-1);
            sound.muted = true;
            await sound.play();
            return sound.duration;
        }"""
    )
    assert played > 0
    media = sounds.count() + page.locator("#chat img").count()

    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "talk.zip")
    names = zipfile.ZipFile(tmp_path / "talk.zip").namelist()
    assert names[0] == "anygpt-conversation/conversation.json" and len(names) == 1 + media

    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("document.querySelectorAll('#chat .user.message').length == 2")
    page.locator("#undo").click()
    page.wait_for_function("document.querySelectorAll('#chat .user.message').length == 1")
    assert message_box(page).input_value() == "what is it?"
    page.locator("#message .thumbnail-item").wait_for()
    page.locator("#clear").click()
    page.wait_for_function("document.querySelectorAll('#chat .message').length == 0")
    assert page.locator("#download").is_disabled()
    send(page, "hello again")
    assert users(page).count() == 1


def test_by_keyboard_alone(visit: "Callable[..., Page]", address: str) -> None:
    """The box has the focus from the start; everything else follows it in the order that is seen."""
    page = visit(address)
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    page.locator("#chat .bot.message").wait_for()
    page.get_by_role("button", name="Submit").wait_for()
    assert page.locator("#chat .user.message").inner_text().split("\n") == ["first line", "second line"]
    message_box(page).focus()
    passed: list[str] = []
    while len(passed) < 30 and "Settings" not in passed:
        page.keyboard.press("Tab")
        name = page.evaluate("(e => e.getAttribute('aria-label') || e.value || e.innerText)(document.activeElement)")
        passed.append(name.strip().split("\n")[0])
    wanted = ["Record audio", "any", "Undo", "Clear", "Download", "Settings"]
    assert [name for name in passed if name in wanted] == wanted


def test_a_phone(visit: "Callable[..., Page]", address: str, picture: Path) -> None:
    """Nothing is wider than the screen, and what is needed first is on it."""
    page = visit(address, PHONE)
    send(page, "a red apple on a blue table", answer="image", file=picture)
    page.locator("#settings button").first.click()
    page.locator("#seed input").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("#message").bounding_box()
    assert box is not None and box["y"] + box["height"] < PHONE["height"] and box["width"] > 300


def test_stop_and_leaving_end_an_answer(
    visit: "Callable[..., Page]", web_model: AnyGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each id takes so long that the answer would not be done within the test."""
    turn = Scheduler._turn
    monkeypatch.setattr(Scheduler, "_turn", lambda scheduler: (time.sleep(0.8), turn(scheduler)))
    with showing(web_model, PageSettings()) as url:
        page = visit(url)
        page.locator("#answer input[value=music]").check()
        message_box(page).fill("a slow piece")
        message_box(page).press("Enter")
        page.get_by_text("music: ").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.wait_for_function("document.querySelector('#message textarea').value == 'a slow piece'")
        assert page.locator("#chat .message").count() == 0
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("music: ").wait_for()
        assert unfinished(url) == 1
        page.close()
        wait_until_idle(url)


def unfinished(url: str) -> int:
    return httpx.get(f"{url}/health", timeout=30).json()["answers"]


def wait_until_idle(url: str) -> None:
    deadline = time.monotonic() + 15
    while unfinished(url):
        assert time.monotonic() < deadline, "an answer goes on that nobody waits for"
        time.sleep(0.1)


def test_mistakes_are_told_and_the_message_stays(visit: "Callable[..., Page]", address: str, tmp_path: Path) -> None:
    page = visit(address)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"<script>alert(1)</script>")
    page.locator("#message input[type=file]").set_input_files(broken)
    page.locator("#message .thumbnail-item").first.wait_for()
    message_box(page).fill("what is it?")
    message_box(page).press("Enter")
    page.get_by_text("neither a picture nor a sound").wait_for()
    page.get_by_role("button", name="Submit").wait_for()
    assert message_box(page).input_value() == "what is it?" and page.locator("#chat .message").count() == 0


def test_single_questions_and_examples(visit: "Callable[..., Page]", web_model: AnyGPT, browser: "Browser") -> None:
    with showing(web_model, PageSettings(is_chat=False)) as url:
        page = visit(url)
        page.get_by_role("button", name="Write down").click()
        page.locator("#message .thumbnail-item").first.wait_for()
        assert page.locator("#answer input[value=text]").is_checked()
        page.get_by_role("button", name="Draw").click()
        page.wait_for_function("document.querySelector('#message textarea').value.includes('red apple')")
        message_box(page).press("Enter")
        page.locator("#chat .bot.message img").wait_for()
        page.close()


def test_boxes_are_seen_on_the_picture(visit: "Callable[..., Page]", web_model: AnyGPT, tmp_path: Path) -> None:
    """In a screenshot the answer's picture has the colour of its first box, which the one attached has not."""
    picture, config = tmp_path / "gray.png", tmp_path / "config"
    Image.new("RGB", (64, 48), "gray").save(picture)
    config.mkdir()
    (config / "generate_config.json").write_text(json.dumps({"max_new_tokens": 40}))
    model = AnyGPT(
        web_model.decoder,
        web_model.vocabulary,
        web_model.tokenizers,
        policies=web_model.policies,
        task_prompts=web_model.task_prompts,
        config_dir=config,
    )
    with showing(model, PageSettings()) as url:
        page = visit(url)
        send(page, "[refer] a red apple", answer="any", file=picture)
        shown = page.locator("#chat img")
        assert shown.count() == 2 and shown.last.get_attribute("alt") == "boxes of the answer"
        page.wait_for_function("[...document.querySelectorAll('#chat img')].every(one => one.naturalWidth > 0)")
        assert find_boxes(page.locator("#chat .bot.message").first.inner_text())
        colour = np.array(ImageColor.getrgb(COLOURS[0]))
        counts = []
        for number in range(2):
            content = shown.nth(number).screenshot()
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
            counts.append(int((abs(pixels - colour).max(-1) < 60).sum()))
        assert counts[1] > counts[0] + 20
        page.close()
