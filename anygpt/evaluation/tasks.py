"""The tasks: which held-out cases, what is judged, and how well it should go.

A task has up to three columns: the judge on real media, on what the tokenizer makes of them, and on the model's
answers. Each column turns a case into scores by measure; each row of the report is one measure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from anygpt.evaluation.bench import Bench, Case, Question, captioned
from anygpt.evaluation.effects import effect_caption_scores, effect_cases, effect_scores
from anygpt.evaluation.judges import music_attributes
from anygpt.evaluation.metrics import Scores, compare, word_errors
from anygpt.evaluation.sounds import cepstra, warped_distances, waveform
from anygpt.evaluation.videos import video_caption_scores, video_cases, video_scores
from anygpt.media import Audio
from anygpt.world import images, music, speech
from anygpt.world.sentences import normalise

REAL, REBUILT, MODEL = "real", "reconstruction", "model"
COLUMNS = (REAL, REBUILT, MODEL)

Cases = Callable[[int], Case]
"""Gives a case by its number."""
Get = Callable[[Bench, Case], Any]
Ask = Callable[[Bench, Case], Sequence[Question]]
Score = Callable[[Bench, Case, Any], Scores]
Together = Callable[[Sequence[Case], Sequence[Sequence[str | Path]]], list[Scores]]


@runtime_checkable
class PublicCases(Protocol):
    """The cases of a published set."""

    fingerprint: str

    def __len__(self) -> int: ...

    def __call__(self, index: int, /) -> Case: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of a task."""

    measure: str
    title: str
    target: float | None = None
    kind: Literal["at least", "at most", "share of real", "neither"] = "at least"
    """What `target` asks of the model's rate (of the reconstructions' where the task has no model column), and without
    one, which way is better, if any."""
    parts: tuple[str, ...] = ()
    """Measures whose rates are added up to this one."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """How a case becomes something (`get`, or the model's answers to what `ask` says) that is scored."""

    get: Get | None = None
    ask: Ask | None = None
    """Instead of `get`: questions to the model, which are answered in batches. One answer is scored as it is, several
    as a list."""
    score: Score
    """Of None where getting it failed."""
    together: Together | None = None
    """Further scores, of all cases at once, from what `get` or the model gave."""
    asks: bool = False
    """Whether the model takes part."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One line of questions to a model."""

    name: str
    title: str
    modalities: tuple[str, ...]
    """Those whose tokenizers the scores depend on."""
    judges: tuple[str, ...] = ()
    """Names of the judges whose files the scores depend on."""
    talks: bool = False
    """Whether the model is asked in a conversation."""
    cases: Callable[[Bench], Cases]
    columns: Mapping[str, Column]
    rows: tuple[Row, ...]
    is_public: bool = False
    """Whether the cases are `PublicCases`, the same for every seed."""
    scorers: tuple[str, ...] = ()
    """Kinds of scorer that it needs (`anygpt.evaluation.scorers`)."""
    about: str = ""
    """Where its figures differ from others of this name."""


# ---- cases ----


def image_cases(bench: Bench) -> Cases:
    """Held-out pictures with canonical captions."""
    world = images.ImageWorld("heldout", seed=bench.world_seed)
    return captioned(
        bench,
        world,
        media=lambda sample: Image.fromarray(sample.pixels),
        truth=lambda sample: images.attributes(sample.scene),
    )


def music_cases(bench: Bench) -> Cases:
    """Clips of held-out combinations with canonical captions."""
    world = music.MusicWorld("heldout", seed=bench.world_seed)
    return captioned(
        bench,
        world,
        media=lambda sample: Audio(sample.wave[None], music.RATE_HZ),
        truth=lambda sample: music_attributes(sample.attributes),
    )


def speech_cases(split: str) -> Callable[[Bench], Cases]:
    """Unseen sentences in seen or unseen voices."""

    def of(bench: Bench) -> Cases:
        world = speech.SpeechWorld(split, seed=bench.world_seed)

        def case(index: int) -> Case:
            sample = world.sample(index)
            return Case(index=index, seed=bench.case_seed(index), media=_audio(sample), text=sample.text)

        return case

    return of


VOICES = 12
"""Voices of which a sound is to be closest to the prompt's."""


def voice_cases(split: str) -> Callable[[Bench], Cases]:
    """Unseen sentences with a voice prompt that says something else; `others`: `VOICES` recordings of a third sentence,
    the first in the prompt's voice, the rest in others, those of the same split before any."""

    def of(bench: Bench) -> Cases:
        world = speech.SpeechWorld(split, seed=bench.world_seed)

        def case(index: int) -> Case:
            rng = np.random.default_rng([bench.world_seed, index])
            voice, other = (str(name) for name in rng.choice(world.voices, 2, replace=False))
            rest = dict.fromkeys((*rng.permutation(world.voices), *rng.permutation(list(speech.VOICES))))
            further = [str(name) for name in rest if name not in (voice, other)][: VOICES - 2]
            sentences = [world.sentence(3 * index + i) for i in range(3)]
            said, prompt, again = (_audio(world.render(sentence, voice)) for sentence in sentences)
            return Case(
                index=index,
                seed=bench.case_seed(index),
                media=said,
                text=sentences[0],
                settings={"voice": prompt},
                others=(again, *(_audio(world.render(sentences[2], name)) for name in (other, *further))),
            )

        return case

    return of


def _audio(sample: speech.SpeechSample) -> Audio:
    return Audio(sample.wave[None], speech.RATE_HZ)


# ---- scores ----

SCENE = ("first", "second", "place", "background")
IMAGE_MEASURES: dict[str, Sequence[str]] = {
    "scene": SCENE,
    "all": (*SCENE, "first_size", "second_size"),
    "objects": ("first", "second"),
    "place": ("place",),
    "background": ("background",),
    "sizes": ("first_size", "second_size"),
}
"""Measure -> attributes that must all be right. A place is a single object's, or the relation of two."""
MUSIC_MEASURES: dict[str, Sequence[str]] = {
    "all": ("instrument", "tempo", "mode", "drums"),
    **{name: (name,) for name in ("instrument", "tempo", "mode", "drums")},
}


def image_scores(bench: Bench, case: Case, picture: Image.Image | None) -> Scores:
    """What the judge sees in a picture, against the case's scene."""
    read = None if picture is None else bench.image_judge.read([picture])[0]
    return compare(read, case.truth, IMAGE_MEASURES)


def image_caption_scores(bench: Bench, case: Case, text: str | None) -> Scores:
    """What a caption says; `B right of A` is `A left of B`."""
    scene = images.parse_caption(text or "")
    return compare(None if scene is None else images.attributes(scene), case.truth, IMAGE_MEASURES)


def music_scores(bench: Bench, case: Case, clip: Audio | None) -> Scores:
    """What the judge hears in a clip, against the case's attributes."""
    read = None if clip is None else bench.music_judge.read([clip])[0]
    return compare(read, case.truth, MUSIC_MEASURES)


def music_caption_scores(bench: Bench, case: Case, text: str | None) -> Scores:
    """What a caption says."""
    found = music.parse_caption(text or "")
    return compare(None if found is None else music_attributes(found), case.truth, MUSIC_MEASURES)


def word_scores(bench: Bench, case: Case, text: str | None) -> Scores:
    """Word errors of a transcript."""
    errors, words = word_errors(normalise(text or ""), normalise(case.text))
    return {"wer": (errors, words), "sentence": (float(errors == 0), 1.0)}


def transcript_scores(bench: Bench, case: Case, heard: tuple[Audio, str] | None) -> Scores:
    """Word errors of what the recogniser understood."""
    return word_scores(bench, case, heard[1] if heard else None)


def heard_scores(bench: Bench, case: Case, heard: tuple[Audio, str] | None) -> Scores:
    """Word errors of what the recogniser understood, and whether the sound is closest to the right sentence."""
    return transcript_scores(bench, case, heard) | retrieval_scores(bench, case, heard[0] if heard else None)


SENTENCES = 100
REFERENCE_VOICES = ("ivan", "irene")
"""A man and a woman who read the sentences that a sound is compared with; training has neither."""


def retrieval_scores(bench: Bench, case: Case, audio: Audio | None) -> Scores:
    """Whether, of `SENTENCES` held-out sentences read by espeak-ng, the right one aligns best with the sound."""
    if audio is None:
        return {"retrieval": (0.0, 1.0)}
    if "references" not in bench.cache:
        bench.cache["references"] = dict(_references(bench))
    wanted = normalise(case.text)
    distractors = [read for sentence, read in bench.cache["references"].items() if sentence != wanted]
    candidates = [_read_aloud(case.text), *distractors[: SENTENCES - 1]]
    distances = warped_distances(cepstra(waveform(audio)), [one for read in candidates for one in read])
    nearest = distances.reshape(len(candidates), len(REFERENCE_VOICES)).min(1)
    return {"retrieval": (float(nearest.argmin() == 0), 1.0)}


def _read_aloud(text: str) -> list[np.ndarray]:
    """Cepstra of a sentence in each of `REFERENCE_VOICES`."""
    return [cepstra(waveform(_audio(speech.render(text, voice)))) for voice in REFERENCE_VOICES]


def _references(bench: Bench) -> Iterator[tuple[str, list[np.ndarray]]]:
    """`SENTENCES` different sentences, normalised, with their readings."""
    world = speech.SpeechWorld("heldout_sentences", seed=bench.world_seed + 1)
    seen: set[str] = set()
    index = 0
    while len(seen) < SENTENCES:
        text = world.sentence(index)
        index += 1
        if normalise(text) not in seen:
            seen.add(normalise(text))
            yield normalise(text), _read_aloud(text)


def voice_scores(bench: Bench, case: Case, audio: Audio | None) -> Scores:
    """Whether a sound is closer to the prompt's voice than to another one, and than to all others."""
    if audio is None:
        return {"among": (0.0, 1.0), "closer": (0.0, 1.0)}
    place, same, *others = bench.voice_judge.places([audio, *case.others])
    distance = (place - same).norm()
    is_closer = [bool(distance < (place - other).norm()) for other in others]
    return {"among": (float(all(is_closer)), 1.0), "closer": (float(is_closer[0]), 1.0)}


# ---- columns ----


def shown(bench: Bench, case: Case) -> Any:
    """The real media."""
    return case.media


def rebuilt(modality: str) -> Get:
    """What the tokenizer makes of the real media."""
    return lambda bench, case: bench.rebuild(modality, case.media, case)


def told(modality: str, get: Get = shown) -> Ask:
    """What is in the media?"""

    def ask(bench: Bench, case: Case) -> list[Question]:
        return [Question(source=modality, target="text", content=partial(get, bench, case), seed=case.seed)]

    return ask


def made(modality: str) -> Ask:
    """Media of the text."""

    def ask(bench: Bench, case: Case) -> list[Question]:
        return [Question(source="text", target=modality, content=case.text, seed=case.seed, settings=case.settings)]

    return ask


def spoken(bench: Bench, case: Case) -> Any:
    """The model's reading of the text."""
    return bench.make("speech", case)


def heard(get: Get) -> Get:
    """A sound together with what the model's own recogniser understands."""

    def both(bench: Bench, case: Case) -> tuple[Audio, str]:
        audio = get(bench, case)
        return audio, bench.tell("speech", case, audio)

    return both


# ---- the table ----

_JUDGED: dict[str, tuple[Callable[[Bench], Cases], Score, str]] = {
    "image": (image_cases, image_scores, "image"),
    "music": (music_cases, music_scores, "music"),
    "audio": (effect_cases, effect_scores, "audio"),
    "video": (video_cases, video_scores, "image"),
}
"""Modality -> its cases, what the judge finds, and the judge."""
_IMAGE_ROWS = (
    Row(measure="objects", title="object(s)"),
    Row(measure="place", title="place or relation"),
    Row(measure="background", title="background"),
    Row(measure="sizes", title="size(s)"),
)
_SCENE_TITLE = "object(s), relation, background all right"


def _music_rows(target: float) -> tuple[Row, ...]:
    names = ("instrument", "tempo", "mode", "drums")
    return (*(Row(measure=name, title=name, target=target) for name in names), Row(measure="all", title="all four"))


def _effect_rows(target: float) -> tuple[Row, ...]:
    return (
        Row(measure="effects", title="effect(s)", target=target),
        Row(measure="manner", title="how often or how fast"),
        Row(measure="distance", title="near or far"),
        Row(measure="all", title="every attribute right"),
    )


def _video_rows(target: float) -> tuple[Row, ...]:
    return (
        Row(measure="event", title="event", target=target),
        Row(measure="objects", title="object(s)"),
        Row(measure="background", title="background"),
        Row(measure="all", title="every attribute right"),
    )


def _columns(modality: str, score: Score, ask: Ask | None, model_score: Score | None = None) -> dict[str, Column]:
    """Real media, reconstructions and, with `ask`, the model's answers; `model_score` where these are words."""
    columns = {REAL: Column(get=shown, score=score), REBUILT: Column(get=rebuilt(modality), score=score)}
    if ask is not None:
        columns[MODEL] = Column(ask=ask, score=model_score or score, asks=True)
    return columns


def _judged(
    name: str,
    title: str,
    modality: str,
    rows: tuple[Row, ...],
    ask: Ask | None = None,
    model_score: Score | None = None,
) -> Task:
    """A task about what the modality's judge reads; see `_columns`."""
    cases, score, judge = _JUDGED[modality]
    return Task(
        name=name,
        title=title,
        modalities=(modality,),
        judges=(judge,),
        cases=cases,
        columns=_columns(modality, score, ask, model_score),
        rows=rows,
    )


def _speech_to_text(name: str, title: str, split: str, target: float) -> Task:
    return Task(
        name=name,
        title=title,
        modalities=("speech",),
        cases=speech_cases(split),
        columns={
            REBUILT: Column(ask=told("speech", rebuilt("speech")), score=word_scores, asks=True),
            MODEL: Column(ask=told("speech"), score=word_scores, asks=True),
        },
        rows=(
            Row(measure="wer", title="word error rate", target=target, kind="at most"),
            Row(measure="sentence", title="sentences without an error"),
        ),
    )


def _voice(name: str, title: str, split: str) -> Task:
    return Task(
        name=name,
        title=title,
        modalities=("speech",),
        judges=("voice",),
        cases=voice_cases(split),
        columns=_columns("speech", voice_scores, made("speech")),
        rows=(
            Row(measure="closer", title="closer to the prompt's voice than to another", target=0.80),
            Row(measure="among", title=f"the prompt's voice among {VOICES}", target=0.80),
        ),
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _judged(
            "image-tokenizer",
            "image tokenizer",
            "image",
            (Row(measure="scene", title=_SCENE_TITLE, target=0.90, kind="share of real"), *_IMAGE_ROWS),
        ),
        _judged(
            "image-to-text",
            "image to text",
            "image",
            (Row(measure="all", title="every attribute right", target=0.75), *_IMAGE_ROWS),
            told("image"),
            image_caption_scores,
        ),
        _judged(
            "text-to-image",
            "text to image",
            "image",
            (Row(measure="scene", title=_SCENE_TITLE, target=0.60), *_IMAGE_ROWS),
            made("image"),
        ),
        _speech_to_text("speech-to-text-seen", "speech to text, seen voices", "heldout_sentences", 0.05),
        _speech_to_text("speech-to-text-unseen", "speech to text, unseen voices", "heldout_voices", 0.08),
        Task(
            name="text-to-speech",
            title="text to speech",
            modalities=("speech",),
            cases=speech_cases("heldout_sentences"),
            columns={
                column: Column(get=heard(get), score=heard_scores, asks=True)
                for column, get in ((REAL, shown), (REBUILT, rebuilt("speech")), (MODEL, spoken))
            },
            rows=(
                Row(measure="wer", title="word error rate of our recogniser", target=0.15, kind="at most"),
                Row(measure="retrieval", title=f"right sentence among {SENTENCES} by alignment", target=0.95),
            ),
        ),
        _voice("voice-seen", "text to speech with voice prompt, seen voices", "heldout_sentences"),
        _voice("voice-unseen", "text to speech with voice prompt, unseen voices", "heldout_voices"),
        _judged("music-to-text", "music to text", "music", _music_rows(0.80), told("music"), music_caption_scores),
        _judged("text-to-music", "text to music", "music", _music_rows(0.70), made("music")),
        _judged("audio-to-text", "sound to text", "audio", _effect_rows(0.85), told("audio"), effect_caption_scores),
        _judged("text-to-audio", "text to sound", "audio", _effect_rows(0.70), made("audio")),
        _judged("video-to-text", "video to text", "video", _video_rows(0.75), told("video"), video_caption_scores),
        _judged("text-to-video", "text to video", "video", _video_rows(0.60), made("video")),
    )
}
"""The tasks of base models by name, in the order of the report; those of chat models are in `chat`."""
