"""Streamed speech: what SoundStorm makes of segments doesn't depend on how the codes arrive."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anygpt.media import Audio
from anygpt.tokenizers.audio_codec import decode_wave
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.soundstorm import SoundStorm, SoundStormConfig
from anygpt.tokenizers.soundstorm.segments import SegmentStream
from anygpt.tokenizers.speechtokenizer.tokenizer import SpeechTokenizer

ENTRIES, LEVELS = 16, 2
SIZES = {"first_frames": 4, "segment_frames": 7, "past_frames": 5, "ahead_frames": 2}


@cache
def network(sampling: str) -> SoundStorm:
    torch.manual_seed(0)
    sizes = {"codebook_size": ENTRIES, "num_semantic_token_ids": ENTRIES, "semantic_pad_id": ENTRIES, "pad_id": ENTRIES}
    shape = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "num_quantizers": LEVELS, "sampling": sampling}
    return SoundStorm(SoundStormConfig(**sizes, **shape)).eval()  # type: ignore[arg-type]


def codes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(ENTRIES, shape, generator=torch.Generator().manual_seed(seed))


def segment_stream(sampling: str = "paper", voice: int = 5, **sizes: int) -> SegmentStream:
    voice_KP = codes(1 + LEVELS, voice, seed=1) if voice else None
    generator = torch.Generator().manual_seed(4)
    return SegmentStream(network(sampling), voice_KP, steps=2, generator=generator, **{**SIZES, **sizes})


@pytest.mark.parametrize("sampling", ["paper", "released"])
@settings(max_examples=15)
@given(frames=st.integers(1, 40), length=st.integers(1, 40), voice=st.sampled_from([0, 5]))
def test_all_levels_are_the_same_however_codes_arrive(sampling: str, frames: int, length: int, voice: int) -> None:
    semantic_T = codes(frames)
    at_once, pieces = segment_stream(sampling, voice), segment_stream(sampling, voice)
    expected_KT = torch.cat([at_once.push(semantic_T), at_once.finish()], dim=1)
    made = [pieces.push(part) for part in semantic_T.split(length)]
    assert torch.equal(torch.cat([*made, pieces.finish()], dim=1), expected_KT)
    assert expected_KT.shape == (1 + LEVELS, frames) and torch.equal(expected_KT[0], semantic_T)


@pytest.mark.parametrize("frames", [1, 6])
def test_a_span_within_the_first_segment_is_decoded_as_a_whole(frames: int) -> None:
    stream, semantic_T = segment_stream(), codes(frames)
    assert stream.push(semantic_T).shape[1] == 0
    prompt_BPK = codes(1 + LEVELS, 5, seed=1).t()[None]
    whole_BNK = network("paper").generate(semantic_T[None], prompt_BP8=prompt_BPK, steps=2)
    assert torch.equal(stream.finish(), whole_BNK[0].t())


def test_segments_come_as_soon_as_their_frames_are_known() -> None:
    stream = segment_stream()
    counts = [stream.push(codes(1)).shape[1] for _ in range(30)]
    assert {frame: count for frame, count in enumerate(counts, start=1) if count} == {7: 4, 14: 7, 21: 7, 28: 7}


@pytest.mark.parametrize("name", ["past_frames", "ahead_frames"])
def test_a_segment_knows_what_is_said_around_it(name: str) -> None:
    """The frame before a segment, or after it, has a part in its codes where it is within reach, and only there."""
    at = 3 if name == "past_frames" else 11
    semantic_T = codes(20)
    changed_T = semantic_T.clone()
    changed_T[at] = (changed_T[at] + 1) % ENTRIES

    def second(semantic_T: Tensor, reach: int) -> Tensor:
        stream = segment_stream(**{"past_frames": 0, "ahead_frames": 0, name: reach})
        return stream.push(semantic_T)[:, 4:11]

    assert torch.equal(second(semantic_T, 0), second(changed_T, 0))
    assert not torch.equal(second(semantic_T, 1), second(changed_T, 1))


def test_streamed_speech_is_the_decode_of_its_segments(tiny_home: Path) -> None:
    tokenizer: Any = load_tokenizer(tiny_home / "tokenizers" / "speech-tiny")
    assert isinstance(tokenizer, SpeechTokenizer) and tokenizer.soundstorm is not None
    voice = Audio(np.random.default_rng(0).normal(0, 0.1, (1, 16_000)).astype(np.float32), 16_000)
    semantic_1T = codes(1, 150)
    levels = SegmentStream(
        tokenizer.soundstorm, tokenizer.encode_voice(voice), steps=2, generator=torch.Generator().manual_seed(4)
    )
    all_KT = torch.cat([levels.push(semantic_1T[0]), levels.finish()], dim=1)
    expected = decode_wave(tokenizer.model, all_KT).wave
    for length in (1, 20, 150):
        decoder = tokenizer.stream(voice=voice, vc_steps=2, generator=torch.Generator().manual_seed(4))
        pieces = [audio for part in semantic_1T.split(length, dim=1) for audio in decoder.push(part)]
        assert pieces or length == 150
        wave = np.concatenate([audio.wave for audio in [*pieces, *decoder.finish()]], axis=1)
        np.testing.assert_allclose(wave, expected, atol=1e-5)


def test_unknown_settings_are_refused(tiny_home: Path) -> None:
    for name in ("speech-tiny", "music-tiny"):
        tokenizer: Any = load_tokenizer(tiny_home / "tokenizers" / name)
        with pytest.raises(TypeError, match="speed"):
            tokenizer.stream(speed=2)
