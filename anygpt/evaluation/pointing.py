"""Tasks about where things are: boxes given and asked for in the image world, and what the image tokenizer's codes keep
of a place. A box is right where it overlaps with the true one by more than half (intersection over union)."""

import random
from collections.abc import Callable, Sequence
from functools import partial

from PIL import Image

from anygpt.boxes import SCALE, Box, Corners, find_boxes, overlap
from anygpt.evaluation.bench import Bench, Case, Question
from anygpt.evaluation.localisation import find_objects
from anygpt.evaluation.metrics import Scores
from anygpt.evaluation.tasks import MODEL, REAL, REBUILT, Cases, Column, Row, Score, Task, rebuilt, shown
from anygpt.world import images
from anygpt.world.dialogues import DialogueWorld
from anygpt.world.emoji import OBJECTS

ENOUGH = 0.5
_WHOLE = (SCALE, SCALE)


def hits(found: Sequence[Corners], true: Sequence[Corners]) -> list[float]:
    """For each true box the overlap with the found one that fits it best, 0 where there is none; a found box is used
    once, the best fits first."""
    pairs = sorted(
        ((overlap(one, other), i, j) for i, one in enumerate(found) for j, other in enumerate(true)), reverse=True
    )
    best = [0.0] * len(true)
    used: set[int] = set()
    met: set[int] = set()
    for value, i, j in pairs:
        if i not in used and j not in met:
            best[j] = value
            used.add(i)
            met.add(j)
    return best


def overlap_scores(overlaps: Sequence[float]) -> Scores:
    """Of single boxes: how many are right, and how far they overlap."""
    count = float(len(overlaps))
    return {"found": (float(sum(value > ENOUGH for value in overlaps)), count), "overlap": (sum(overlaps), count)}


# ---- what a model says ----


def asked_cases(scenario: str) -> Callable[[Bench], Cases]:
    """The first rounds of held-out conversations of a scenario: picture, question, and the answer as `truth`."""

    def of(bench: Bench) -> Cases:
        world = DialogueWorld("heldout", bench.world_seed, scenarios=(scenario,))

        def case(index: int) -> Case:
            asked, answered, *_ = world.dialogue(index).messages
            (ref,) = asked.media
            scene = images.parse_caption(ref.caption)
            assert scene is not None, ref.caption
            return Case(
                index=index,
                seed=bench.case_seed(index),
                media=Image.fromarray(images.render(scene)),
                text=asked.text,
                truth={"answer": answered.text, "objects": "|".join(scene.objects)},
            )

        return case

    return of


def _asked(bench: Bench, case: Case) -> list[Question]:
    return [Question(source="image", target="text", content=case.media, words=case.text, seed=case.seed)]


def box_scores(bench: Bench, case: Case, said: str | None) -> Scores:
    """The boxes of an answer against the true ones; `all`: they are as many, and all of them right."""
    found, true = ([box.pixels(_WHOLE) for box in find_boxes(text)] for text in (said or "", case.truth["answer"]))
    best = hits(found, true)
    is_all = len(found) == len(true) and min(best) > ENOUGH
    return {**overlap_scores(best), "all": (float(is_all), 1.0)}


def grounding_scores(bench: Bench, case: Case, said: str | None) -> Scores:
    """The boxes of phrases: right where the phrase is as well; `all`: the whole description is right."""
    found, true = find_boxes(said or ""), find_boxes(case.truth["answer"])
    best = [max(hits(_of_phrase(found, box.phrase), [box.pixels(_WHOLE)])) for box in true]
    is_all = len(found) == len(true) and min(best) > ENOUGH
    return {**overlap_scores(best), "all": (float(is_all), 1.0)}


def _of_phrase(boxes: Sequence[Box], phrase: str) -> list[Corners]:
    return [box.pixels(_WHOLE) for box in boxes if box.phrase.lower() == phrase.lower()]


def identity_scores(bench: Bench, case: Case, said: str | None) -> Scores:
    """The name of what is in a box: the very words, or the object without its size."""
    words, true = _bare(said or ""), _bare(case.truth["answer"])
    name = next(name for name in case.truth["objects"].split("|") if true.endswith(name))
    named = [other for other in OBJECTS if words.endswith(other)]
    is_named = bool(named) and max(named, key=len) == name
    return {"object": (float(is_named), 1.0), "all": (float(words == true), 1.0)}


def answer_scores(bench: Bench, case: Case, said: str | None) -> Scores:
    """Whether a short answer or a caption is the very one."""
    return {"all": (float(_bare(said or "") == _bare(case.truth["answer"])), 1.0)}


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip().lower()


# ---- what the codes keep ----


def world_places(bench: Bench) -> Cases:
    """Held-out pictures of the world, whose objects are at one of nine places; `others`: these."""
    world = images.ImageWorld("heldout", seed=bench.world_seed)

    def case(index: int) -> Case:
        scene = world.scene(index)
        return _placed_case(bench, index, scene.background, images.layout(scene))

    return case


def any_places(bench: Bench) -> Cases:
    """Pictures of one object of any size anywhere, as no tokenizer is trained on."""

    def case(index: int) -> Case:
        rng = random.Random(f"places/{bench.world_seed}/{index}")
        side = rng.randint(min(images.PAIR_PX.values()), max(images.SINGLE_PX.values()))
        half = side / 2 / images.IMAGE_SIZE
        x, y = (rng.uniform(half, 1 - half) for _ in range(2))
        placed = (rng.choice(tuple(OBJECTS)), side, x, y)
        return _placed_case(bench, index, rng.choice(tuple(images.BACKGROUNDS)), [placed])

    return case


def _placed_case(bench: Bench, index: int, background: str, placed: Sequence[images.Placed]) -> Case:
    return Case(
        index=index,
        seed=bench.case_seed(index),
        media=Image.fromarray(images.draw(background, placed)),
        truth={"background": background},
        others=tuple(placed),
    )


def place_scores(bench: Bench, case: Case, picture: Image.Image | None) -> Scores:
    """How far the boxes that a fit finds in a picture overlap with the true ones."""
    found = [] if picture is None else find_objects(picture, case.others, case.truth["background"])
    true = [images.corners(placed) for placed in case.others]
    overlaps = [overlap(one, other) for one, other in zip(found or [(0.0,) * 4] * len(true), true, strict=True)]
    return overlap_scores(overlaps)


# ---- the table ----

_FOUND = Row(measure="found", title="boxes right (IoU above 0.5)")
_OVERLAP = Row(measure="overlap", title="mean IoU")


def _asked_task(name: str, title: str, scenario: str, score: Score, *rows: Row) -> Task:
    return Task(
        name=name,
        title=title,
        modalities=("image",),
        cases=asked_cases(scenario),
        columns={MODEL: Column(ask=_asked, score=score, asks=True)},
        rows=rows,
    )


def _place_task(name: str, title: str, cases: Callable[[Bench], Cases]) -> Task:
    columns = {REAL: Column(get=shown, score=place_scores), REBUILT: Column(get=rebuilt("image"), score=place_scores)}
    return Task(name=name, title=title, modalities=("image",), cases=cases, columns=columns, rows=(_FOUND, _OVERLAP))


_all = partial(Row, measure="all")

POINTING_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _place_task("image-places", "places in the image tokenizer's codes", world_places),
        _place_task("image-places-anywhere", "places in the codes, objects anywhere", any_places),
        _asked_task("refer", "a phrase to its box", "refer", box_scores, _FOUND, _OVERLAP),
        _asked_task(
            "identify", "a box to what is there", "identify", identity_scores, _all(title="phrase right"),
            Row(measure="object", title="object right"),
        ),
        _asked_task(
            "detection", "a name to all its boxes", "detection", box_scores, _all(title="all boxes right"), _FOUND,
            _OVERLAP,
        ),
        _asked_task(
            "grounding", "a description with boxes", "grounding", grounding_scores,
            _all(title="all phrases and boxes right"), Row(measure="found", title="phrases with a right box"), _OVERLAP,
        ),
        _asked_task("tagged-caption", "a caption by its tag", "tagged-caption", answer_scores, _all(title="right")),
        _asked_task("tagged-vqa", "a short answer by its tag", "tagged-vqa", answer_scores, _all(title="right")),
    )
}  # fmt: skip
"""The tasks by name, in the order of the report."""
