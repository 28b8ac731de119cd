"""Training of the judges (`anygpt.evaluation.judges`) on real renderings of the world's training split.

Pictures and clips are softened, blurred and made noisy at random, so that a judge recognises what is recognisable
rather than what is flawless. Every judge's scores on clean held-out media are kept with it.
"""

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.linalg import eigh
from torch import Tensor
from tqdm import tqdm

from anygpt.errors import AnyGPTError, nearest
from anygpt.evaluation.effect_judge import EffectJudge
from anygpt.evaluation.judges import (
    IMAGE_CLASSES,
    MUSIC_CLASSES,
    ImageJudge,
    Judge,
    MusicJudge,
    VoiceJudge,
    music_attributes,
)
from anygpt.evaluation.sounds import RATE_HZ, voice_features, waveform
from anygpt.media import Audio
from anygpt.world import effects, images
from anygpt.world.images import ImageWorld
from anygpt.world.music import MusicSample, MusicWorld
from anygpt.world.speech import SpeechSample, SpeechWorld

logger = logging.getLogger(__name__)

TEST_SEED = 77
"""Of the held-out media that a finished judge is tested on; the evaluation draws others."""
LR_PEAK = 3e-3

Facts = dict[str, str]
"""Attribute -> its value."""


def train_judges(folder: Path, names: Iterable[str] | None = None, *, seed: int = 0, force: bool = False) -> list[Path]:
    """Train the judges that `folder` lacks (with `force`, all that are named) and return their files.

    `names` are keys of `TRAINERS`, by default all. Raises AnyGPTError for another name, or where the packages that
    render the world are not installed.
    """
    wanted = list(TRAINERS if names is None else names)
    for name in wanted:
        if name not in TRAINERS:
            raise AnyGPTError(f"unknown judge '{name}'{nearest(name, TRAINERS)}; known: {', '.join(TRAINERS)}")
    paths = []
    for name in wanted:
        path = folder / f"{name}.safetensors"
        if force or not path.is_file():
            judge = TRAINERS[name](seed)
            path = judge.save(folder)
            logger.info("%s: on real held-out media %s", path, _shown(judge.scores))
        paths.append(path)
    return paths


def _shown(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.3f}" for name, share in scores.items())


def _learn(judge: Judge, loss_of: Callable[[int], Tensor], *, steps: int) -> None:
    """AdamW with a one-cycle learning rate; `loss_of` gives the loss of a step."""
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR_PEAK, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR_PEAK, total_steps=steps, pct_start=0.15)
    judge.train()
    with tqdm(total=steps, desc=f"{judge.name} judge", unit="step", mininterval=2) as bar:
        for step in range(steps):
            loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if bar.n % 25 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    judge.eval()


def _labels(rows: Iterable[Facts], classes: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Attribute -> class of each row, int64 [B]."""
    known = list(rows)
    return {name: torch.tensor([values.index(row[name]) for row in known]) for name, values in classes.items()}


def _cross_entropies(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Sum over attributes."""
    return torch.stack([F.cross_entropy(logits[name].float(), wanted) for name, wanted in labels.items()]).sum()


def _shares_right(read: list[Facts], truth: list[Facts]) -> dict[str, float]:
    """Share of cases where an attribute, and where every attribute, was read right."""
    shares = {name: float(np.mean([r[name] == t[name] for r, t in zip(read, truth, strict=True)])) for name in truth[0]}
    return {"all": float(np.mean([r == t for r, t in zip(read, truth, strict=True)])), **shares}


def _test(judge: Any, samples: Iterable[Any], media: Callable[[Any], Any], truth: Callable[[Any], Facts]) -> None:
    """Set a judge's scores by clean held-out samples."""
    tests = list(samples)
    judge.scores = _shares_right(judge.read([media(sample) for sample in tests]), [truth(each) for each in tests])


# ---- pictures ----


def train_image_judge(seed: int = 0, *, steps: int = 1600, batch_size: int = 64, test_images: int = 1000) -> ImageJudge:
    """About five minutes on one core: fresh pictures in every step."""
    torch.manual_seed(seed)
    judge = ImageJudge()
    world, rng = ImageWorld("train", seed=1000 + seed), np.random.default_rng(seed)

    def loss_of(step: int) -> Tensor:
        samples = [world.sample(step * batch_size + i) for i in range(batch_size)]
        pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2).float()
        labels = _labels((images.attributes(sample.scene) for sample in samples), IMAGE_CLASSES)
        # bfloat16 halves the time on processors that have it.
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(soften(pixels, rng).contiguous(memory_format=torch.channels_last))
        return _cross_entropies(logits, labels)

    _learn(judge, loss_of, steps=steps)
    heldout = map(ImageWorld("heldout", seed=TEST_SEED).sample, range(test_images))
    _test(judge, heldout, lambda sample: Image.fromarray(sample.pixels), lambda sample: images.attributes(sample.scene))
    return judge


def soften(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, S, S] in 0..255, moved by up to two pixels, and blurred, scaled down and up, noisy or off in
    colour, each part of the batch in its own way."""
    side = pixels.shape[-1]
    parts = []
    for part in pixels.split(8):
        x, y = rng.integers(0, 5, 2)
        part = F.pad(part, (2, 2, 2, 2), mode="replicate")[:, :, y : y + side, x : x + side]
        if rng.random() < 0.5:
            part = blur(part, float(rng.uniform(0.3, 1.8)))
        if rng.random() < 0.4:
            small = int(rng.integers(side // 2, side))
            part = F.interpolate(part, size=(small, small), mode="area")
            part = F.interpolate(part, size=(side, side), mode="bilinear", align_corners=False)
        parts.append(part)
    softened = torch.cat(parts)
    count = len(softened)
    noise = rng.uniform(0, 12, (count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < 0.5)
    shift = rng.normal(0, 5, (count, 3, 1, 1))
    softened += torch.from_numpy(noise).float() * torch.from_numpy(rng.standard_normal(softened.shape, np.float32))
    return (softened + torch.from_numpy(shift).float()).clamp(0, 255)


def blur(pixels: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of [B, C, S, S], edges repeated."""
    reach = int(np.ceil(2.5 * sigma_px))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma_px).square())
    kernel = kernel / kernel.sum()
    batch, channels, side, _ = pixels.shape
    planes = F.pad(pixels.reshape(batch * channels, 1, side, side), (reach,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return planes.view(batch, channels, side, side)


# ---- clips ----


def train_music_judge(
    seed: int = 0, *, clips: int = 5000, steps: int = 1200, batch_size: int = 64, test_clips: int = 400
) -> MusicJudge:
    """About three minutes on one core, most of it for rendering the clips."""
    torch.manual_seed(seed)
    judge = MusicJudge()
    rng = np.random.default_rng(seed)
    world = MusicWorld("train", seed=1000 + seed)

    def features(sample: MusicSample) -> tuple[Tensor, ...]:
        # 16-bit floats: thousands of clips have to fit into memory.
        found = judge.features(roughen(waveform(_clip(sample)), rng)[None])
        return tuple(feature[0].half() for feature in found)

    stacked, rows = _rendered(world, clips, features, lambda sample: music_attributes(sample.attributes))
    labels = _labels(rows, MUSIC_CLASSES)

    def loss_of(step: int) -> Tensor:
        picked = torch.from_numpy(rng.integers(clips, size=batch_size))
        mel, repeats, pitch = (column[picked].float() for column in stacked)
        # What a codec leaves of a spectrum is uneven.
        mel, pitch = (x + 0.4 * torch.rand(len(x), 1, 1) * torch.randn_like(x) for x in (mel, pitch))
        logits = judge.classify(mel, repeats + 0.02 * torch.randn_like(repeats), pitch)
        return _cross_entropies(logits, {name: column[picked] for name, column in labels.items()})

    _learn(judge, loss_of, steps=steps)
    heldout = map(MusicWorld("heldout", seed=TEST_SEED).sample, range(test_clips))
    _test(judge, heldout, _clip, lambda sample: music_attributes(sample.attributes))
    return judge


def train_effect_judge(
    seed: int = 0, *, clips: int = 6000, steps: int = 1000, batch_size: int = 64, test_clips: int = 1000
) -> EffectJudge:
    """About eighty seconds on one core, half of them for making the clips."""
    torch.manual_seed(seed)
    judge = EffectJudge()
    rng = np.random.default_rng(seed)
    world = effects.EffectWorld("train", seed=1000 + seed)

    def features(sample: effects.EffectSample) -> tuple[Tensor, ...]:
        wave = torch.from_numpy(sample.wave)
        mel_1TF, _ = judge.features(roughen(dull(wave, rng), rng)[None])
        return mel_1TF[0].half(), judge.features(wave[None])[1][0]

    (mels, peaks), rows = _rendered(world, clips, features, lambda sample: effects.facts(sample.attributes))
    labels = _labels(rows, judge.table)

    def loss_of(step: int) -> Tensor:
        picked = torch.from_numpy(rng.integers(clips, size=batch_size))
        # A little earlier or later, louder or softer, and as uneven as what a codec leaves of a spectrum.
        mel = mels[picked].float().roll(int(rng.integers(-3, 4)), 1)
        mel = mel + 0.5 * torch.randn(len(mel), 1, 1) + 0.6 * torch.rand(len(mel), 1, 1) * torch.randn_like(mel)
        logits = judge.classify(mel, peaks[picked] + 0.15 * torch.randn(len(mel)))
        return _cross_entropies(logits, {name: column[picked] for name, column in labels.items()})

    _learn(judge, loss_of, steps=steps)
    heldout = map(effects.EffectWorld("heldout", seed=TEST_SEED).sample, range(test_clips))
    _test(judge, heldout, _clip, lambda sample: effects.facts(sample.attributes))
    return judge


def _rendered(
    world: Any, clips: int, features: Callable[[Any], tuple[Tensor, ...]], truth: Callable[[Any], Facts]
) -> tuple[list[Tensor], list[Facts]]:
    """The first samples of a world: every feature of all of them, [clips, ...], and what is true of each."""
    columns: list[tuple[Tensor, ...]] = []
    rows: list[Facts] = []
    for index in tqdm(range(clips), desc="clips", unit="clip", mininterval=2):
        sample = world.sample(index)
        columns.append(features(sample))
        rows.append(truth(sample))
    return [torch.stack(column) for column in zip(*columns, strict=True)], rows


def dull(wave_L: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of all sounds, float32 [L], as they sound from afar: a sound is the same however near it is."""
    if rng.random() < 0.5:
        return wave_L
    hz = torch.fft.rfftfreq(len(wave_L), 1 / RATE_HZ)
    gain = 1 / (1 + (hz / float(rng.uniform(800, 4000))) ** 2)
    return torch.fft.irfft(torch.fft.rfft(wave_L) * gain, len(wave_L))


def roughen(wave_L: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of all sounds, float32 [L], noisy, tilted, and with their highest frequencies cut off."""
    if rng.random() < 0.5:
        return wave_L
    spectrum = torch.fft.rfft(wave_L)
    octaves = (torch.arange(len(spectrum)).clamp(min=1) / len(spectrum)).log2()
    gain = torch.exp2(float(rng.uniform(-0.4, 0.4)) * octaves / 2)
    cut = int(len(spectrum) * rng.uniform(0.45, 1.0))
    gain[cut:] *= 0.03
    wave_L = torch.fft.irfft(spectrum * gain, len(wave_L))
    noise = float(wave_L.square().mean().sqrt()) * 10 ** (-rng.uniform(20, 50) / 20)
    return wave_L + noise * torch.from_numpy(rng.standard_normal(len(wave_L), np.float32))


def _clip(sample: MusicSample | SpeechSample | effects.EffectSample) -> Audio:
    return Audio(sample.wave[None], RATE_HZ)


# ---- voices ----


def train_voice_judge(
    seed: int = 0, *, utterances: int = 1000, test_utterances: int = 300, ridge: float = 0.5
) -> VoiceJudge:
    """Seconds: linear discriminant analysis of the training voices.

    `ridge` is added to the spread within a voice, as a share of it, so that no direction counts only because real
    recordings hardly vary along it.
    """
    world = SpeechWorld("train", seed=1000 + seed)
    samples = [world.sample(i) for i in tqdm(range(utterances), desc="utterances", unit="utterance", mininterval=2)]
    features = np.stack([voice_features(waveform(_clip(sample))).double().numpy() for sample in samples])
    judge = VoiceJudge()
    projection = _discriminants(features, [sample.voice for sample in samples], ridge)[:, : judge.WIDTH]
    judge.get_buffer("mean").copy_(torch.from_numpy(features.mean(0)))
    judge.get_buffer("projection").copy_(torch.from_numpy(projection.copy()))
    judge.scores = {
        "seen voices": _pairs_right(judge, SpeechWorld("heldout_sentences", seed=TEST_SEED), test_utterances),
        "unseen voices": _pairs_right(judge, SpeechWorld("heldout_voices", seed=TEST_SEED), test_utterances),
    }
    return judge


def _discriminants(features: np.ndarray, voices: list[str], ridge: float) -> np.ndarray:
    """Directions, best first, in which voices differ most compared with the utterances of one voice: [F, F]."""
    centre = features.mean(0)
    within = np.zeros((features.shape[1],) * 2)
    between = np.zeros_like(within)
    for voice in sorted(set(voices)):
        of_voice = features[[name == voice for name in voices]]
        mean = of_voice.mean(0)
        within += (of_voice - mean).T @ (of_voice - mean) / len(features)
        between += len(of_voice) / len(features) * np.outer(mean - centre, mean - centre)
    within += ridge * np.diag(np.diag(within)) + 1e-6 * np.eye(len(within))
    return eigh(between, within)[1][:, ::-1]


def _pairs_right(judge: VoiceJudge, world: SpeechWorld, utterances: int) -> float:
    """How often an utterance is closer to another one of its voice than to one of another voice."""
    rng = random.Random(TEST_SEED)
    samples = [world.sample(i) for i in range(utterances)]
    places = judge.places([_clip(sample) for sample in samples])
    right, pairs = 0, 0
    for index, sample in enumerate(samples):
        same = [i for i, other in enumerate(samples) if other.voice == sample.voice and i != index]
        others = [i for i, other in enumerate(samples) if other.voice != sample.voice]
        if same and others:
            near, far = places[rng.choice(same)], places[rng.choice(others)]
            right += int((places[index] - near).norm() < (places[index] - far).norm())
            pairs += 1
    return right / max(1, pairs)


TRAINERS: dict[str, Callable[[int], Judge]] = {
    "image": train_image_judge,
    "music": train_music_judge,
    "voice": train_voice_judge,
    "audio": train_effect_judge,
}
"""Judge -> function of a seed that trains it."""
