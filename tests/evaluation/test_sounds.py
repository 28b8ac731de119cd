"""Time warping against the plain recursion, and what features do and don't depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anygpt.evaluation.sounds import (
    PER_SEMITONE,
    PITCH_LOW,
    RATE_HZ,
    VOICE_FEATURES,
    cepstra,
    log_pitch,
    voice_features,
    warped_distances,
    waveform,
)
from anygpt.media import Audio


def plain_distance(query: np.ndarray, candidate: np.ndarray) -> float:
    """The recursion as the paper writes it."""
    rows, columns = len(query), len(candidate)
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            cost = float(np.linalg.norm(query[i] - candidate[j]))
            total[i + 1, j + 1] = min(total[i, j] + 2 * cost, total[i, j + 1] + cost, total[i + 1, j] + cost)
    return float(total[rows, columns]) / (rows + columns)


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 1000))
def test_warping_is_the_plain_recursion(rows: int, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((rows, 3)).astype(np.float32)
    candidates = [rng.standard_normal((length, 3)).astype(np.float32) for length in lengths]
    expected = [plain_distance(query, candidate) for candidate in candidates]
    assert warped_distances(query, candidates) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_slower_copy_is_closest() -> None:
    rng = np.random.default_rng(0)
    said = rng.standard_normal((40, 12)).astype(np.float32)
    others = [rng.standard_normal((length, 12)).astype(np.float32) for length in (30, 40, 60)]
    assert warped_distances(said, [*others, said.repeat(2, axis=0)]).argmin() == 3


def chirp(seconds: float = 1.0, pitch_hz: float = 120.0) -> np.ndarray:
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    wave = sum(np.sin(2 * np.pi * pitch_hz * k * time_s + 3 * np.sin(5 * time_s)) / k for k in range(1, 20))
    return (0.1 * wave * (1.2 + np.sin(9 * time_s))).astype(np.float32)


def test_loudness_rate_and_channels_decide_nothing() -> None:
    wave = chirp()
    plain = waveform(Audio(wave[None], RATE_HZ))
    assert torch.allclose(plain, waveform(Audio(0.2 * wave[None].repeat(2, 0), RATE_HZ)), atol=1e-5)
    assert len(waveform(Audio(wave[None], 2 * RATE_HZ))) == len(wave) // 2


@pytest.mark.parametrize("samples", [0, 1, 500, 4000])
def test_the_shortest_sounds_have_features(samples: int) -> None:
    wave = waveform(Audio(chirp()[None, :samples], RATE_HZ))
    assert voice_features(wave).shape == (VOICE_FEATURES,) and voice_features(wave).isfinite().all()
    assert np.isfinite(cepstra(wave)).all() and len(cepstra(wave)) > 0
    assert voice_features(torch.zeros(4000)).isfinite().all()


def test_the_fundamental_is_found() -> None:
    for pitch_hz in (80.0, 150.0, 300.0):
        median = float(voice_features(waveform(Audio(chirp(pitch_hz=pitch_hz)[None], RATE_HZ)))[-2].exp())
        assert median == pytest.approx(pitch_hz, rel=0.15)


def test_pitches_have_their_bins() -> None:
    time_s = torch.arange(RATE_HZ) / RATE_HZ
    for midi in (60, 69, 81):
        tone = torch.sin(2 * torch.pi * 440 * 2 ** ((midi - 69) / 12) * time_s)
        assert int(log_pitch(tone[None]).mean(1).argmax()) == (midi - PITCH_LOW) * PER_SEMITONE
