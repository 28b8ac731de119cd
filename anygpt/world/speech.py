"""The speech world: espeak-ng reads the grammar's sentences and the captions aloud in twenty voices of our own.

A voice is an espeak voice file made here: accent, pitch, formants (the vocal tract's size and shape), spectral tilt,
breath, and a few speeds of its own. Sixteen voices train, four (two men, two women) never do.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import soxr

from anygpt.errors import AnyGPTError, nearest
from anygpt.world import images, music
from anygpt.world.espeak import Espeak
from anygpt.world.sentences import is_held_out, random_sentence

RATE_HZ = 16_000
PEAK = 0.7
MARGIN_S = 0.04
"""Silence left before and after the words."""
CAPTION_SHARE = 0.3
SPLITS = ("train", "heldout_sentences", "heldout_voices")

CAPTION_SOURCES: tuple[Callable[[random.Random], str], ...] = (images.caption_sentence, music.caption_sentence)
"""What else is read aloud, besides sentences of the grammar."""

_ACCENTS = {
    # The lines of espeak-ng's own voice files en-us and en, whose path depends on the version.
    "us": "language en-us\ndictionary en\nphonemes en-us\ndictrules 3 6\nstressLength 140 120 190 170 0 0 255 300\n"
    "stressAmp 17 16 19 19 19 19 21 19\nreplace 03 I i\nreplace 03 I2 i\n",
    "gb": "language en-gb\ndictionary en\nphonemes en\ntunes s1 c1 q1 e1\n",
}


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One speaker. Formants are in percent of espeak's standard man; `pitch` is espeak's base and range in Hz."""

    name: str
    gender: str
    accent: str
    pitch: tuple[int, int]
    formants: tuple[int, int, int, int, int]
    """Frequency of formants 1 to 5; the higher ones follow the fifth."""
    heights: tuple[int, int, int, int, int] = (100, 100, 100, 100, 100)
    widths: int = 100
    """Bandwidth of all formants: wide sounds soft, narrow sounds buzzing."""
    speeds_wpm: tuple[int, ...] = (160, 170)
    extra: str = ""
    """More lines of the voice file, such as `tone`, `voicing` or `breath`."""

    def definition(self) -> str:
        """The contents of the espeak voice file. Flutter is off: it would make a sound depend on those before it."""
        lines = [f"name {self.name}", f"gender {self.gender}", "flutter 0", "roughness 0"]
        lines.append(f"pitch {self.pitch[0]} {self.pitch[1]}")
        for number, (frequency, height) in enumerate(zip(self.formants, self.heights, strict=True), start=1):
            lines.append(f"formant {number} {frequency} {height} {self.widths}")
        for number in (6, 7, 8):
            lines.append(f"formant {number} {self.formants[-1]} {self.heights[-1]} {self.widths}")
        return _ACCENTS[self.accent] + "\n".join(lines) + f"\n{self.extra}\n"


_DARK = "tone 600 170 1200 100 2500 50"
_BRIGHT = "tone 600 120 1500 160 3500 190"
_BREATH = "breath 0 2 3 3 3 3 3 2"

TRAIN_VOICES = (
    Voice(name="adam", gender="male", accent="us", pitch=(82, 118), formants=(100, 100, 100, 100, 100)),
    Voice(name="bruno", gender="male", accent="us", pitch=(62, 92), formants=(90, 92, 90, 90, 90),
          speeds_wpm=(150, 160), extra=_DARK),
    Voice(name="colin", gender="male", accent="gb", pitch=(95, 140), formants=(97, 106, 104, 104, 104),
          speeds_wpm=(170, 180)),
    Voice(name="dylan", gender="male", accent="us", pitch=(110, 165), formants=(106, 104, 108, 108, 108),
          speeds_wpm=(175, 185), extra=_BRIGHT),
    Voice(name="edgar", gender="male", accent="gb", pitch=(72, 108), formants=(94, 88, 96, 100, 100),
          heights=(100, 80, 120, 120, 120), widths=140, speeds_wpm=(150, 155)),
    Voice(name="felix", gender="male", accent="us", pitch=(125, 175), formants=(102, 98, 102, 104, 104),
          heights=(110, 120, 80, 60, 50), speeds_wpm=(165, 175)),
    Voice(name="gordon", gender="male", accent="us", pitch=(76, 100), formants=(96, 110, 95, 92, 92),
          heights=(120, 90, 60, 60, 60), widths=80, speeds_wpm=(155, 165), extra="voicing 140"),
    Voice(name="hugo", gender="male", accent="gb", pitch=(100, 135), formants=(92, 96, 100, 96, 96), widths=120,
          speeds_wpm=(160, 170), extra=_BREATH),
    Voice(name="amy", gender="female", accent="us", pitch=(165, 235), formants=(112, 112, 112, 115, 115), widths=130,
          speeds_wpm=(165, 175)),
    Voice(name="bella", gender="female", accent="gb", pitch=(185, 270), formants=(116, 118, 118, 118, 118), widths=120,
          speeds_wpm=(170, 180), extra=_BRIGHT),
    Voice(name="clara", gender="female", accent="us", pitch=(145, 200), formants=(108, 105, 108, 110, 110), widths=150,
          speeds_wpm=(150, 160), extra=_DARK),
    Voice(name="dora", gender="female", accent="gb", pitch=(205, 285), formants=(120, 112, 122, 120, 120),
          heights=(90, 120, 120, 90, 80), speeds_wpm=(160, 170)),
    Voice(name="elsa", gender="female", accent="us", pitch=(220, 330), formants=(124, 124, 124, 124, 124),
          heights=(100, 90, 80, 70, 70), widths=120, speeds_wpm=(175, 185)),
    Voice(name="flora", gender="female", accent="us", pitch=(175, 225), formants=(110, 120, 112, 108, 108), widths=140,
          speeds_wpm=(155, 165), extra=_BREATH),
    Voice(name="greta", gender="female", accent="gb", pitch=(155, 240), formants=(114, 108, 104, 112, 112),
          heights=(120, 100, 80, 100, 120), widths=90, speeds_wpm=(165, 175)),
    Voice(name="hanna", gender="female", accent="us", pitch=(250, 350), formants=(128, 130, 126, 124, 124), widths=130,
          speeds_wpm=(160, 170), extra=_DARK),
)  # fmt: skip
HELD_OUT_VOICES = (
    Voice(name="ivan", gender="male", accent="us", pitch=(88, 128), formants=(94, 98, 104, 106, 106),
          heights=(110, 90, 100, 110, 110), widths=115, speeds_wpm=(160, 170)),
    Voice(name="jasper", gender="male", accent="gb", pitch=(114, 155), formants=(103, 101, 98, 100, 100), widths=110,
          speeds_wpm=(165, 175), extra="tone 600 150 1200 130 2500 80"),
    Voice(name="irene", gender="female", accent="us", pitch=(195, 265), formants=(114, 116, 110, 114, 114), widths=120,
          speeds_wpm=(160, 170)),
    Voice(name="julia", gender="female", accent="gb", pitch=(168, 245), formants=(118, 110, 114, 116, 116), widths=140,
          speeds_wpm=(165, 175), extra=_BREATH),
)  # fmt: skip
VOICES: dict[str, Voice] = {voice.name: voice for voice in TRAIN_VOICES + HELD_OUT_VOICES}

SILENCE = "sil"
PHONEMES: tuple[str, ...] = (
    SILENCE, "p", "b", "t", "d", "k", "g", "tS", "dZ", "f", "v", "T", "D", "s", "z", "S", "Z", "h", "m", "n", "N", "l",
    "r", "w", "j", "a", "aa", "A:", "A@", "E", "e@", "I", "i:", "i@", "0", "O:", "O2", "O@", "U", "u:", "U@", "V", "3",
    "3:", "@", "@L", "aI", "aI@", "aU", "eI", "oU", "OI",
)  # fmt: skip
"""Classes of `frame_labels`: espeak's names with the variants that sound alike put together."""
_VARIANTS = {
    "_": SILENCE, "_:": SILENCE, "?": SILENCE, "t#": "t", "t2": "t", "r-": "r", "n-": "n", ";": "j", "@2": "@",
    "@-": "@", "a#": "@", "I2": "I", "I#": "I", "i": "i:", "i@3": "i@", "aI3": "aI@", "o@": "O@",
}  # fmt: skip
_CLASSES = {name: index for index, name in enumerate(PHONEMES)}


@dataclass(frozen=True, eq=False)
class SpeechSample:
    """`wave` float32 [samples], mono at 16 kHz, peak 0.7; `phones`: names of `PHONEMES` with their start in seconds."""

    wave: np.ndarray
    text: str
    voice: str
    phones: tuple[tuple[str, float], ...]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.wave) / RATE_HZ


def phoneme_class(name: str) -> str:
    """The entry of `PHONEMES` for one of espeak's names; rare foreign sounds count as the nearest, or as a schwa."""
    name = _VARIANTS.get(name, name)
    while name and name not in _CLASSES:
        name = name[:-1]
    return name or "@"


def frame_labels(sample: SpeechSample, frame_rate_hz: float = 50.0) -> np.ndarray:
    """The phoneme sounding in the middle of each frame: int64 [frames], indices into `PHONEMES`.

    Frames are counted as a codec counts them: the last one may be cut short by the end of the sound.
    """
    frames = int(np.ceil(len(sample.wave) * frame_rate_hz / RATE_HZ - 1e-9))
    starts = np.array([start for _, start in sample.phones])
    classes = np.array([0] + [_CLASSES[name] for name, _ in sample.phones], np.int64)
    middles = (np.arange(frames) + 0.5) / frame_rate_hz
    return classes[np.searchsorted(starts, middles, side="right")]


def render(text: str, voice_name: str, *, speed_wpm: int | None = None) -> SpeechSample:
    """Read `text` aloud; the speed defaults to the voice's first. Raises AnyGPTError for a voice that is not there,
    for a text without a sound, and where espeak-ng is not installed."""
    if voice_name not in VOICES:
        raise AnyGPTError(f"unknown voice '{voice_name}'{nearest(voice_name, VOICES)}; known: {', '.join(VOICES)}")
    voice = VOICES[voice_name]
    utterance = Espeak.shared().speak(text, voice=voice.definition(), speed_wpm=speed_wpm or voice.speeds_wpm[0])
    loud = np.abs(utterance.wave.astype(np.int32))
    peak = int(loud.max(initial=0))
    if peak < 100:
        raise AnyGPTError(f"text to speak: {text!r:.60} has no word in it; give some")
    audible = np.flatnonzero(loud > peak // 100)
    first, last = int(audible[0]), int(audible[-1]) + 1
    margin = round(MARGIN_S * utterance.rate_hz)
    trimmed = np.pad(utterance.wave[first:last].astype(np.float32), margin)
    wave = soxr.resample(trimmed, utterance.rate_hz, RATE_HZ)
    wave *= PEAK / np.abs(wave).max()
    end = (last - first + margin) / utterance.rate_hz
    phones = [(SILENCE, 0.0)]
    for name, position in utterance.phonemes:
        # What espeak counts to a sound before it can be heard belongs to the margin.
        start = max(position - first, 0) + margin
        phones.append((phoneme_class(name), min(start / utterance.rate_hz, end)))
    phones.append((SILENCE, end))
    return SpeechSample(wave=wave, text=text, voice=voice_name, phones=tuple(phones))


class SpeechWorld:
    """An endless, indexable stream of utterances: `sample(i)` depends on (seed, split, i) alone.

    `split`: "train"; "heldout_sentences", unseen sentences in the training voices; "heldout_voices", unseen sentences
    in unseen voices. Raises AnyGPTError where espeak-ng is not installed.
    """

    def __init__(self, split: str = "train", seed: int = 0) -> None:
        if split not in SPLITS:
            raise AnyGPTError(f"speech world: unknown split '{split}', expected one of {', '.join(SPLITS)}")
        self.split, self.seed = split, seed
        Espeak.shared()

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices of this split."""
        return tuple(voice.name for voice in (HELD_OUT_VOICES if self.split == "heldout_voices" else TRAIN_VOICES))

    def sentence(self, index: int) -> str:
        """The text of sample `index`, without rendering it."""
        return self._draw(index)[0]

    def sample(self, index: int) -> SpeechSample:
        """Utterance `index`, freshly rendered."""
        text, voice, speed_wpm = self._draw(index)
        return render(text, voice, speed_wpm=speed_wpm)

    def render(self, text: str, voice_name: str) -> SpeechSample:
        """`text` in any of the voices, held out or not."""
        return render(text, voice_name)

    def __iter__(self) -> Iterator[SpeechSample]:
        index = 0
        while True:
            yield self.sample(index)
            index += 1

    def _draw(self, index: int) -> tuple[str, str, int]:
        """Text, voice and speed of sample `index`."""
        rng = random.Random(f"speech/{self.split}/{self.seed}/{index}")
        voice = VOICES[rng.choice(self.voices)]
        speed_wpm = rng.choice(voice.speeds_wpm)
        while True:
            source = rng.choice(CAPTION_SOURCES) if rng.random() < CAPTION_SHARE else random_sentence
            text = source(rng)
            if is_held_out(text) == (self.split != "train"):
                return text, voice.name, speed_wpm
