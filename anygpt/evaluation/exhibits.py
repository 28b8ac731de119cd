"""Cases for showing: which ones, what was asked, what is right, what the model answered."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from anygpt.errors import AnyGPTError
from anygpt.evaluation.bench import Bench, Case
from anygpt.evaluation.chat import Question
from anygpt.evaluation.metrics import Scores
from anygpt.evaluation.run import Outcome
from anygpt.evaluation.tasks import MODEL, REBUILT, Task
from anygpt.media import Audio, kind_of_file, load_audio, load_image
from anygpt.synth.world import WorldMedia
from anygpt.video import Video, load_video

Content = str | Image.Image | Audio | Video
_LOADERS: Mapping[str, Callable[[Path | str], Content]] = {
    "image": load_image,
    "audio": load_audio,
    "video": load_video,
}
"""Kind of file -> how it is read."""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One case: labelled texts, pictures and sounds."""

    index: int
    value: float | None
    """See `value_of`."""
    asked: Sequence[tuple[str, Content]]
    """(label, part): the real media, the words, the conversation."""
    right: Sequence[Content]
    """What the model should have answered, as far as that is one thing."""
    rebuilt: Sequence[Content]
    """The real media after their tokenizer."""
    answer: Sequence[Content]
    has_answer: bool


def judged_column(task: Task, outcomes: dict[str, Outcome]) -> str | None:
    """The column that a task is about: the model's, else the reconstructions', else none."""
    return next((name for name in (MODEL, REBUILT) if name in task.columns and name in outcomes), None)


def value_of(task: Task, scores: Scores) -> float | None:
    """How good a case is: the mean of its measures, errors counted down from 1; None where no measure is about it."""
    values: list[float] = []
    for row in task.rows:
        pairs = [scores[name] for name in row.parts or (row.measure,) if name in scores and scores[name][1]]
        if pairs and row.kind != "neither":
            value = sum(counted / out_of for counted, out_of in pairs) / len(pairs)
            values.append(1 - value if row.kind == "at most" else value)
    return sum(values) / len(values) if values else None


def ranked(task: Task, scores: Sequence[Scores]) -> list[tuple[int, float]]:
    """(case, value), the worst first, of equal ones the first first."""
    values = [(index, value_of(task, each)) for index, each in enumerate(scores)]
    return sorted([(index, value) for index, value in values if value is not None], key=lambda pair: pair[1])


def exhibit(task: Task, bench: Bench, case: Case, outcome: Outcome, column: str) -> Exhibit:
    """All that is to be shown of a case whose outcome in `column` is known."""
    rebuilt = list(_rebuilt(task, bench, case))
    answer = rebuilt
    if column == MODEL:
        answer = [part if isinstance(part, str) else _load(part) for part in outcome.answers[case.index]]
    return Exhibit(
        index=case.index,
        value=value_of(task, outcome.scores[case.index]),
        asked=list(_asked(case)),
        right=list(_right(case)),
        rebuilt=rebuilt if column == MODEL else [],
        answer=answer,
        has_answer=bool(answer),
    )


def _rebuilt(task: Task, bench: Bench, case: Case) -> Iterator[Content]:
    """The real media after their tokenizer; nothing where that can't be made, or for conversations."""
    if isinstance(case.media, Question):
        return
    try:
        yield bench.rebuild(task.modalities[0], _load(case.media), case)
    except AnyGPTError:
        return


def _asked(case: Case) -> Iterator[tuple[str, Content]]:
    if isinstance(case.media, Question):
        # The user's alone: the answers between them were the model's own, or the world's.
        for message in case.media.dialogue.messages[: case.media.at : 2]:
            for part in message.parts:
                yield message.role, part if isinstance(part, str) else _made(part)
        return
    yield "real", _load(case.media)
    if case.text:
        yield "text", case.text
    yield from case.settings.items()
    for number, path in enumerate(other for other in case.others if isinstance(other, Path)):
        yield ("voice prompt" if not number else f"file {number + 1}"), _load(path)


def _right(case: Case) -> Iterator[Content]:
    if isinstance(case.media, Question):
        for part in case.media.wanted.parts:
            yield part if isinstance(part, str) else _made(part)
        return
    yield from case.references
    if "answer" in case.truth and not case.references:
        yield case.truth["answer"]


def _made(ref: Any) -> Content:
    made: Content = WorldMedia().make(ref)
    return made


def _load(media: Any) -> Content:
    """A picture, sound or video from a file, a function, or as it is."""
    if callable(media):
        media = media()
    if isinstance(media, Path | str):
        loaded: Content = _LOADERS[kind_of_file(media)](media)
        return loaded
    shown: Content = media
    return shown
