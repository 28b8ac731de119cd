"""The music world composes, plays, captions and splits as it says. Skipped with the reason without FluidSynth."""

import random

import numpy as np
import pytest

from anygpt.errors import AnyGPTError
from anygpt.world import fluidsynth, music
from anygpt.world.music import MusicAttributes, MusicWorld, caption, caption_variant, combinations, parse_caption


@pytest.fixture(scope="module")
def world() -> MusicWorld:
    try:
        return MusicWorld("train", seed=3)
    except AnyGPTError as error:
        pytest.skip(str(error))


def test_a_missing_soundfont_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fluidsynth, "_FOLDERS", ())
    with pytest.raises(AnyGPTError, match="apt-get install timgm6mb-soundfont"):
        fluidsynth.find_soundfont("TimGM6mb")
    with pytest.raises(AnyGPTError, match="no such file"):
        fluidsynth.find_soundfont("missing.sf2")
    with pytest.raises(AnyGPTError, match="unknown soundfont"):
        fluidsynth.find_soundfont("Tim")


def test_captions_read_back_and_differ() -> None:
    rows = combinations()
    assert [parse_caption(caption(row)) for row in rows] == rows
    assert len({caption(row) for row in rows}) == len(rows) == 160
    first = MusicAttributes(instrument="piano", tempo="fast", mode="major", drums=True)
    assert caption(first) == "a fast happy piano piece in a major key with drums"
    assert parse_caption("A fast  piano piece in a major key with drums.") == first
    assert parse_caption("a fast kazoo piece in a major key with drums") is None


def test_variants_never_say_something_else() -> None:
    rng = random.Random(0)
    for row in combinations():
        for _ in range(5):
            words = caption_variant(row, rng)
            others = [name for name in music.INSTRUMENTS if name != row.instrument]
            assert not any(name in words for name in others), words
            assert ("minor" if row.mode == "major" else "major") not in words
            assert not ("with drums" in words and not row.drums) and not ("without" in words and row.drums)


def test_held_out_combinations_are_spread_and_never_in_training(world: MusicWorld) -> None:
    held_out = [row for row in combinations() if row.is_held_out]
    assert 0.1 < len(held_out) / len(combinations()) < 0.15
    assert {row.instrument for row in held_out} == set(music.INSTRUMENTS)
    assert {row.tempo for row in held_out} == set(music.BEAT_FRAMES)
    other = MusicWorld("heldout", seed=3)
    assert not any(world.attributes(i).is_held_out for i in range(300))
    assert all(other.attributes(i).is_held_out for i in range(100))


def test_a_sample_depends_on_its_index_alone(world: MusicWorld) -> None:
    first = world.sample(5)
    world.sample(6)
    again = MusicWorld("train", seed=3).sample(5)
    assert first.caption == again.caption and first.attributes == again.attributes
    np.testing.assert_array_equal(first.wave, again.wave)


@pytest.mark.parametrize("instrument", music.INSTRUMENTS)
def test_every_instrument_is_heard_throughout(world: MusicWorld, instrument: str) -> None:
    row = MusicAttributes(instrument=instrument, tempo="medium", mode="minor", drums=False)
    wave = music.render(row, random.Random(0))
    assert wave.dtype == np.float32 and wave.shape == (48_000,)
    assert np.abs(wave).max() == pytest.approx(music.PEAK, abs=1e-4)
    assert np.sqrt((wave.reshape(6, -1) ** 2).mean(axis=1)).min() > 0.005


@pytest.mark.parametrize("tempo", music.BEAT_FRAMES)
def test_beats_follow_the_tempo(world: MusicWorld, tempo: str) -> None:
    row = MusicAttributes(instrument="piano", tempo=tempo, mode="major", drums=True)
    wave = music.render(row, random.Random(1))
    energy = (wave.reshape(-1, 160) ** 2).mean(axis=1)
    onsets = np.maximum(np.diff(np.log(energy + 1e-4)), 0)
    onsets -= onsets.mean()
    correlation = np.correlate(onsets, onsets, "full")[len(onsets) - 1 :]
    strength = {name: correlation[2 * frames - 1 : 2 * frames + 2].max() for name, frames in music.BEAT_FRAMES.items()}
    assert max(strength, key=lambda name: strength[name]) == tempo


def test_chords_are_of_the_mode() -> None:
    for mode, third in (("major", 4), ("minor", 3)):
        for seed in range(10):
            row = MusicAttributes(instrument="organ", tempo="fast", mode=mode, drums=False)
            notes = [note for note in music.compose(row, random.Random(seed)) if note.channel == 1]
            chords = [[note.pitch for note in notes[i : i + 3]] for i in range(0, len(notes), 3)]
            assert all(chord[1] - chord[0] == third and chord[2] - chord[0] == 7 for chord in chords)


def test_drums_are_there_when_asked_for(world: MusicWorld) -> None:
    for drums in (False, True):
        row = MusicAttributes(instrument="choir", tempo="fast", mode="major", drums=drums)
        channels = {note.channel for note in music.compose(row, random.Random(0))}
        assert (fluidsynth.DRUM_CHANNEL in channels) is drums


def test_unknown_split_is_named() -> None:
    with pytest.raises(AnyGPTError, match="unknown split 'test'"):
        MusicWorld("test")
