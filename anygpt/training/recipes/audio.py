"""What the recipes of the audio codecs share: spectral losses, a rolling pool of fresh sounds, measures, files.

Shape suffixes: B batch, L samples, T frames, F bins, M mel bands.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from anygpt.media import Audio, atomic_write, save_audio
from anygpt.tokenizers.spectral import mel_filters, power_spectra
from anygpt.training.recipes.backbones import CodecBackbone

T = TypeVar("T")

_POWER_FLOOR = 1e-7
"""Power below which spectra count as silent: 50 dB under a usual signal's mean, so that the losses ignore it."""


class RollingPool(Generic[T]):
    """The items `[step * fresh, step * fresh + size)` of an endless series: old ones leave as fresh ones come.

    What `at` gives depends on the step alone, so that a resumed run only has to make `size` items again.
    """

    def __init__(self, make: Callable[[int], T], *, size: int, fresh: int):
        self._make, self._size, self._fresh = make, size, fresh
        self._items: dict[int, T] = {}

    def at(self, step: int) -> list[T]:
        """The pool of `step`."""
        indices = range(step * self._fresh, step * self._fresh + self._size)
        self._items = {i: self._items[i] if i in self._items else self._make(i) for i in indices}
        return list(self._items.values())


def random_of(seed: int, step: int, purpose: int = 0) -> np.random.Generator:
    """A generator that depends on its arguments alone."""
    return np.random.default_rng([seed, step, purpose])


class _PowerSpectra(torch.autograd.Function):
    """Power of windowed frames, [B, L] -> [B, frames, bins]: several times faster backwards than `torch.stft`."""

    @staticmethod
    def forward(ctx: Any, wav_BL: Tensor, window: Tensor, hop: int) -> Tensor:
        size = len(window)
        spectrum = torch.fft.rfft(wav_BL.unfold(-1, size, hop) * window)
        parts = torch.view_as_real(spectrum)
        ctx.save_for_backward(spectrum, window)
        ctx.hop, ctx.samples = hop, wav_BL.shape[-1]
        return parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        spectrum, window = ctx.saved_tensors
        size, hop = len(window), ctx.hop
        # The adjoint of rfft is an inverse FFT that counts the inner bins, which stand for two, once.
        scale = torch.full((size // 2 + 1,), float(size), device=spectrum.device)
        scale[0] = scale[-1] = 2.0 * size
        frames = torch.fft.irfft(spectrum * (grads[0] * scale), size) * window
        batch, count, _ = frames.shape
        pieces = frames.view(batch, count, size // hop, hop)
        grad = frames.new_zeros(batch, count + size // hop - 1, hop)
        for i in range(size // hop):
            grad[:, i : i + count] += pieces[:, :, i]
        grad = grad.flatten(1)
        return F.pad(grad, (0, ctx.samples - grad.shape[1])), None, None


class SpectralLoss:
    """Distance of two signals by their magnitude spectra at several window lengths, each framed at half a window.

    For every window: the mean absolute difference of the logarithms of mel magnitudes and, at half weight, of plain
    magnitudes, plus the difference of the magnitudes relative to the target's mean. Source of the terms: Encodec
    (Défossez et al. 2022, section 3.4), Parallel WaveGAN (Yamamoto et al. 2020, section 2.2).
    """

    def __init__(self, windows: Sequence[int], *, sample_rate: int):
        self._scales = []
        for size in windows:
            window = torch.hann_window(size)
            mels = min(80, size // 8)
            self._scales.append((window / window.square().sum().sqrt(), mel_filters(mels, size, sample_rate)))

    def __call__(self, output_BL: Tensor, target_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its mel term alone, a mean over windows of natural-logarithm magnitudes."""
        total = mel_total = output_BL.new_zeros(())
        for scale in self._scales:
            window, filters = (tensor.to(output_BL.device) for tensor in scale)
            with torch.no_grad():
                target = self._views(target_BL, window, filters)
            output = self._views(output_BL, window, filters)
            log_output, magnitude, mel = output
            log_target, target_magnitude, target_mel = target
            mel_loss = F.l1_loss(mel, target_mel)
            linear = F.l1_loss(magnitude, target_magnitude) / (target_magnitude.mean() + 1e-4)
            total = total + mel_loss + 0.5 * F.l1_loss(log_output, log_target) + linear
            mel_total = mel_total + mel_loss.detach()
        return total / len(self._scales), mel_total / len(self._scales)

    @staticmethod
    def _views(wav_BL: Tensor, window: Tensor, filters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-magnitudes, magnitudes, log mel magnitudes."""
        power = _PowerSpectra.apply(wav_BL, window, len(window) // 2) + _POWER_FLOOR
        log_power = power.log()
        return 0.5 * log_power, (0.5 * log_power).exp(), 0.5 * (power @ filters).log()


def log_mel(wav_BL: Tensor, *, sample_rate: int, window: int = 1024, hop: int = 320, mels: int = 80) -> Tensor:
    """Natural logarithm of mel magnitudes, float32 [B, L / hop, mels]; L is cut to a multiple of `hop`."""
    wav_BL = wav_BL[:, : wav_BL.shape[1] // hop * hop]
    power = power_spectra(wav_BL, torch.hann_window(window), hop)
    return 0.5 * (power @ mel_filters(mels, window, sample_rate) + _POWER_FLOOR).log()


def intelligibility(clean_L: np.ndarray, heard_L: np.ndarray, *, sample_rate: int) -> float:
    """Short-time objective intelligibility of `heard_L`, about 0 to 1; both float [L].

    Source: Taal et al. 2011, section II, at the signals' own rate instead of 10 kHz and with silence dropped by frame.
    """
    length = min(len(clean_L), len(heard_L))
    window, hop, segment = 410 * sample_rate // 16_000, 205 * sample_rate // 16_000, 30
    spectra = []
    for wave in (clean_L, heard_L):
        frames = np.lib.stride_tricks.sliding_window_view(wave[:length], window)[::hop] * np.hanning(window)
        spectra.append(np.abs(np.fft.rfft(frames, 512 * sample_rate // 16_000)) ** 2)
    energy_db = 10 * np.log10(spectra[0].sum(1) + 1e-12)
    loud = energy_db > energy_db.max() - 40
    if loud.sum() < segment:
        return math.nan
    frequencies = np.fft.rfftfreq(512 * sample_rate // 16_000, 1 / sample_rate)
    centres = 150 * 2 ** (np.arange(15) / 3)
    bands = (frequencies >= centres[:, None] * 2 ** (-1 / 6)) & (frequencies < centres[:, None] * 2 ** (1 / 6))
    clean, heard = (np.sqrt(bands @ power[loud].T) for power in spectra)
    scores = []
    for start in range(clean.shape[1] - segment + 1):
        x, y = clean[:, start : start + segment], heard[:, start : start + segment]
        y = y * np.linalg.norm(x, axis=1, keepdims=True) / (np.linalg.norm(y, axis=1, keepdims=True) + 1e-12)
        y = np.minimum(y, x * (1 + 10 ** (15 / 20)))
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        scores.append(((x * y).sum(1) / (norms + 1e-12)).mean())
    return float(np.mean(scores))


def crop(x_L: Tensor, start: int, length: int) -> Tensor:
    """`length` values from `start` on, which may lie before the beginning; zero outside."""
    piece = x_L[max(0, start) : max(0, start + length)]
    before = max(0, -start)
    return F.pad(piece, (before, length - before - len(piece)))


def perplexity(codes: Tensor, codebook_size: int) -> float:
    """Exponential of the entropy of the codes' use."""
    share = torch.bincount(codes.flatten(), minlength=codebook_size).double() / max(1, codes.numel())
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    """Least number of insertions, deletions and substitutions between two sequences (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def encode(codec: CodecBackbone, wave_L: Tensor) -> Tensor:
    """Codes int64 [levels, frames] of one signal; both on the CPU."""
    return codec.encode(wave_L[None, None].to(codec.device))[:, 0].cpu()


def decode(codec: CodecBackbone, codes_KT: Tensor, samples: int) -> Tensor:
    """The first `samples` of the signal that codes of the first K levels give; both on the CPU."""
    return codec.decode(codes_KT[:, None].to(codec.device))[0, 0, :samples].cpu()


def reconstruction_quality(codec: CodecBackbone, waves: Sequence[Tensor], levels: Sequence[int]) -> dict[str, float]:
    """Mel distance (natural-logarithm magnitudes) and intelligibility of reconstructions, by number of levels."""
    numbers: dict[str, float] = {}
    codes = [encode(codec, wave) for wave in waves]
    for count in levels:
        mel, heard = [], []
        for wave, codes_KT in zip(waves, codes, strict=True):
            output = decode(codec, codes_KT[:count], len(wave))
            pair = log_mel(torch.stack([wave, output]), sample_rate=codec.sample_rate)
            mel.append(float(F.l1_loss(pair[0], pair[1])))
            heard.append(intelligibility(wave.numpy(), output.numpy(), sample_rate=codec.sample_rate))
        numbers[f"mel_{count}"] = float(np.mean(mel))
        numbers[f"stoi_{count}"] = float(np.nanmean(heard))
    return numbers


def write_sound_sheet(codec: CodecBackbone, waves: Sequence[Tensor], folder: Path, *, levels: Sequence[int]) -> None:
    """Write `<i>-original.wav`, `<i>-levels<n>.wav` and `spectrograms.png`: a row a sound, a column a version."""
    rows = []
    for i, wave in enumerate(waves):
        codes_KT = encode(codec, wave)
        versions = {"original": wave} | {f"levels{n}": decode(codec, codes_KT[:n], len(wave)) for n in levels}
        for name, version in versions.items():
            save_audio(folder / f"{i}-{name}.wav", Audio(version.clamp(-1, 1)[None].numpy(), codec.sample_rate))
        rows.append(list(versions.values()))
    shortest = min(len(wave) for wave in waves)
    image = np.concatenate([np.concatenate([_picture(w[:shortest], codec) for w in row], 1) for row in rows])
    with atomic_write(folder / "spectrograms.png") as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _picture(wave_L: Tensor, codec: CodecBackbone) -> np.ndarray:
    """Log-mel spectrogram, uint8 [height, width], low frequencies at the bottom, with a light border."""
    mel = log_mel(wave_L[None], sample_rate=codec.sample_rate, hop=160)[0].T.flip(0).repeat_interleave(2, 0)
    grey = ((mel + 8) / 8).clamp(0, 1) * 255
    return F.pad(grey, (2, 2, 2, 2), value=255).to(torch.uint8).numpy()


def export_codec(codec: CodecBackbone, folder: Path, fields: Mapping[str, Any]) -> None:
    """Write a tokenizer folder: the weights, and `config.json` with `fields` and the network's description."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**fields, **codec.save(folder)}
    with atomic_write(folder / "config.json") as temporary:
        Path(temporary).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
