"""The endpoint plug-ins of synth against a real HTTP server in this process."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fixtures_tiny import MODEL
from PIL import Image

from anygpt.cli.main import main
from anygpt.data.dialogue import MediaRef, check_messages
from anygpt.data.instructions import turns_of
from anygpt.errors import AnyGPTError, ConfigError
from anygpt.media import Audio
from anygpt.synth.generators import BadItem, PluginSettings, create_media, create_writer
from anygpt.vocabulary import Vocabulary

pytest.importorskip("openai", reason="the extra `synth` is not installed")

Reply = tuple[int, Any]


class FakeEndpoint:
    """Answers requests in turn from `script`, else by `otherwise`; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str]] = []
        self.script: list[Reply] = []
        self.otherwise: Callable[[str, dict[str, Any]], Reply] = lambda path, body: (404, {"error": {"message": "no"}})
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, body, self.headers["Authorization"]))
                reply = endpoint.script.pop(0) if endpoint.script else endpoint.otherwise(self.path, body)
                status, content = reply
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    fake = FakeEndpoint()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def settings(endpoint: FakeEndpoint, *, scenarios: tuple[str, ...] = (), split: str = "train", **options: str) -> Any:
    return PluginSettings(scenarios=scenarios, split=split, options={"url": endpoint.url, **options})


def said(content: Any) -> Reply:
    """A chat completion with this content."""
    text = content if isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def message(role: str, text: str, spoken: bool = False, **media: str) -> dict[str, Any]:
    return {
        "role": role,
        "text": text,
        "spoken": spoken,
        "media": [{"modality": modality, "caption": caption} for modality, caption in media.items()],
    }


GOOD = {
    "messages": [
        message("user", "What goes with\n this?", image="a wet street at night"),
        message("assistant", "Something slow.", music="slow piano, sad"),
        message("user", "Now say it.", spoken=True),
        message("assistant", "Something slow.", spoken=True),
    ]
}


def model(path: str, body: dict[str, Any]) -> Reply:
    """A chat model that does as it is asked."""
    assert path == "/v1/chat/completions"
    prompt = body["messages"][1]["content"]
    if '"topics"' in prompt:
        number = prompt.partition("list number ")[2].partition(",")[0]
        return said({"topics": [f"topic {number}.{n}" for n in range(10)]})
    if '"situations"' in prompt:
        return said({"situations": [f"situation {n}" for n in range(16)]})
    return said(GOOD)


def test_topics_then_situations_then_conversations(endpoint: FakeEndpoint) -> None:
    endpoint.otherwise = model
    writer = create_writer("openai", settings(endpoint, scenarios=("image-to-music", "speech-to-speech"), model="gpt"))
    dialogues = [writer.write(index) for index in range(20)]
    assert {dialogue.scenario for dialogue in dialogues} == {"image-to-music", "speech-to-speech"}
    assert len({dialogue.topic for dialogue in dialogues[:16]}) == 1 and dialogues[16].topic != dialogues[0].topic
    for dialogue in dialogues:
        check_messages(dialogue)
    question, answer, spoken, reply = dialogues[0].messages
    assert (question.text, [ref.caption for ref in question.media]) == (
        "What goes with this?",
        ["a wet street at night"],
    )
    assert [ref.modality for ref in answer.media] == ["music"] and answer.heard is None
    assert spoken.text == "" and spoken.media[0].facts == {"text": "Now say it."}
    assert (reply.heard, reply.text, reply.media[0].caption) == ("Now say it.", "Something slow.", "Something slow.")
    keys = [ref.key for dialogue in dialogues for turn in dialogue.messages for ref in turn.media]
    assert len(set(keys)) == len(keys)
    kinds = [body["messages"][1]["content"] for _, body, _ in endpoint.requests]
    assert sum('"topics"' in kind for kind in kinds) <= 2 and sum('"situations"' in kind for kind in kinds) == 2
    assert "situation 3" in kinds[-1]
    path, body, key = endpoint.requests[0]
    assert body["model"] == "gpt" and body["response_format"] == {"type": "json_object"} and key == "Bearer secret"


def test_held_out_topics_are_no_topics_of_training(endpoint: FakeEndpoint) -> None:
    endpoint.otherwise = model
    topics: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        options = settings(endpoint, scenarios=("image-to-music",), split=split, model="gpt")
        writer = create_writer("openai", options)
        topics[split] = {writer.write(index).topic for index in range(0, 16 * 5, 16)}
    assert len(topics["train"]) == len(topics["heldout"]) == 5 and not topics["train"] & topics["heldout"]


def changed(at: int, **fields: Any) -> dict[str, Any]:
    return {"messages": [item | (fields if n == at else {}) for n, item in enumerate(GOOD["messages"])]}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("Sure! Here you are", "not JSON"),
        ("", "not JSON"),
        ("[" * 5000, "not JSON"),
        ([GOOD], "the answer must be an object"),
        ({"messages": GOOD["messages"], "note": "x"}, "unknown field 'note'"),
        ({"messages": "none"}, "'messages' must be a list"),
        ({"messages": []}, "pairs of a question and an answer"),
        ({"messages": GOOD["messages"] * 9}, "at most"),
        ({"messages": GOOD["messages"][1:]}, "the user first"),
        (changed(0, role="system"), "role is 'system'"),
        (changed(0, text=""), "message 1: text has 0 characters"),
        (changed(0, text="x" * 2000), "text has 2000 characters"),
        (changed(1, text="<eos> and more"), "holds '<eos>'"),
        (changed(0, spoken="no"), "field 'spoken' must be a bool"),
        (changed(0, tone="glad"), "unknown field 'tone'"),
        (changed(0, media=[{"modality": "video", "caption": "x"}]), "modality is 'video'"),
        (changed(0, media=[{"modality": "image"}]), "field 'caption' is missing"),
        (changed(0, media=[{"modality": "image", "caption": "x"}] * 4), "4 media"),
        (changed(0, media=[]), "in no round the user shows a picture"),
    ],
)
def test_an_unfit_answer_is_asked_for_again(endpoint: FakeEndpoint, answer: Any, problem: str) -> None:
    writer = create_writer("openai", settings(endpoint, scenarios=("image-to-music",), model="gpt", attempts="2"))
    endpoint.otherwise = model
    writer.write(1)
    fenced = f"```json\n{json.dumps(GOOD)}\n```"
    endpoint.script = [said(answer), said(fenced)]
    assert len(writer.write(2).messages) == 4
    complaint = endpoint.requests[-1][1]["messages"][-1]
    assert complaint["role"] == "user" and problem in complaint["content"]
    endpoint.script = [said(answer)] * 2
    with pytest.raises(BadItem, match="unfit 2 times"):
        writer.write(3)


def test_a_busy_server_is_asked_again(endpoint: FakeEndpoint) -> None:
    endpoint.otherwise = model
    endpoint.script = [(429, {"error": {"message": "slow down"}}), (503, b"no JSON"), (500, {})]
    writer = create_writer("openai", settings(endpoint, scenarios=("image-to-music",), model="gpt"))
    assert writer.write(0).scenario == "image-to-music"
    assert len(endpoint.requests) == 6


def test_what_would_fail_always_ends_the_run(endpoint: FakeEndpoint) -> None:
    writer = create_writer("openai", settings(endpoint, model="gpt", retries="1"))
    for reply, text in (
        ((401, {"error": {"message": "bad key"}}), "HTTP 401: bad key; check OPENAI_API_KEY"),
        ((404, {"error": {"message": "no such model"}}), "HTTP 404: no such model"),
        ((429, {"error": {"message": "quota"}}), "HTTP 429: quota"),
    ):
        endpoint.script = [reply] * 2
        with pytest.raises(AnyGPTError, match=text) as raised:
            writer.write(0)
        assert (
            not isinstance(raised.value, BadItem)
            and "\n" not in str(raised.value)
            and "secret" not in str(raised.value)
        )
        endpoint.script = []
    endpoint.script = [(400, {"error": {"message": "not allowed"}})]
    with pytest.raises(BadItem, match="not allowed"):
        writer.write(0)
    endpoint.otherwise = lambda path, body: said({"topics": ["the same"]})
    with pytest.raises(AnyGPTError, match="no new topics"):
        writer.write(100)


def test_a_server_that_is_not_there(endpoint: FakeEndpoint) -> None:
    away = PluginSettings(options={"url": "http://127.0.0.1:9/v1", "model": "gpt", "retries": "0"})
    with pytest.raises(AnyGPTError, match=r"127.0.0.1:9/v1/: can't be reached .*is it running"):
        create_writer("openai", away).write(0)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(file, "PNG")
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 8000), 16_000, format="WAV")
    return file.getvalue()


def test_pictures_and_speech(endpoint: FakeEndpoint) -> None:
    image = {"created": 0, "data": [{"b64_json": base64.b64encode(png()).decode()}]}
    endpoint.script = [(200, image), (200, wav())]
    options = {"image_model": "painter", "speech_model": "speaker", "voices": "a, b", "speech_format": "wav"}
    media = create_media("openai", settings(endpoint, image_size="64x64", **options))
    assert media.modalities == ("image", "speech")
    picture = media.make(MediaRef(modality="image", caption="red"))
    assert isinstance(picture, Image.Image) and picture.size == (20, 10) and picture.getpixel((0, 0)) == (255, 0, 0)
    sound = media.make(MediaRef(modality="speech", caption="hello"))
    assert isinstance(sound, Audio) and sound.rate_hz == 16_000
    (path, body, _), (speech_path, speech, _) = endpoint.requests
    assert path == "/v1/images/generations" and (body["prompt"], body["size"]) == ("red", "64x64")
    assert speech_path == "/v1/audio/speech" and speech["input"] == "hello" and speech["voice"] in ("a", "b")
    with pytest.raises(BadItem, match="makes no music; it makes: image, speech"):
        media.make(MediaRef(modality="music", caption="x"))


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ((200, {"created": 0, "data": [{"url": "http://x/y.png"}]}), "no picture in base64"),
        ((200, {"created": 0, "data": []}), "no picture in base64"),
        ((200, {"created": 0, "data": [{"b64_json": "%%%"}]}), "broken base64"),
        ((200, {"created": 0, "data": [{"b64_json": base64.b64encode(b"text").decode()}]}), "not a picture"),
        ((200, {"created": 0, "data": [{"b64_json": base64.b64encode(png()[:45]).decode()}]}), "damaged or cut off"),
        ((400, {"error": {"message": "content policy"}}), "refuses the request: content policy"),
    ],
)
def test_a_picture_that_can_t_be_had_is_one_bad_item(endpoint: FakeEndpoint, reply: Reply, problem: str) -> None:
    endpoint.script = [reply]
    media = create_media("openai", settings(endpoint, image_model="painter"))
    with pytest.raises(BadItem, match=problem):
        media.make(MediaRef(modality="image", caption="x"))


def test_mistakes_in_options(endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, error in (
        ({}, "openai.model=NAME"),
        ({"modl": "x"}, "unknown key 'modl' .did you mean 'model'"),
        ({"model": "x", "retries": "many"}, "'retries' is 'many'"),
        ({"model": "x", "attempts": "0"}, "'attempts' is 0, expected at least 1"),
    ):
        with pytest.raises((AnyGPTError, ConfigError), match=error):
            create_writer("openai", settings(endpoint, **options))
    with pytest.raises(AnyGPTError, match="unknown scenario 'image-to-musik' .did you mean"):
        create_writer("openai", settings(endpoint, scenarios=("image-to-musik",), model="x"))
    with pytest.raises(AnyGPTError, match="image_model=NAME"):
        create_media("openai", settings(endpoint, model="x"))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(AnyGPTError, match="OPENAI_API_KEY is not set"):
        create_writer("openai", PluginSettings(options={"model": "x"}))


@pytest.mark.usefixtures("in_tmp_path")
def test_the_whole_command(endpoint: FakeEndpoint, home: Path) -> None:
    Path("tune.wav").write_bytes(wav())
    Path("tunes.jsonl").write_text('{"music": "tune.wav", "text": "slow piano, sad"}\n')
    image = {"created": 0, "data": [{"b64_json": base64.b64encode(png()).decode()}]}
    replies: dict[str, Reply] = {"/v1/images/generations": (200, image), "/v1/audio/speech": (200, wav())}
    endpoint.otherwise = lambda path, body: replies[path] if path in replies else model(path, body)
    options = {
        "openai.url": endpoint.url,
        "openai.model": "gpt",
        "openai.image_model": "painter",
        "openai.speech_model": "speaker",
        "folder.manifest": "tunes.jsonl",
    }
    tokenizers = {"image": "seed-tiny", "speech": "speech-tiny", "music": "music-tiny"}
    words = ["synth", "--out", "out.jsonl", "--count", "3", "--scenarios", "image-to-music"]
    words += ["--writer", "openai", "--media", "openai,folder"]
    words += [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    words += [word for name, value in tokenizers.items() for word in (f"--{name}-tokenizer-path", value)]
    main(words)
    vocab = Vocabulary.from_pretrained(home / "models" / MODEL)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3
    for row in rows:
        turns = turns_of(row, vocab, "row")
        assert [[item.modality for item in turn.media] for turn in turns] == [
            ["image"],
            ["music"],
            ["speech"],
            ["speech"],
        ]
