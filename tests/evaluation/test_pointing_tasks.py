"""What counts as right where boxes are asked for, and what a fit finds in a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anygpt.boxes import Box, format_boxes, format_phrase, overlap
from anygpt.cli.evaluate import evaluate
from anygpt.errors import AnyGPTError
from anygpt.evaluation.bench import Bench, Case
from anygpt.evaluation.benchmarks.refcoco import ask_for_box, box_is_right
from anygpt.evaluation.localisation import find_objects
from anygpt.evaluation.pointing import (
    POINTING_TASKS,
    answer_scores,
    any_places,
    asked_cases,
    box_scores,
    grounding_scores,
    hits,
    identity_scores,
    place_scores,
    world_places,
)
from anygpt.world import images
from anygpt.world.emoji import glyph

BENCH: Any = Bench(tokenizer=lambda name: None, judges=Path())  # type: ignore[arg-type, return-value]
DOG, CAT = Box(10, 10, 50, 50, phrase="a dog"), Box(60, 60, 90, 100, phrase="a small cat")
NEAR = Box(12, 10, 50, 52)


@pytest.fixture
def font() -> None:
    try:
        glyph("dog", 16)
    except AnyGPTError as error:
        pytest.skip(str(error))


def case(answer: str, **truth: str) -> Case:
    return Case(index=0, seed=0, media=None, truth={"answer": answer, **truth})


def test_a_box_is_right_where_it_overlaps_enough() -> None:
    both = case(format_boxes([DOG, CAT]))
    right = {"found": (2.0, 2.0), "overlap": (2.0, 2.0), "all": (1.0, 1.0)}
    assert box_scores(BENCH, both, format_boxes([CAT, DOG])) == right
    near = box_scores(BENCH, case(str(DOG)), str(NEAR))
    assert near["found"] == near["all"] == (1.0, 1.0) and 0.5 < near["overlap"][0] < 1
    one = box_scores(BENCH, both, str(DOG))
    assert one["found"] == (1.0, 2.0) and one["all"] == (0.0, 1.0)
    many = box_scores(BENCH, case(str(DOG)), format_boxes([CAT, DOG]))
    assert many["found"] == (1.0, 1.0) and many["all"] == (0.0, 1.0)
    for nothing in (None, "", "a dog"):
        assert box_scores(BENCH, both, nothing) == {"found": (0.0, 2.0), "overlap": (0.0, 2.0), "all": (0.0, 1.0)}


def test_a_box_counts_once() -> None:
    square, half = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0)
    assert hits([square], [square, half]) == [1.0, 0.0]
    assert hits([half, square], [square, half]) == [1.0, 1.0]
    assert hits([], [square]) == [0.0]


def test_phrases_and_names() -> None:
    truth = case(f"{format_phrase(DOG.phrase, [DOG])} left of {format_phrase(CAT.phrase, [CAT])} on a blue background")
    said = f"{format_phrase('A dog', [NEAR])} {format_phrase('a small cow', [CAT])}"
    assert grounding_scores(BENCH, truth, truth.truth["answer"])["all"] == (1.0, 1.0)
    scores = grounding_scores(BENCH, truth, said)
    assert scores["found"] == (1.0, 2.0) and scores["all"] == (0.0, 1.0)
    cat = case("a small hot dog", objects="hot dog|cat")
    assert identity_scores(BENCH, cat, "A small hot dog.") == {"object": (1.0, 1.0), "all": (1.0, 1.0)}
    assert identity_scores(BENCH, cat, "a hot dog") == {"object": (1.0, 1.0), "all": (0.0, 1.0)}
    assert identity_scores(BENCH, cat, "a dog") == identity_scores(BENCH, cat, None)
    assert answer_scores(BENCH, case("blue"), " Blue. ")["all"] == (1.0, 1.0)


def test_boxes_of_phrases_are_compared_in_pixels() -> None:
    asked = Case(
        index=0, seed=0, media=None, text="the dog", truth={"split": "val", "box": "64 48 320 240", "size": "640 480"}
    )
    assert ask_for_box(BENCH, asked)[0].words == "[refer] give me the location of the dog"
    right = {"accuracy": (1.0, 1.0), "val": (1.0, 1.0), "overlap": (1.0, 1.0)}
    assert box_is_right(BENCH, asked, str(Box(10, 10, 50, 50))) == right
    assert box_is_right(BENCH, asked, str(Box(50, 50, 90, 90)))["accuracy"] == (0.0, 1.0)
    assert box_is_right(BENCH, asked, None)["accuracy"] == box_is_right(BENCH, asked, "no")["accuracy"] == (0.0, 1.0)


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("cases", [world_places, any_places])
def test_a_fit_finds_what_is_there(cases: Any) -> None:
    of = cases(BENCH)
    for index in range(4):
        one = of(index)
        scores = place_scores(BENCH, one, one.media)
        assert scores["found"][0] == scores["found"][1] == len(one.others) and scores["overlap"][0] > 0.9 * len(
            one.others
        )
        assert np.array_equal(np.asarray(one.media), np.asarray(of(index).media))
        assert place_scores(BENCH, one, None)["found"][0] == 0


@pytest.mark.usefixtures("font")
def test_a_fit_goes_by_what_is_seen() -> None:
    """The place of what it is given doesn't matter, and the picture may be larger and a little blurred."""
    true = ("dog", 40.0, 0.3, 0.6)
    picture = Image.fromarray(images.draw("sunset", [true])).resize((224, 224))
    (found,) = find_objects(picture, [("dog", 50.0, 0.9, 0.9)], "sunset")
    assert overlap(found, images.corners(true)) > 0.85


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("name", ["refer", "identify", "detection", "grounding", "tagged-caption", "tagged-vqa"])
def test_true_answers_are_right(name: str) -> None:
    task = POINTING_TASKS[name]
    for index in range(3):
        one = asked_cases(name)(BENCH)(index)
        scores = task.columns["model"].score(BENCH, one, one.truth["answer"])
        assert all(counted == out_of for counted, out_of in scores.values()) and scores
        assert {row.measure for row in task.rows} <= set(scores) and one.text.startswith("[")


@pytest.mark.usefixtures("font", "home", "in_tmp_path")
def test_the_command() -> None:
    evaluate(tasks=["pointing"], n=2, seed=1)
    rows = json.loads(Path("docs/quality.json").read_text())["rows"]
    assert {row["task"] for row in rows} == set(POINTING_TASKS)
    evaluate(tasks=["image-places"], n=2, tokenizers_only=True, out=Path("alone"), report=Path("alone.md"))
    (row, _) = json.loads(Path("alone.json").read_text())["rows"]
    assert row["columns"]["real"]["value"] == 1 and "reconstruction" in row["columns"]
