"""The official client, unmodified, on a real port."""

import base64
import io
import time
from typing import Any

import numpy as np
import pytest
from fixtures_serving import NAME, Running, data_url, picture_file, samples, sound_file
from PIL import Image

from anygpt import AnyGPT, choices
from anygpt.generation.loop import Batch
from anygpt.serving import streams

USER = {"role": "user", "content": "a red apple"}


def ask(server: Running, *messages: Any, **options: Any) -> Any:
    return server.openai().chat.completions.create(model=NAME, messages=messages or [USER], seed=5, **options)  # type: ignore[call-overload]


def test_models(server: Running) -> None:
    client = server.openai()
    (card,) = client.models.list().data
    assert card.id == NAME and client.models.retrieve(NAME).id == NAME


def test_chat_in_text(server: Running) -> None:
    answer = ask(server, modalities=["text"])
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.message.audio is None
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert ask(server, modalities=["text"]).choices[0].message.content == choice.message.content


def test_streamed_text_is_the_whole_one(server: Running) -> None:
    whole = ask(server, modalities=["text"])
    chunks = list(ask(server, modalities=["text"], stream=True, stream_options={"include_usage": True}))
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert len([text for text in texts if text]) > 1
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_streamed_choices_are_the_whole_ones(server: Running) -> None:
    options: dict[str, Any] = {"modalities": ["text"], "n": 3, "temperature": 1.5}
    whole = ask(server, **options)
    chunks = list(ask(server, **options, stream=True, stream_options={"include_usage": True}))
    said, reasons = ["", "", ""], {}
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    assert said == [choice.message.content for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].usage == whole.usage


def test_pauses_have_comments_that_clients_skip(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody between takes a connection for dead whose answer waits for its place."""
    whole = ask(server, modalities=["text"]).choices[0].message.content
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda batch: (time.sleep(0.15), step(batch))[1])
    monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.04)
    body = {"messages": [USER], "seed": 5, "modalities": ["text"], "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert len([line for line in lines if line.startswith(":")]) >= 3
    assert all(line.startswith((": ", "data: {", "data: [DONE]")) for line in lines) and lines[-1] == "data: [DONE]"
    chunks = ask(server, modalities=["text"], stream=True)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole


def test_settings_of_text(server: Running) -> None:
    short = ask(server, modalities=["text"], max_tokens=3, temperature=1.0, top_p=0.9)
    assert short.usage.completion_tokens <= 3 and short.choices[0].finish_reason == "length"
    several = ask(server, modalities=["text"], n=3, temperature=1.5)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_ends_the_text(server: Running, stream: bool) -> None:
    text = ask(server, modalities=["text"]).choices[0].message.content
    stop = text[3:5]
    answer = ask(server, modalities=["text"], stop=[stop, "never said"], stream=stream)
    if stream:
        chunks = list(answer)
        said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        reason = chunks[-1].choices[0].finish_reason
    else:
        said, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert said == text[: text.index(stop)] and reason == "stop"


def test_chat_about_a_picture(server: Running) -> None:
    def with_picture(content: bytes) -> Any:
        image = {"type": "image_url", "image_url": {"url": data_url(content), "detail": "low"}}
        return ask(server, {"role": "user", "content": [{"type": "text", "text": "what?"}, image]}, modalities=["text"])

    answer = with_picture(picture_file())
    assert answer.choices[0].message.content
    alone = ask(server, {"role": "user", "content": "what?"}, modalities=["text"])
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens + 32
    assert with_picture(picture_file("JPEG")).usage.prompt_tokens == answer.usage.prompt_tokens


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_chat_with_a_recording(server: Running, form: str) -> None:
    data = base64.b64encode(sound_file(form=form)).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": form.lower()}}
    answer = ask(server, {"role": "user", "content": [part]}, modalities=["text"])
    assert answer.choices[0].message.content


def test_chat_about_music(server: Running) -> None:
    music = {"data": base64.b64encode(sound_file()).decode(), "format": "wav", "modality": "music"}
    answer = ask(
        server, {"role": "user", "content": [{"type": "input_audio", "input_audio": music}]}, modalities=["text"]
    )
    assert answer.choices[0].message.content


def test_spoken_answer_and_going_on_from_it(server: Running) -> None:
    answer = ask(server, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"})
    message = answer.choices[0].message
    assert message.content is None and message.audio.transcript is not None
    wave, rate_hz = samples(base64.b64decode(message.audio.data))
    assert rate_hz == 16_000 and len(wave) > 0
    past = {"role": "assistant", "audio": {"id": message.audio.id}}
    longer = ask(server, USER, past, USER, modalities=["text"])
    assert longer.usage.prompt_tokens > answer.usage.prompt_tokens
    voice = {"voice": "alloy", "format": "flac", "voice_prompt": data_url(sound_file(), "audio/wav")}
    other = ask(server, modalities=["text", "audio"], audio=voice)
    assert len(samples(base64.b64decode(other.choices[0].message.audio.data))[0]) == len(wave)


@pytest.mark.parametrize("form", ["pcm16", "wav", "mp3"])
def test_streamed_spoken_answer(server: Running, form: str) -> None:
    whole = ask(server, modalities=["text", "audio"], audio={"voice": "alloy", "format": "flac"}).choices[0].message
    audio = {"voice": "alloy", "format": form}
    deltas = [
        choice.delta.audio
        for chunk in ask(server, modalities=["text", "audio"], audio=audio, stream=True)
        for choice in chunk.choices
        if choice.delta.audio is not None
    ]
    (first, *_) = [delta.id for delta in deltas if delta.data]
    content = b"".join(base64.b64decode(delta.data) for delta in deltas if delta.data and delta.id == first)
    expected, rate_hz = samples(base64.b64decode(whole.audio.data))
    if form == "pcm16":
        assert len(content) / 2 / 24_000 == pytest.approx(len(expected) / rate_hz, abs=0.002)
    elif form == "wav":
        assert len(samples(content)[0]) == len(expected)
    else:
        assert len(samples(content)[0]) >= len(expected)
    assert any(delta.expires_at for delta in deltas)
    assert "".join(delta.transcript or "" for delta in deltas).split() == whole.audio.transcript.split()


def test_picture_in_the_answer_and_going_on_from_it(server: Running) -> None:
    message = ask(server, modalities=["text", "image"]).choices[0].message.model_dump()
    (image,) = message["images"]
    header, _, content = image["image_url"]["url"].partition(",")
    assert header == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (32, 32)
    past = {"role": "assistant", "content": message["content"], "images": [image]}
    assert ask(server, USER, past, USER, modalities=["text"]).choices[0].message.content is not None
    deltas = [c.delta.model_dump() for chunk in ask(server, modalities=["image"], stream=True) for c in chunk.choices]
    assert [d["images"][0]["image_url"]["url"] for d in deltas if d.get("images")] == [image["image_url"]["url"]]


def test_each_choice_has_candidates_of_its_own(server: Running, model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_among: list[int] = []

    def last(*arguments: Any) -> int:
        chosen_among.append(len(arguments[-1]))
        return len(arguments[-1]) - 1

    monkeypatch.setattr(choices, "best_fit", last)
    monkeypatch.setattr(choices, "_words_before_span", lambda *_: "a red apple")
    policy = model.chat_policies["image"].override({"best_of": 3, "temperature": 1.5})
    monkeypatch.setitem(model.chat_policies, "image", policy)

    def images(**options: Any) -> list[Any]:
        create = server.openai().chat.completions.create
        answer = create(model=NAME, messages=[USER], extra_body={"modalities": ["image"]}, **options)
        assert answer.usage is not None and answer.usage.completion_tokens >= 34 * len(answer.choices)
        return [choice.message.model_dump()["images"] for choice in answer.choices]

    both = images(seed=5, n=2)
    assert both[0] != both[1] and both == [*images(seed=5), *images(seed=6)]
    assert set(chosen_among) == {3} and len(chosen_among) >= 4


def test_instructions_of_the_system_are_read(server: Running) -> None:
    with_system = ask(server, {"role": "system", "content": "be calm"}, USER, modalities=["text"])
    assert with_system.usage.prompt_tokens > ask(server, modalities=["text"]).usage.prompt_tokens


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"temperature": 1.5, "best_of": 3, "guidance_scale": 2.0}])
def test_pictures_are_those_of_run(server: Running, model: AnyGPT, settings: dict[str, Any]) -> None:
    answer = server.openai().images.generate(model=NAME, prompt="a red apple", n=2, extra_body={"seed": 3, **settings})
    assert answer.data is not None and answer.usage is not None and answer.usage.output_tokens == 68
    for number, made in enumerate(answer.data):
        expected = model.run("text|image|a red apple", seed=3 + number, **settings).image
        assert made.b64_json is not None and expected is not None
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(made.b64_json)))), expected)


def test_pictures_of_another_size_and_format(server: Running) -> None:
    options: dict[str, Any] = {"size": "64x48", "output_format": "jpeg", "response_format": "url"}
    answer = server.openai().images.generate(model=NAME, prompt="a red apple", **options)
    assert answer.data is not None and answer.data[0].url is not None
    header, _, content = answer.data[0].url.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert header == "data:image/jpeg;base64" and (image.size, image.format) == ((64, 48), "JPEG")


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "opus"])
def test_speech(server: Running, form: Any) -> None:
    said = server.openai().audio.speech.create(
        model=NAME, voice="alloy", input="a red apple", response_format=form, extra_body={"seed": 1}
    )
    wave, _ = samples(said.content)
    assert len(wave) > 100


def test_speech_is_that_of_run(server: Running, model: AnyGPT) -> None:
    extra = {"seed": 2, "voice_prompt": data_url(sound_file(), "audio/wav")}
    said = server.openai().audio.speech.create(
        model=NAME, voice="alloy", input="a red apple", response_format="wav", extra_body=extra
    )
    wave, rate_hz = samples(said.content)
    from anygpt.media import Audio

    sample = Audio(samples(sound_file())[0][None], 16_000)
    expected = model.run("text|speech|a red apple", seed=2, voice=sample).audio
    assert expected is not None and rate_hz == expected.rate_hz
    np.testing.assert_allclose(wave, expected.wave[0], atol=1e-4)


def test_streamed_speech(server: Running) -> None:
    options: dict[str, Any] = {"model": NAME, "voice": "alloy", "input": "a red apple"}
    limits = {"seed": 2, "max_new_tokens": 150, "min_new_tokens": 150}
    speech = server.openai().audio.speech
    with speech.with_streaming_response.create(**options, response_format="pcm", extra_body=limits) as response:
        pieces = list(response.iter_bytes())
    assert len(pieces) > 1 and response.headers["content-type"] == "audio/pcm"
    with speech.with_streaming_response.create(
        **options, response_format="wav", stream_format="audio", extra_body=limits
    ) as response:
        wave, rate_hz = samples(b"".join(response.iter_bytes()))
    assert sum(map(len, pieces)) / 2 / 24_000 == pytest.approx(len(wave) / rate_hz, abs=0.002)
    with speech.with_streaming_response.create(
        **options, response_format="pcm", stream_format="sse", extra_body=limits
    ) as response:
        lines = [line for line in response.iter_lines() if "speech.audio." in line]
    assert len(lines) > 2 and "speech.audio.done" in lines[-1]


def test_transcription(server: Running) -> None:
    create = server.openai().audio.transcriptions.create
    file = ("talk.wav", sound_file())
    whole = create(model=NAME, file=file)
    text = whole.text
    assert text and create(model=NAME, file=file, response_format="text").strip() == text
    events = list(create(model=NAME, file=file, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert "".join(deltas) == text and events[-1].type == "transcript.text.done" and events[-1].text == text
    assert whole.usage is not None and whole.usage.output_tokens > 0 and events[-1].usage.input_tokens > 0
    assert whole.usage.model_dump() == events[-1].usage.model_dump()


def test_music(server: Running, model: AnyGPT) -> None:
    answer = server.post("/v1/audio/music", model=NAME, prompt="slow piano", response_format="flac", seed=4)
    wave, rate_hz = samples(answer.content)
    expected = model.run("text|music|slow piano", seed=4).audio
    assert answer.headers["content-type"] == "audio/flac" and expected is not None
    np.testing.assert_allclose(wave, expected.wave[0], atol=1e-4)
    streamed = server.post("/v1/audio/music", prompt="slow piano", response_format="wav", stream_format="audio", seed=4)
    np.testing.assert_allclose(samples(streamed.content)[0], wave, atol=1e-3)
