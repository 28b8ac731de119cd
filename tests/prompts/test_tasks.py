"""Instruction wordings: the shipped file, and what a bad file is told."""

import random
from pathlib import Path

import pytest

from anygpt.errors import ConfigError
from anygpt.modality import MODALITIES
from anygpt.prompts.tasks import TaskPrompts
from anygpt.prompts.templates import DIRECTIONS


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_shipped_wordings(modality: str, direction):
    prompts = TaskPrompts.load()
    wordings = prompts.wordings(modality, direction).all
    assert len(wordings) >= 30
    assert prompts.canonical(modality, direction) == wordings[0]
    rng = random.Random(0)
    drawn = [prompts.sample(modality, direction, rng) for _ in range(1000)]
    assert set(drawn) == set(wordings)
    rng = random.Random(0)
    assert [prompts.sample(modality, direction, rng) for _ in range(1000)] == drawn


def test_no_wording_serves_two_tasks():
    prompts = TaskPrompts.load()
    wordings = [
        text for name in MODALITIES for direction in DIRECTIONS for text in prompts.wordings(name, direction).all
    ]
    assert len(set(wordings)) == len(wordings)


GOOD = "x2text: {canonical: Say it.}\n  text2x: {canonical: Do it., varied: [Go.]}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("imgae:\n  " + GOOD, r"unknown modality 'imgae' \(did you mean 'image'\?\)"),
        ("image:\n  x2text: {canonical: Say it.}", "'image' must have the keys x2text and text2x, got x2text"),
        ("image: [a]", r"'image' must have the keys x2text and text2x, got \['a'\]"),
        ("image:\n  " + GOOD.replace("{canonical: Say it.}", "Say it."), "image x2text: expected the keys canonical"),
        ("image:\n  " + GOOD.replace("canonical: Say", "cannonical: Say"), "image x2text: unknown key 'cannonical'"),
        ("image:\n  " + GOOD.replace("Go.", "Do it."), "image text2x: wording 'Do it.' is there twice"),
        ("image:\n  " + GOOD.replace("Go.", "''"), "wording '' is empty"),
        ("image:\n  " + GOOD.replace("Go.", "'Go <eoh>'"), "line break or one of"),
        ("image:\n  " + GOOD.replace("Go.", "3"), r"image text2x: 'varied\[0\]' is 3, expected"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, content: str, message: str):
    path = tmp_path / "tasks.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        TaskPrompts.load(path)
    assert str(path) in str(caught.value)


def test_a_task_that_the_file_lacks(tmp_path: Path):
    path = tmp_path / "tasks.yaml"
    path.write_text("image:\n  " + GOOD, encoding="utf-8")
    prompts = TaskPrompts.load(path)
    assert prompts.canonical("image", "text2x") == "Do it."
    with pytest.raises(ConfigError, match="no wordings for 'music' x2text; there are: image"):
        prompts.canonical("music", "x2text")
