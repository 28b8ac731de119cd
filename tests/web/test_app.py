"""What the page's server sends, and what it doesn't."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fixtures_web import showing

from anygpt import AnyGPT
from anygpt.errors import AnyGPTError
from anygpt.web.app import PageSettings, create_app


@pytest.fixture(scope="module")
def client(web_model: AnyGPT) -> Iterator[httpx.Client]:
    with showing(web_model, PageSettings()) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_the_page_has_nothing_loaded_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "AnyGPT" in page.text
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](https?:)?//([^\"'/]+)", page.text)
    assert [host for _, host in loaded if host != client.base_url.netloc.decode()] == []
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert client.get("/health").json() == {"status": "ok", "answers": 0}


@pytest.mark.parametrize(
    "path", ["/media/x/y.png", "/media/..%2f..%2fetc/passwd", f"/media/{'0' * 32}/..%2f..%2fsecret", "/media/%00/a"]
)
def test_files_need_a_key_and_stay_in_their_folder(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_there_is_no_second_api(client: httpx.Client) -> None:
    """Programs have `anygpt serve`."""
    assert client.get("/gradio_api/info").json()["named_endpoints"] == {}


def test_a_model_that_holds_no_conversation(web_model: AnyGPT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def session(**_: object) -> None:
        raise AnyGPTError("no token <-Human->")

    monkeypatch.setattr(web_model, "session", session)
    with pytest.raises(AnyGPTError, match=r"no token <-Human->; .*--single-questions"):
        create_app(web_model, "tiny", PageSettings())
