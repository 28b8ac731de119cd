"""The music world: clips of three seconds, composed by rule and played by FluidSynth, with captions that say how.

A piece has an instrument, a tempo, a mode and drums or not; the key, the progression, the motif and its rhythm are
drawn freely. All of it is simple on purpose: a small language model must be able to learn it from codes.
"""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soxr

from anygpt.errors import AnyGPTError
from anygpt.world.fluidsynth import DRUM_CHANNEL, FluidSynth, Note
from anygpt.world.splits import stable_hash

RATE_HZ = 16_000
DURATION_S = 3.0
PEAK = 0.7
FADE_S = 0.03
SPLITS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """A General MIDI `program`; `octave` moves all its notes, to where it sounds like itself."""

    program: int
    octave: int = 0


INSTRUMENTS: dict[str, Instrument] = {
    "piano": Instrument(program=0),
    "guitar": Instrument(program=24, octave=-1),
    "violin": Instrument(program=40),
    "flute": Instrument(program=73, octave=1),
    "trumpet": Instrument(program=56),
    "organ": Instrument(program=19),
    "marimba": Instrument(program=12),
    "accordion": Instrument(program=21),
    "music box": Instrument(program=10, octave=1),
    "choir": Instrument(program=52),
}
BEAT_FRAMES = {"slow": 42, "medium": 30, "fast": 22, "very fast": 16}
"""Length of a beat in frames of 20 ms, those of the music tokenizer, so that equal beats get equal codes: 71, 100, 136
and 188 beats a minute."""
FRAME_S = 0.02
MOODS = {"major": "happy", "minor": "sad"}
KEYS = {"major": {"C": 60, "F": 65, "G": 67}, "minor": {"A": 57, "D": 62, "E": 64}}
"""Mode -> key -> MIDI pitch of its tonic."""
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_PROGRESSIONS = ((0, 3, 4, 0), (0, 4, 0, 3), (0, 3, 0, 4))
"""Steps of the scale on which the chords stand, two beats each. All are major in major and minor in minor."""
_MOTIFS = (
    (0, 2, 4, 2), (0, 2, 4, 7), (4, 2, 0, 2), (0, 1, 2, 4), (7, 4, 2, 0), (2, 4, 2, 0), (4, 4, 2, 2), (0, 4, 2, 4),
)  # fmt: skip
"""Steps above the chord's root, cycled by the notes of the melody."""
_RHYTHMS = (
    (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (2.0, 1.0, 1.0), (1.0, 0.5, 0.5, 1.0, 1.0), (1.0, 1.0, 0.5, 0.5, 1.0),
)  # fmt: skip
"""Beats of the melody's notes in a bar of four."""
_KICK, _SNARE, _HAT = 36, 38, 42


@dataclass(frozen=True, kw_only=True)
class MusicAttributes:
    """What a caption says of a clip, and the key, which captions leave out (None: any)."""

    instrument: str
    tempo: str
    mode: str
    drums: bool
    key: str | None = None

    @property
    def bpm(self) -> float:
        """Beats per minute."""
        return 60 / (BEAT_FRAMES[self.tempo] * FRAME_S)

    @property
    def is_held_out(self) -> bool:
        """True for the combinations of instrument, tempo, mode and drums that training never has."""
        return (self.tempo, self.mode, self.drums) in _held_out_of(self.instrument)


@lru_cache(maxsize=len(INSTRUMENTS))
def _held_out_of(instrument: str) -> frozenset[tuple[str, str, bool]]:
    """Two combinations (tempo, mode, drums) chosen by hash that differ in all three, the same number per instrument."""
    rows = sorted(
        itertools.product(BEAT_FRAMES, KEYS, (False, True)), key=lambda row: stable_hash(f"{instrument}|{row}", "music")
    )
    first = rows[0]
    second = next(row for row in rows if all(a != b for a, b in zip(row, first, strict=True)))
    return frozenset((first, second))


def facts(attributes: MusicAttributes) -> dict[str, str]:
    """What a listener can tell, by name: instrument, tempo, mode, drums ("with" or "without")."""
    return {
        "instrument": attributes.instrument,
        "tempo": attributes.tempo,
        "mode": attributes.mode,
        "drums": "with" if attributes.drums else "without",
    }


@dataclass(frozen=True, eq=False)
class MusicSample:
    """`wave` float32 [48000], mono at 16 kHz, peak 0.7; `caption` canonical."""

    wave: np.ndarray
    caption: str
    attributes: MusicAttributes

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.wave) / RATE_HZ


def combinations() -> list[MusicAttributes]:
    """All attributes that a caption can tell apart, held out or not, in a fixed order."""
    rows = itertools.product(INSTRUMENTS, BEAT_FRAMES, KEYS, (False, True))
    return [MusicAttributes(instrument=name, tempo=tempo, mode=mode, drums=drums) for name, tempo, mode, drums in rows]


def caption(attributes: MusicAttributes) -> str:
    """The canonical caption, such as `a fast happy piano piece in a major key with drums`."""
    ending = "with drums" if attributes.drums else "without drums"
    words = f"{attributes.tempo} {MOODS[attributes.mode]} {attributes.instrument}"
    return f"a {words} piece in a {attributes.mode} key {ending}"


_TEMPO_WORDS = {
    "slow": ("slow", "calm", "slowly played"), "medium": ("medium", "moderate"), "fast": ("fast", "quick", "lively"),
    "very fast": ("very fast", "very quick", "hectic"),
}  # fmt: skip
_MOOD_WORDS = {"major": ("happy", "cheerful", "bright", ""), "minor": ("sad", "dark", "gloomy", "")}
_PIECES = ("piece", "tune", "melody", "song")
_DRUM_WORDS = {True: ("with drums", "with a drum beat", "and drums", ""), False: ("without drums", "no drums", "", "")}
_OPENINGS = ("", "", "", "play ", "please play ", "i want to hear ", "make ")


def caption_variant(attributes: MusicAttributes, rng: random.Random) -> str:
    """A caption as a user might type it: other words for the same attributes, some of them left out."""
    tempo = rng.choice(_TEMPO_WORDS[attributes.tempo]) if rng.random() < 0.85 else ""
    mood = rng.choice(_MOOD_WORDS[attributes.mode])
    instrument = attributes.instrument if rng.random() < 0.9 else ""
    mode = f"in a {attributes.mode} key" if not mood or rng.random() < 0.4 else ""
    drums = rng.choice(_DRUM_WORDS[attributes.drums])
    words = [tempo, mood, instrument, rng.choice(_PIECES), mode, drums]
    text = " ".join(word for word in words if word)
    article = "an" if text[0] in "aeiou" else "a"
    return f"{rng.choice(_OPENINGS)}{article} {text}"


_CAPTION = re.compile(
    rf"an? ({'|'.join(sorted(BEAT_FRAMES, key=len, reverse=True))}) (?:(?:{'|'.join(MOODS.values())}) )?"
    rf"({'|'.join(INSTRUMENTS)}) piece in a ({'|'.join(KEYS)}) key (with|without) drums\.?"
)


def parse_caption(text: str) -> MusicAttributes | None:
    """Read a canonical caption back, case and a full stop aside; None when it is not one. The key is unknown."""
    match = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if not match:
        return None
    tempo, instrument, mode, drums = match.groups()
    return MusicAttributes(instrument=instrument, tempo=tempo, mode=mode, drums=drums == "with")


def caption_sentence(rng: random.Random) -> str:
    """The caption of a random piece, for the speech world to read aloud."""
    return caption(rng.choice(combinations()))


def compose(attributes: MusicAttributes, rng: random.Random) -> list[Note]:
    """The notes of one clip: a motif over chords, on a grid of beats that starts at 0. A key of None is drawn."""
    key = attributes.key or rng.choice(tuple(KEYS[attributes.mode]))
    tonic = KEYS[attributes.mode][key] + 12 * INSTRUMENTS[attributes.instrument].octave
    scale = _SCALES[attributes.mode]
    progression, motif, rhythm = rng.choice(_PROGRESSIONS), rng.choice(_MOTIFS), rng.choice(_RHYTHMS)
    beat_s = BEAT_FRAMES[attributes.tempo] * FRAME_S
    beats = int(np.ceil(DURATION_S / beat_s))

    def pitch(step: int) -> int:
        octave, degree = divmod(step, len(scale))
        return tonic + 12 * octave + scale[degree]

    def root(beat: float) -> int:
        return progression[int(beat // 2) % len(progression)]

    notes: list[Note] = []

    def play(beat: float, length: float, pitch: int, velocity: int, channel: int = 0) -> None:
        # A gap before the next note, so that repeated notes of sustained instruments are heard as such.
        end_s = (beat + length) * beat_s - min(0.06, 0.15 * length * beat_s)
        notes.append(Note(start_s=beat * beat_s, end_s=end_s, pitch=pitch, velocity=velocity, channel=channel))

    beat, index = 0.0, 0
    for length in itertools.cycle(rhythm):
        if beat >= beats:
            break
        play(beat, length, pitch(root(beat) + motif[index % len(motif)]), 110)
        beat, index = beat + length, index + 1
    for chord_beat in range(0, beats, 2):
        for step in (0, 2, 4):
            play(chord_beat, 2, pitch(root(chord_beat) + step) - 12, 70, 1)
    if attributes.drums:
        for drum_beat in range(beats):
            play(drum_beat, 0.5, _SNARE if drum_beat % 2 else _KICK, 100, DRUM_CHANNEL)
            play(drum_beat, 0.5, _HAT, 70, DRUM_CHANNEL)
    return notes


def render(attributes: MusicAttributes, rng: random.Random, *, soundfont: str = "TimGM6mb") -> np.ndarray:
    """Compose and play one clip: float32 [48000] at 16 kHz, peak 0.7, faded out at the end.

    Raises AnyGPTError where FluidSynth or the soundfont is not installed.
    """
    synth = FluidSynth.shared(soundfont)
    notes = compose(attributes, rng)
    wave = synth.render(notes, program=INSTRUMENTS[attributes.instrument].program, duration_s=DURATION_S)
    wave = soxr.resample(wave, synth.rate_hz, RATE_HZ)[: round(DURATION_S * RATE_HZ)]
    fade = round(FADE_S * RATE_HZ)
    wave[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    peak = float(np.abs(wave).max())
    assert peak > 0, attributes
    return wave * np.float32(PEAK / peak)


class MusicWorld:
    """An endless, indexable stream of clips: `sample(i)` depends on (seed, split, i) alone.

    `split` is "train" or "heldout"; a held-out combination (see `MusicAttributes.is_held_out`) never occurs in
    training. Raises AnyGPTError where FluidSynth or the soundfont is not installed.
    """

    def __init__(self, split: str = "train", seed: int = 0, *, soundfont: str = "TimGM6mb") -> None:
        if split not in SPLITS:
            raise AnyGPTError(f"music world: unknown split '{split}', expected one of {', '.join(SPLITS)}")
        self.split, self.seed, self.soundfont = split, seed, soundfont
        self.combinations = [row for row in combinations() if row.is_held_out == (split == "heldout")]
        FluidSynth.shared(soundfont)

    def attributes(self, index: int) -> MusicAttributes:
        """What sample `index` is, key included, without rendering it."""
        return self._draw(index)[0]

    def sample(self, index: int) -> MusicSample:
        """Clip `index`, freshly rendered."""
        attributes, rng = self._draw(index)
        return MusicSample(
            wave=render(attributes, rng, soundfont=self.soundfont), caption=caption(attributes), attributes=attributes
        )

    def __iter__(self) -> Iterator[MusicSample]:
        index = 0
        while True:
            yield self.sample(index)
            index += 1

    def _draw(self, index: int) -> tuple[MusicAttributes, random.Random]:
        rng = random.Random(f"music/{self.split}/{self.seed}/{index}")
        row = rng.choice(self.combinations)
        key = rng.choice(tuple(KEYS[row.mode]))
        return MusicAttributes(instrument=row.instrument, tempo=row.tempo, mode=row.mode, drums=row.drums, key=key), rng
