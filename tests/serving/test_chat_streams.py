"""Stop sequences and streamed sound, piece by piece against all at once."""

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from anygpt.media import Audio
from anygpt.serving.chat import StopFilter
from anygpt.serving.media import PCM_RATE_HZ, SoundEncoder, encode_sound
from anygpt.serving.streams import merged

WORDS = st.text("ab", max_size=6)


@given(pieces=st.lists(WORDS, max_size=8), stops=st.lists(WORDS, max_size=3))
def test_text_ends_where_a_stop_begins(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    places = [text.find(stop) for stop in stops if stop and stop in text]
    stopping = StopFilter(stops)
    said = "".join(map(stopping.push, pieces))
    assert text.startswith(said)
    said += stopping.flush()
    assert stopping.is_stopped == bool(places)
    # A stop that is complete first ends the text, even where a longer one began before it.
    assert said == text if not places else text[len(said) :].startswith(tuple(stop for stop in stops if stop))


@pytest.mark.parametrize("ending", ["whole", "error", "left"])
def test_sources_are_merged_and_all_closed(ending: str) -> None:
    closed: list[int] = []

    async def count(number: int) -> AsyncGenerator[tuple[int, int], None]:
        try:
            for step in range(number):
                await asyncio.sleep(0)
                yield number, step
            if ending == "error":
                raise ValueError("no more")
            await asyncio.sleep(0 if ending == "whole" else 60)
        finally:
            closed.append(number)

    async def collect() -> list[tuple[int, int]]:
        items: list[tuple[int, int]] = []
        with contextlib.suppress(ValueError):
            async with contextlib.aclosing(merged([count(3), count(1), count(2)])) as source:
                async for item in source:
                    items.append(item)
                    if ending == "left" and len(items) == 2:
                        break
        return items

    items = asyncio.run(asyncio.wait_for(collect(), 20))
    assert sorted(closed) == [1, 2, 3]
    expected = [(number, step) for number in (1, 2, 3) for step in range(number)]
    assert sorted(items) == expected if ending == "whole" else set(items) < set(expected)


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 32_000])
def test_streamed_sound_is_the_whole(rate_hz: int) -> None:
    time_s = np.arange(rate_hz) / rate_hz
    audio = Audio((0.4 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)[None], rate_hz)
    pieces = [Audio(audio.wave[:, at : at + 700], rate_hz) for at in range(0, rate_hz, 700)]
    for name in ("wav", "pcm"):
        encoder = SoundEncoder(name)
        joined = b"".join(map(encoder.push, pieces)) + encoder.finish()
        whole = encode_sound(audio, name)
        if name == "wav":
            streamed, rate = soundfile.read(io.BytesIO(joined), dtype="int16")
            assert rate == rate_hz
            np.testing.assert_array_equal(streamed, soundfile.read(io.BytesIO(whole), dtype="int16")[0])
        else:
            ours, theirs = (np.frombuffer(content, "<i2").astype(int) for content in (joined, whole))
            assert abs(len(ours) - PCM_RATE_HZ) <= 1 and len(ours) == len(theirs)
            np.testing.assert_allclose(ours, theirs, atol=40)
