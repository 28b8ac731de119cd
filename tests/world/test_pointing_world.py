"""Boxes of the image world, and conversations about where things are."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from fixtures_cli import Ran
from fixtures_tiny import MODEL
from fixtures_world import needs_font
from hypothesis import given
from hypothesis import strategies as st

from anygpt.boxes import Box, find_boxes, parse_box
from anygpt.data.dialogue import Dialogue, check_messages
from anygpt.data.mixture import PairSource, SourceConfig
from anygpt.errors import AnyGPTError
from anygpt.prompts.render import render_base
from anygpt.prompts.tags import TAGS, find_tag
from anygpt.prompts.tasks import TaskPrompts
from anygpt.tokenizers.base import load_tokenizer
from anygpt.vocabulary import Vocabulary
from anygpt.world import images
from anygpt.world.dialogues import POINTING, SCENARIOS, DialogueWorld
from anygpt.world.dialogues.facts import KIND_OF
from anygpt.world.dialogues.pointing import grounded_caption
from anygpt.world.emoji import OBJECTS
from anygpt.world.pairs import write_pointing

pytestmark = needs_font


def hidden_share(scene: images.Scene, size: int) -> np.ndarray:
    """How much of the background each pixel hides, seen from the pictures alone: how little its colour matters."""
    light, dark = (images.draw(name, images.layout(scene), size).astype(float) for name in ("white", "black"))
    return 1 - (light - dark).mean(-1) / (255 - 24)


@given(st.integers(0, 2**40), st.sampled_from([96, 192]))
def test_boxes_are_where_the_objects_are(number: int, size: int) -> None:
    """Exact to the pixel: nothing of an object is outside its box, and every side of the box touches it."""
    scene = images.random_scene(random.Random(number))
    share = hidden_share(scene, size)
    seen, left_over = share > images.VISIBLE - 0.01, share > images.VISIBLE + 0.01  # bytes are rounded
    for placed in images.layout(scene):
        left, top, right, bottom = map(int, images.corners(placed, size))
        inside = seen[top:bottom, left:right]
        assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()
        left_over[top:bottom, left:right] = False
    assert not left_over.any()
    for box, placed in zip(images.boxes(scene), images.layout(scene), strict=True):
        exact = np.array(images.corners(placed)) * 100 / images.IMAGE_SIZE
        assert np.abs(np.array(box.values) - exact).max() <= 0.5


@given(st.integers(0, 2**40))
def test_a_grounded_caption_says_what_the_caption_says(number: int) -> None:
    scene = images.random_scene(random.Random(number))
    text = grounded_caption(scene)
    assert find_boxes(text) == images.boxes(scene)
    bare = re.sub(r"</?p>| \{[<>\d]+\}", "", text)
    assert images.parse_caption(bare) == scene


def dialogues(split: str, *names: str, count: int = 25) -> list[Dialogue]:
    world = DialogueWorld(split, seed=3, scenarios=names)
    return [world.dialogue(index) for index in range(count)]


def scene_of(dialogue: Dialogue) -> images.Scene:
    (ref,) = [ref for message in dialogue.messages for ref in message.media]
    scene = images.parse_caption(ref.caption)
    assert scene is not None
    return scene


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("name", POINTING)
def test_conversations_are_of_the_split_and_answers_right(name: str, split: str) -> None:
    tags = set()
    for dialogue in dialogues(split, name):
        check_messages(dialogue)
        scene = scene_of(dialogue)
        assert scene.is_held_out == (split == "heldout") and dialogue.messages[0].media
        by_name = dict(zip(scene.objects, images.boxes(scene), strict=True))
        for asked, answered in zip(dialogue.messages[::2], dialogue.messages[1::2], strict=True):
            tags.add(find_tag(asked.text))
            check_answer(name, scene, by_name, asked.text.lower(), answered.text)
    assert tags == {name.removeprefix("tagged-")} <= set(TAGS)


def check_answer(name: str, scene: images.Scene, by_name: dict[str, Box], asked: str, answer: str) -> None:
    if name == "refer":
        box = parse_box(answer)
        (found,) = [each for each, own in by_name.items() if own.values == box.values]
        assert re.search(rf"\b{found}\b|\bthing\b", asked)
    elif name == "identify":
        assert answer in {box.phrase for box in by_name.values() if str(box) in asked}
    elif name == "detection":
        boxes = find_boxes(answer)
        (wanted,) = {box.phrase for box in boxes}
        of_kind = [own.values for each, own in by_name.items() if wanted in (each, KIND_OF[each])]
        assert [box.values for box in boxes] == of_kind and wanted in asked
    elif name == "grounding":
        assert answer == grounded_caption(scene)
    elif name == "tagged-caption":
        assert answer == images.caption(scene)
    else:
        assert answer and not find_boxes(answer)


def test_kinds_of_things_have_several_boxes() -> None:
    counts = {len(find_boxes(dialogue.messages[1].text)) for dialogue in dialogues("train", "detection", count=120)}
    assert counts == {1, 2} and set(KIND_OF) >= set(OBJECTS)


def test_they_are_written_only_where_they_are_asked_for_by_name() -> None:
    assert all(SCENARIOS[name].on_request for name in POINTING)
    assert not any(find_tag(message.text) for each in dialogues("train") for message in each.messages)
    assert {each.scenario for each in dialogues("train", *POINTING)} == set(POINTING)
    assert dialogues("train", *POINTING) == dialogues("train", *POINTING)


def test_pairs_for_base_prompts(tiny_home: Path, tmp_path: Path) -> None:
    """One file by one command; a killed run goes on where it ended, and the file trains what the engine asks."""
    tokenizer = load_tokenizer(tiny_home / "tokenizers" / "seed-tiny")
    path = write_pointing(tokenizer, tmp_path / "whole", count=30, batch_size=7)
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "image_pointing.train-0.partial").write_text("".join(lines[:4]) + lines[4][:20])
    assert write_pointing(tokenizer, tmp_path / "killed", count=30).read_text() == "".join(lines)
    assert write_pointing(tokenizer, tmp_path / "whole", count=99) == path
    rows = [json.loads(line) for line in lines]
    assert {find_tag(row["instruction"]) for row in rows} <= set(TAGS) and len(rows) == 30
    assert any(find_boxes(row["text"]) for row in rows)

    vocab = Vocabulary.from_pretrained(tiny_home / "models" / MODEL)
    config = SourceConfig(path=path, modality="image", direction="x2text")
    source = PairSource(config, vocab, TaskPrompts.load(), validation_fraction=0.0)
    (example,) = source.examples(0)
    media = source.pair(0)[1]
    prompt = render_base("x2text", rows[0]["instruction"], [media], vocab)
    assert example.ids[: len(prompt)] == prompt
    turned = PairSource(SourceConfig(path=path, modality="image"), vocab, TaskPrompts.load(), validation_fraction=0.0)
    with pytest.raises(AnyGPTError, match="line 1: has an instruction for image to text; set direction: x2text"):
        list(turned.examples(0))
    path.write_text(json.dumps({**rows[0], "instruction": 3}) + "\n")
    with pytest.raises(AnyGPTError, match="line 1: field 'instruction' is 3, expected a text"):
        PairSource(config, vocab, TaskPrompts.load(), validation_fraction=0.0).pair(0)


def test_the_flag_goes_with_pictures(tmp_path: Path) -> None:
    for flags in (["speech", "--boxes"], ["image", "--boxes", "--raw"]):
        ran = Ran("world", *flags, "--out", str(tmp_path), "--count", "1")
        assert ran.code != 0 and "--boxes goes with image, and without --raw" in ran.err[-1]
