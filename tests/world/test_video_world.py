"""The world of videos: deterministic, split by construction, captions read back, ends that are scenes of pictures."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anygpt.cli.world import world
from anygpt.errors import AnyGPTError
from anygpt.video import load_video
from anygpt.world import images, videos
from anygpt.world.videos import ACTORS, EVENTS, VideoAttributes, VideoWorld


def test_a_sample_depends_on_seed_split_and_number_alone() -> None:
    one, other = VideoWorld("train", 3), VideoWorld("train", 3)
    other.sample(0)
    for index in (0, 5, 17):
        assert np.array_equal(one.sample(index).frames, other.sample(index).frames)
        assert one.sample(index).caption == other.sample(index).caption
    assert one.sample(0).frames.shape == (4, 96, 96, 3) and one.sample(0).frames.dtype == np.uint8
    assert one.attributes(1) != VideoWorld("train", 4).attributes(1) != VideoWorld("heldout", 4).attributes(1)
    with pytest.raises(AnyGPTError, match="unknown split 'test', expected one of train, heldout"):
        VideoWorld("test")


def test_nothing_is_in_both_splits() -> None:
    train = {VideoWorld("train").attributes(index) for index in range(1500)}
    held_out = {VideoWorld("heldout").attributes(index) for index in range(1500)}
    assert not train & held_out
    pairs = [{frozenset(a.objects) for a in split if len(a.objects) > 1} for split in (train, held_out)]
    assert not pairs[0] & pairs[1]
    for split in (train, held_out):
        assert {a.event for a in split} == set(EVENTS) and {a.background for a in split} == set(images.BACKGROUNDS)
    assert {name for a in train for name in a.objects} == set(ACTORS)


def test_captions_are_read_back() -> None:
    for index in range(500):
        attributes = VideoWorld().attributes(index)
        words = videos.caption(attributes)
        assert videos.parse_caption(f"  {words.capitalize()}. ") == attributes
        assert set(videos.facts(attributes)) == set(videos.ATTRIBUTES)
    for text in ("", "a cat", "a cat flies on a blue background", "a cat turns into on a blue background"):
        assert videos.parse_caption(text) is None
    variants = {videos.caption_variant(VideoWorld().attributes(0), random.Random(seed)) for seed in range(20)}
    assert len(variants) > 8


@pytest.mark.parametrize("name", EVENTS)
def test_ends_are_scenes_and_something_happens_between(name: str) -> None:
    objects = ("cat", "dog")[: EVENTS[name].actors]
    attributes = VideoAttributes(event=name, objects=objects, background="sea")
    frames = videos.render(attributes, random.Random(0))
    for frame, scene in zip((frames[0], frames[-1]), attributes.scenes, strict=True):
        empty = images.draw("sea", [])
        assert np.array_equal(frame, empty if scene is None else images.render(scene))
    assert not np.array_equal(frames[0], frames[-1])


def test_what_two_objects_do_while_they_change_places() -> None:
    """They pass each other without one hiding the other."""
    frames = videos.render(VideoAttributes(event="swap", objects=("cat", "dog"), background="white"), random.Random(0))
    covered = [(frame != 255).any(-1).mean() for frame in frames]
    assert min(covered) > 0.95 * max(covered)


def test_files_of_the_world(in_tmp_path: Path) -> None:
    world("video", out=Path("raw"), count=3, raw=True, split="heldout", seed=2)
    rows = [json.loads(line) for line in Path("raw/manifest.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        sample = VideoWorld("heldout", 2).sample(index)
        video = load_video(Path("raw") / row["video"], rate_hz=2.0)
        assert row["text"] == sample.caption and len(video.frames) == 4 and video.sound is None
        for frame, drawn in zip(video.frames, sample.frames, strict=True):
            assert np.abs(np.asarray(frame, float) - np.asarray(Image.fromarray(drawn), float)).mean() < 6
