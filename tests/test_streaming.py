"""Answers in parts: the parts are the answer, and sound begins before the last id."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_tiny import SPECS

from anygpt import AnyGPT
from anygpt.engine import Result
from anygpt.errors import AnyGPTError, ConfigError
from anygpt.generation.reading import TextPiece
from anygpt.media import Audio, save_audio
from anygpt.streaming import AudioChunk
from anygpt.tokenizers.streams import CodecStream

LONG: dict[str, dict[str, Any]] = {
    "music": {"max_new_tokens": 150, "min_new_tokens": 150},
    "speech": {"max_new_tokens": 110, "min_new_tokens": 110, "vc_steps": 2},
}


def parts(model: AnyGPT, prompt: str, **settings: Any) -> tuple[list[AudioChunk], list[str], Result]:
    *events, result = model.stream(prompt, seed=3, **settings)
    assert isinstance(result, Result)
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    texts = [event.text for event in events if isinstance(event, TextPiece)]
    assert len(chunks) + len(texts) == len(events)
    return chunks, texts, result


def test_music_is_that_of_run_in_chunks(model: AnyGPT) -> None:
    chunks, _, result = parts(model, "text|music|slow piano", **LONG["music"])
    whole = model.run("text|music|slow piano", seed=3, **LONG["music"])
    assert whole.audio is not None and whole.codes_KT is not None
    assert result.audio is not None and result.codes_KT is not None
    assert torch.equal(result.codes_KT, whole.codes_KT) and result.modality == "music"
    assert len(chunks) > 2
    wave = np.concatenate([chunk.audio.wave for chunk in chunks], axis=1)
    np.testing.assert_array_equal(wave, result.audio.wave)
    np.testing.assert_allclose(wave, whole.audio.wave, atol=1e-5)
    at = 0.0
    for chunk in chunks:
        assert chunk.modality == "music" and chunk.start_s == pytest.approx(at)
        at += chunk.audio.duration_s


@pytest.mark.parametrize("name", LONG)
def test_sound_begins_before_the_last_id(model: AnyGPT, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = 0
    push = CodecStream.push

    def counted(self: CodecStream, codes_KT: torch.Tensor) -> list[Audio]:
        nonlocal pushed
        pushed += codes_KT.shape[1]
        return push(self, codes_KT)

    monkeypatch.setattr(CodecStream, "push", counted)
    events = model.stream(f"text|{name}|hello", **LONG[name])
    assert isinstance(next(events), AudioChunk)
    assert 0 < pushed < LONG[name]["max_new_tokens"] // SPECS[name].num_codebooks
    assert isinstance(list(events)[-1], Result)


def test_speech_has_the_codes_of_run_and_their_length(model: AnyGPT, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 16_000)).astype(np.float32)
    voice = save_audio(tmp_path / "voice.wav", Audio(noise, 16_000))
    chunks, _, result = parts(model, f"text|speech|hello|{voice}", **LONG["speech"])
    whole = model.run(f"text|speech|hello|{voice}", seed=3, **LONG["speech"])
    assert result.codes_KT is not None and whole.codes_KT is not None and whole.audio is not None
    assert torch.equal(result.codes_KT, whole.codes_KT)
    assert sum(chunk.audio.samples for chunk in chunks) == whole.audio.samples


def test_text_comes_in_pieces(model: AnyGPT, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, (1, 16_000)).astype(np.float32)
    path = save_audio(tmp_path / "question.wav", Audio(noise, 16_000))
    chunks, texts, result = parts(model, f"speech|text|{path}")
    assert chunks == [] and "".join(texts) == result.text
    assert result.text == model.run(f"speech|text|{path}", seed=3).text


def test_a_picture_comes_as_the_result(model: AnyGPT) -> None:
    chunks, texts, result = parts(model, "text|image|a red apple")
    assert chunks == [] and texts == []
    whole = model.run("text|image|a red apple", seed=3)
    assert result.image is not None and whole.image is not None
    assert result.image.tobytes() == whole.image.tobytes()


def test_errors_come_at_once(model: AnyGPT) -> None:
    with pytest.raises(AnyGPTError, match="unknown form"):
        model.stream("text|smell|roses")
    with pytest.raises(AnyGPTError, match="temprature"):
        model.stream("text|music|slow piano", temprature=0.5)
    with pytest.raises(ConfigError, match="temperature"):
        model.stream("text|music|slow piano", temperature=-1)


@pytest.mark.parametrize("name", ["image", *LONG])
def test_a_guided_answer_is_that_of_run(model: AnyGPT, name: str) -> None:
    """A second preparation of prompts once left guidance out."""
    settings = {**LONG.get(name, {}), "guidance_scale": 4.0}
    prompt = f"text|{name}|a red apple"
    codes_KT = [
        parts(model, prompt, **settings)[2].codes_KT,
        model.run(prompt, seed=3, **settings).codes_KT,
        model.run(prompt, seed=3, **{**settings, "guidance_scale": 1.0}).codes_KT,
    ]
    streamed, whole, unguided = (each for each in codes_KT if each is not None)
    assert torch.equal(streamed, whole) and not torch.equal(whole, unguided)
