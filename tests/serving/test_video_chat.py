"""Videos in the messages of the server's chat, in and out."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_serving import Running, data_url, listening
from fixtures_tiny import SPECS_WITH_VIDEO, build_home
from PIL import Image

from anygpt import AnyGPT
from anygpt.serving.app import ServerSettings
from anygpt.video import Video, gif_bytes, load_video, mp4_bytes

CLIP = Video(tuple(Image.new("RGB", (32, 32), (60 * n, 0, 0)) for n in range(3)), 2.0)


@pytest.fixture(scope="module")
def server_with_video(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = build_home(tmp_path_factory.mktemp("video"), SPECS_WITH_VIDEO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYGPT_HOME", str(home))
        with listening(AnyGPT.from_pretrained(seed=7), ServerSettings()) as server:
            yield server


def asked(content: bytes, kind: str = "video/mp4") -> list[dict[str, object]]:
    part = {"type": "video_url", "video_url": {"url": data_url(content, kind)}}
    return [{"role": "user", "content": [{"type": "text", "text": "what happens?"}, part]}]


def test_videos_are_seen(server_with_video: Running) -> None:
    for content, kind in ((mp4_bytes(CLIP), "video/mp4"), (gif_bytes(CLIP), "image/gif")):
        answer = server_with_video.post("/v1/chat/completions", messages=asked(content, kind), modalities=["text"])
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"], answer.text
    refused = server_with_video.post("/v1/chat/completions", messages=asked(b"no video at all"))
    assert refused.status_code == 400 and "not a video" in refused.json()["error"]["message"]


def test_videos_are_made(server_with_video: Running, tmp_path: Path) -> None:
    question = [{"role": "user", "content": "show it"}]
    answer = server_with_video.post("/v1/chat/completions", messages=question, modalities=["video"], seed=1)
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    (video,) = message["videos"]
    head, content = video["video_url"]["url"].split(",")
    assert head == "data:video/mp4;base64"
    (tmp_path / "made.mp4").write_bytes(base64.b64decode(content))
    assert load_video(tmp_path / "made.mp4").frames
    history = [*question, {"role": "assistant", "content": message["content"] or "", "videos": message["videos"]}]
    further = [*history, {"role": "user", "content": "and now?"}]
    again = server_with_video.post("/v1/chat/completions", messages=further, modalities=["text"])
    assert again.status_code == 200 and again.json()["choices"][0]["message"]["content"], again.text
