"""The speech world renders, labels and splits as it says. Needs espeak-ng; skipped with that reason without it."""

import numpy as np
import pytest

from anygpt.errors import AnyGPTError
from anygpt.world import espeak, speech
from anygpt.world.sentences import is_held_out
from anygpt.world.speech import PHONEMES, RATE_HZ, SpeechWorld, frame_labels


@pytest.fixture(scope="module")
def world() -> SpeechWorld:
    try:
        return SpeechWorld("train", seed=3)
    except AnyGPTError as error:
        pytest.skip(str(error))


def test_a_missing_library_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "_LIBRARIES", ("no-such-library.so",))
    with pytest.raises(AnyGPTError, match="apt-get install espeak-ng"):
        espeak.Espeak()


def test_a_sample_depends_on_its_index_alone(world: SpeechWorld) -> None:
    first = world.sample(5)
    # Right after itself, after the same voice and after another: the synthesizer must not remember.
    for before in (None, "adam", first.voice, "hanna"):
        if before:
            world.render("what is it?", before)
        again = SpeechWorld("train", seed=3).sample(5)
        assert first.text == again.text and first.phones == again.phones
        np.testing.assert_array_equal(first.wave, again.wave)
    assert SpeechWorld("train", seed=4).sentence(5) != first.text


@pytest.mark.parametrize("voice", speech.VOICES)
def test_every_voice_is_heard(world: SpeechWorld, voice: str) -> None:
    sample = world.render("the small dog is waiting", voice)
    assert sample.wave.dtype == np.float32 and sample.wave.ndim == 1
    assert np.abs(sample.wave).max() == pytest.approx(speech.PEAK, abs=1e-3)
    assert 1.0 < sample.duration < 2.5
    audible = np.flatnonzero(np.abs(sample.wave) > 0.01)
    assert audible[0] / RATE_HZ < 0.08 and (len(sample.wave) - audible[-1]) / RATE_HZ < 0.08


def test_labels_follow_the_phonemes(world: SpeechWorld) -> None:
    sample = world.render("see the moon", "adam")
    labels = frame_labels(sample)
    assert labels.dtype == np.int64 and len(labels) == -(-len(sample.wave) // 320)
    spoken = [PHONEMES[label] for label, before in zip(labels, [-1, *labels], strict=False) if label != before]
    assert spoken == ["sil", "s", "i:", "D", "@", "m", "u:", "n", "sil"]
    # The hiss of an s lies above 4 kHz, a vowel's energy below: labels and sound are in step.
    spectra = np.abs(np.fft.rfft(sample.wave[: len(labels) * 320 // 320 * 320 - 320].reshape(-1, 320))) ** 2
    high = spectra[:, 80:].sum(1) / (spectra.sum(1) + 1e-9)
    labels = labels[: len(high)]
    assert high[labels == PHONEMES.index("s")].mean() > 0.5 > 0.1 > high[labels == PHONEMES.index("u:")].mean()


def test_phoneme_classes_are_few_and_cover_unknown_names() -> None:
    assert len(PHONEMES) <= 60 and len(set(PHONEMES)) == len(PHONEMES) and PHONEMES[0] == speech.SILENCE
    assert all(speech.phoneme_class(name) in PHONEMES for name in ("I#", "_:", "x^", "??", "t#", "n-"))


def test_splits_share_neither_sentences_nor_voices(world: SpeechWorld) -> None:
    sentences = SpeechWorld("heldout_sentences", seed=3)
    voices = SpeechWorld("heldout_voices", seed=3)
    assert not any(is_held_out(world.sentence(i)) for i in range(200))
    assert all(is_held_out(other.sentence(i)) for other in (sentences, voices) for i in range(50))
    assert set(world.voices) == set(sentences.voices) and len(world.voices) >= 12
    assert not set(world.voices) & set(voices.voices)
    assert {speech.VOICES[name].gender for name in voices.voices} == {"male", "female"}


def test_captions_are_read_too(world: SpeechWorld) -> None:
    captions = sum("background" in world.sentence(i) or " piece " in world.sentence(i) for i in range(300))
    assert 40 < captions < 140


def test_mistakes_are_named(world: SpeechWorld) -> None:
    with pytest.raises(AnyGPTError, match="did you mean 'adam'"):
        world.render("hello", "adan")
    with pytest.raises(AnyGPTError, match="unknown split"):
        SpeechWorld("test")
    with pytest.raises(AnyGPTError, match="no word"):
        world.render(" ", "adam")
