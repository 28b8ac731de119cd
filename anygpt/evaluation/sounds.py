"""What judges hear: spectra of recordings at 16 kHz, and the distance of two utterances under time warping.

Shape suffixes: B batch, L samples, T frames, F features.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from anygpt.media import Audio
from anygpt.tokenizers.spectral import mel_filters, power_spectra

RATE_HZ = 16_000
_POWER_FLOOR = 1e-7
"""Power of what counts as silence, -70 dB of full scale."""
_LEVEL = 0.05
"""Root mean square that waveforms are brought to, so that loudness decides nothing."""


def waveform(audio: Audio, *, min_samples: int = RATE_HZ // 5) -> Tensor:
    """The mean of the channels at 16 kHz and at a fixed loudness, float32 [L], padded to `min_samples`."""
    wave = audio.mono().resample(RATE_HZ).wave[0]
    level = float(np.sqrt(np.mean(np.square(wave)))) if len(wave) else 0.0
    wave = wave * np.float32(_LEVEL / max(level, 1e-5))
    return torch.from_numpy(np.pad(wave, (0, max(0, min_samples - len(wave)))))


@lru_cache(maxsize=8)
def _filters(mels: int, window: int) -> Tensor:
    return mel_filters(mels, window, RATE_HZ)


def log_mel(wav_BL: Tensor, *, mels: int, window: int, hop: int) -> Tensor:
    """Natural logarithm of mel powers, float32 [B, L / hop, mels]; L is cut to a multiple of `hop`."""
    wav_BL = wav_BL[:, : wav_BL.shape[1] // hop * hop]
    power = power_spectra(wav_BL, torch.hann_window(window, device=wav_BL.device), hop)
    return (power @ _filters(mels, window).to(wav_BL.device) + _POWER_FLOOR).log()


PITCH_LOW, PITCH_HIGH, PER_SEMITONE = 36, 98, 2
PITCH_BINS = (PITCH_HIGH - PITCH_LOW) * PER_SEMITONE
_PITCH_WINDOW, _PITCH_HOP = 4096, 1280


@lru_cache(maxsize=1)
def _pitch_filters() -> Tensor:
    """Triangles around MIDI pitches `PITCH_LOW` and up, float32 [window // 2 + 1, PITCH_BINS], of unit sum."""
    edges = PITCH_LOW + (np.arange(PITCH_BINS + 2) - 1) / PER_SEMITONE
    edges_bin = 440.0 * 2 ** ((edges - 69) / 12) * _PITCH_WINDOW / RATE_HZ
    bins = np.arange(_PITCH_WINDOW // 2 + 1)[:, None]
    left, centre, right = edges_bin[:-2], edges_bin[1:-1], edges_bin[2:]
    # Low filters are narrower than a bin: at least one bin each side, so that none is empty.
    rising = (bins - centre) / np.maximum(centre - left, 1) + 1
    falling = (centre - bins) / np.maximum(right - centre, 1) + 1
    weights = np.clip(np.minimum(rising, falling), 0, None)
    return torch.from_numpy((weights / weights.sum(0)).astype(np.float32))


def log_pitch(wav_BL: Tensor) -> Tensor:
    """Natural logarithm of the power at every quarter tone, float32 [B, L / 1280, PITCH_BINS]."""
    wav_BL = wav_BL[:, : wav_BL.shape[1] // _PITCH_HOP * _PITCH_HOP]
    power = power_spectra(wav_BL, torch.hann_window(_PITCH_WINDOW, device=wav_BL.device), _PITCH_HOP)
    return (power @ _pitch_filters().to(wav_BL.device) + _POWER_FLOOR).log()


VOICE_MELS = 40
VOICE_FEATURES = 2 * VOICE_MELS + 2
_VOICE_WINDOW, _VOICE_HOP = 1024, 160
_LOUD = 2.5
"""Frames whose power is within this many natural units of the utterance's loud frames tell of its voice."""
_PITCH_RANGE_HZ = (55, 420)


def voice_features(wave_L: Tensor) -> Tensor:
    """What an utterance tells of its voice, whatever it says: float32 [VOICE_FEATURES].

    Mean and spread of the log-mel spectrum over its loud frames, and median and spread of the fundamental's logarithm.
    """
    wave_L = wave_L[: len(wave_L) // _VOICE_HOP * _VOICE_HOP]
    power = power_spectra(wave_L[None], torch.hann_window(_VOICE_WINDOW), _VOICE_HOP)[0]
    loudness = power.sum(-1).clamp(min=_POWER_FLOOR).log()
    is_loud = loudness >= loudness.quantile(0.9) - _LOUD
    mel = (power[is_loud] @ _filters(VOICE_MELS, _VOICE_WINDOW) + _POWER_FLOOR).log()
    # The inverse transform of a frame's power is its correlation with itself at every lag.
    repeats = torch.fft.irfft(power[is_loud])
    first, last = (round(RATE_HZ / limit) for limit in reversed(_PITCH_RANGE_HZ))
    # The window fades long lags. Half of that is taken back: low voices are found, and of the multiples of a period
    # the first.
    window = torch.fft.irfft(torch.fft.rfft(torch.hann_window(_VOICE_WINDOW)).abs().square())
    fading = (window / window[0])[first : last + 1].sqrt()
    repeats = repeats[:, first : last + 1] / (repeats[:, :1].clamp(min=1e-9) * fading)
    strength, lag = repeats.max(-1)
    voiced = strength >= strength.quantile(0.3)
    pitch = (RATE_HZ / (lag[voiced] + first).float()).log()
    quartiles = pitch.quantile(torch.tensor([0.25, 0.5, 0.75]))
    spread = quartiles[2] - quartiles[0]
    return torch.cat([mel.mean(0), mel.std(0, correction=0), quartiles[1:2], spread[None]])


def cepstra(wave_L: Tensor) -> np.ndarray:
    """Cepstra 1 to 12 of an utterance, float32 [T, 12] at 25 frames a second, less their mean.

    The mean holds much of the voice and the channel; without it, two voices that say the same look more alike.
    """
    mel = log_mel(wave_L[None], mels=40, window=1024, hop=320)[0].numpy()
    mel = mel[: len(mel) // 2 * 2].reshape(-1, 2, mel.shape[1]).mean(1)
    found = dct(mel, norm="ortho")[:, 1:13].astype(np.float32)
    return found - found.mean(0)


def warped_distances(query_TF: np.ndarray, candidates: list[np.ndarray]) -> np.ndarray:
    """Distance of one utterance to each candidate under the best time warping, float32 [N]; all `cepstra`.

    Dynamic time warping with symmetric steps (Sakoe and Chiba 1978, section II: a diagonal step counts twice), divided
    by the sum of both lengths. All candidates go along together, one anti-diagonal of the table at a time.
    """
    count, rows = len(candidates), len(query_TF)
    lengths = np.array([len(candidate) for candidate in candidates])
    columns = int(lengths.max())
    padded = np.zeros((count, columns, query_TF.shape[1]), np.float32)
    for i, candidate in enumerate(candidates):
        padded[i, : len(candidate)] = candidate
    products = padded @ query_TF.T
    squares = np.square(padded).sum(-1)[:, :, None] + np.square(query_TF).sum(-1)[None, None]
    cost = np.sqrt(np.clip(squares - 2 * products, 0, None)).transpose(0, 2, 1)
    before = np.full((count, rows), np.inf, np.float32)
    last = before.copy()
    totals = np.empty(count, np.float32)
    for step in range(rows + columns - 1):
        at = np.arange(max(0, step - columns + 1), min(step, rows - 1) + 1)
        here = cost[:, at, step - at]
        stepped = np.minimum(last[:, at], np.where(at > 0, last[:, at - 1], np.inf)) + here
        diagonal = np.where(at > 0, before[:, at - 1], np.inf) + 2 * here
        current = np.full((count, rows), np.inf, np.float32)
        current[:, at] = np.minimum(stepped, diagonal)
        if step == 0:
            current[:, 0] = 2 * cost[:, 0, 0]
        ended = lengths == step - rows + 2
        totals[ended] = current[ended, rows - 1]
        before, last = last, current
    return totals / (rows + lengths)
