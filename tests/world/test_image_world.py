"""The image world: deterministic, captions that say all, held-out scenes that training never shows."""

import random

import numpy as np
import pytest
from fixtures_world import needs_font
from hypothesis import given
from hypothesis import strategies as st

from anygpt.world import emoji, images


@given(st.integers(0, 2**40))
def test_a_caption_reads_back_as_its_scene(number: int) -> None:
    scene = images.random_scene(random.Random(number))
    assert images.parse_caption(images.caption(scene)) == scene


@given(st.integers(0, 2**40))
def test_relations_mean_the_same_from_both_sides(number: int) -> None:
    scene = images.random_scene(random.Random(number))
    if scene.relation is None:
        return
    text = images.caption(scene)
    first, _, rest = text.partition(f" {scene.relation} ")
    second, _, background = rest.partition(" on a ")
    turned = f"{second} {images.INVERSE[scene.relation]} {first} on a {background}"
    assert images.parse_caption(turned) == scene


@pytest.mark.parametrize(
    "text", ["", "a dog", "a dog on a plaid background", "a dog behind a cat on a white background", "a a a"]
)
def test_what_is_no_caption_parses_to_none(text: str) -> None:
    assert images.parse_caption(text) is None


def test_the_splits_share_no_scene() -> None:
    train, heldout = images.ImageWorld("train"), images.ImageWorld("heldout")
    assert not any(train.scene(i).is_held_out for i in range(300))
    assert all(heldout.scene(i).is_held_out for i in range(300))


def test_held_out_pairs_stay_out_whatever_their_order_size_or_background() -> None:
    rng = random.Random(0)
    pairs: dict[frozenset[str], set[bool]] = {}
    for _ in range(20_000):
        scene = images.random_scene(rng)
        if scene.relation:
            pairs.setdefault(frozenset(scene.objects), set()).add(scene.is_held_out)
    assert all(len(values) == 1 for values in pairs.values())


def test_the_world_is_as_rich_as_promised() -> None:
    assert len(emoji.OBJECTS) >= 120
    assert len(images.BACKGROUNDS) >= 10
    assert len(images.RELATIONS) == 4
    assert len(images.SIZES) == 3


@needs_font
def test_samples_depend_on_seed_and_index_alone() -> None:
    first, second = images.ImageWorld("train", seed=3), images.ImageWorld("train", seed=3)
    second.sample(0)
    assert np.array_equal(first.sample(7).pixels, second.sample(7).pixels)
    assert any(first.scene(i) != images.ImageWorld("train", seed=4).scene(i) for i in range(10))


@needs_font
def test_every_object_is_drawn_and_stays_inside_the_picture() -> None:
    for name in emoji.OBJECTS:
        scene = images.Scene(objects=(name,), sizes=("large",), background="white")
        pixels = images.render(scene)
        assert pixels.shape == (images.IMAGE_SIZE, images.IMAGE_SIZE, 3) and pixels.dtype == np.uint8
        assert (pixels != 255).any(axis=2).mean() > 0.03, name
        assert (pixels[:2] == 255).all() and (pixels[:, :2] == 255).all(), name


@needs_font
def test_the_relation_is_where_the_objects_are() -> None:
    scene = images.Scene(
        objects=("red heart", "blue heart"), sizes=("medium", "medium"), background="white", relation="left of"
    )
    pixels = images.render(scene).astype(int)
    redness = (pixels[..., 0] - pixels[..., 2]).clip(0).sum(axis=0)
    assert redness[:48].sum() > 20 * redness[48:].sum() > -1
