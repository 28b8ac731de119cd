"""The world of videos: clips of two seconds in which something happens to one object or two, with captions that say it.

A clip begins and ends with a scene of the image world, or an empty background; between these, objects go straight
from where they are to where they will be.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from anygpt.errors import AnyGPTError
from anygpt.world import images
from anygpt.world.emoji import OBJECTS, with_article
from anygpt.world.images import BACKGROUNDS, Placed, Scene
from anygpt.world.splits import held_out

RATE_HZ = 2.0
FRAMES = 4
SPLITS = ("train", "heldout")
NONE = "none"
"""The fact of what a clip has not."""

PLURALS = frozenset({"grapes", "cherries", "scissors"})
"""Objects that are left out here, since their verbs have other forms."""
ACTORS = tuple(name for name in OBJECTS if name not in PLURALS)
HELD_OUT_SINGLES = 0.1
HELD_OUT_PAIRS = 0.1


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens: `clause` says so, with {} for the objects' names; `said` are words of users."""

    clause: str
    said: tuple[str, ...]
    start: Callable[..., Scene | None]
    end: Callable[..., Scene | None]
    """The first and the last frame, from the objects and the background."""
    actors: int = 1


def _single(place: str = "center", size: str = "medium", *, number: int = 0) -> Callable[..., Scene]:
    """A scene with the object of that number."""

    def scene(objects: tuple[str, ...], background: str) -> Scene:
        return Scene(objects=(objects[number],), sizes=(size,), background=background, place=place)

    return scene


def _pair(first: int, second: int) -> Callable[..., Scene]:
    def scene(objects: tuple[str, ...], background: str) -> Scene:
        names = (objects[first], objects[second])
        return Scene(objects=names, sizes=("medium", "medium"), background=background, relation="left of")

    return scene


def _nothing(objects: tuple[str, ...], background: str) -> None:
    return None


def _move(direction: str, start: str, end: str, *said: str) -> Event:
    clause = f"{{}} moves {direction}"
    return Event(clause=clause, said=(clause, *said), start=_single(start), end=_single(end))


EVENTS: dict[str, Event] = {
    "right": _move("to the right", "left", "right", "{} goes right", "{} moves from left to right"),
    "left": _move("to the left", "right", "left", "{} goes left", "{} moves from right to left"),
    "up": _move("up", "bottom", "top", "{} rises", "{} goes up"),
    "down": _move("down", "top", "bottom", "{} falls", "{} goes down"),
    "appears": Event(
        clause="{} appears", said=("{} appears", "{} shows up", "suddenly there is {}"), start=_nothing, end=_single()
    ),
    "disappears": Event(
        clause="{} disappears", said=("{} disappears", "{} vanishes", "{} goes away"), start=_single(), end=_nothing
    ),
    "grows": Event(
        clause="{} grows",
        said=("{} grows", "{} gets bigger", "{} becomes large"),
        start=_single(size="small"),
        end=_single(size="large"),
    ),
    "shrinks": Event(
        clause="{} shrinks",
        said=("{} shrinks", "{} gets smaller", "{} becomes small"),
        start=_single(size="large"),
        end=_single(size="small"),
    ),
    "becomes": Event(
        clause="{} turns into {}",
        said=("{} turns into {}", "{} becomes {}", "{} changes into {}"),
        start=_single(),
        end=_single(number=1),
        actors=2,
    ),
    "swap": Event(
        clause="{} and {} change places",
        said=("{} and {} change places", "{} and {} swap places", "{} trades places with {}"),
        start=_pair(0, 1),
        end=_pair(1, 0),
        actors=2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class VideoAttributes:
    """What a caption says of a clip; of objects that change places the one on the left is first."""

    event: str
    objects: tuple[str, ...]
    background: str

    def __post_init__(self) -> None:
        assert len(self.objects) == EVENTS[self.event].actors, self

    @property
    def is_held_out(self) -> bool:
        """Pairs of objects, and for single ones the combination with event and background."""
        if len(self.objects) > 1:
            return held_out("|".join(sorted(self.objects)), HELD_OUT_PAIRS, "video-pair")
        return held_out(f"{self.event}|{self.objects[0]}|{self.background}", HELD_OUT_SINGLES, "video-single")

    @property
    def scenes(self) -> tuple[Scene | None, Scene | None]:
        """The first and the last frame, None for a background without objects."""
        event = EVENTS[self.event]
        return event.start(self.objects, self.background), event.end(self.objects, self.background)


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "event": tuple(EVENTS),
    "first": ACTORS,
    "second": (NONE, *ACTORS),
    "background": tuple(BACKGROUNDS),
}
"""What a viewer can tell, as one choice each."""


def facts(attributes: VideoAttributes) -> dict[str, str]:
    """The choice of each of `ATTRIBUTES`."""
    first, second = (*attributes.objects, NONE)[:2]
    return {"event": attributes.event, "first": first, "second": second, "background": attributes.background}


@dataclass(frozen=True, eq=False)
class VideoSample:
    """`frames` uint8 [4, 96, 96, 3], two a second; `caption` canonical."""

    frames: np.ndarray
    caption: str
    attributes: VideoAttributes


def caption(attributes: VideoAttributes) -> str:
    """The canonical caption: `a cat moves to the right on a blue background`."""
    names = map(with_article, attributes.objects)
    return f"{EVENTS[attributes.event].clause.format(*names)} on a {attributes.background} background"


_OPENINGS = ("", "", "", "a video of how ", "a clip in which ", "make a video: ", "show me how ", "animate this: ")


def caption_variant(attributes: VideoAttributes, rng: random.Random) -> str:
    """What a user might type: other words for the same, sometimes without the background."""
    words = rng.choice(EVENTS[attributes.event].said).format(*map(with_article, attributes.objects))
    words = images.on_background(words, attributes.background, rng)
    return rng.choice(_OPENINGS) + words


@lru_cache(maxsize=1)
def _patterns() -> dict[str, re.Pattern[str]]:
    names = "|".join(re.escape(with_article(name)) for name in sorted(ACTORS, key=len, reverse=True))
    where = f" on an? ({'|'.join(BACKGROUNDS)}) background\\.?"
    return {name: re.compile(re.sub(r"\{\}", f"({names})", event.clause) + where) for name, event in EVENTS.items()}


def parse_caption(text: str) -> VideoAttributes | None:
    """Read a canonical caption back, case and a full stop aside; None when it is not one."""
    by_name = {with_article(name): name for name in ACTORS}
    for event, pattern in _patterns().items():
        match = pattern.fullmatch(" ".join(text.lower().split()))
        if match:
            *objects, background = match.groups()
            return VideoAttributes(
                event=event, objects=tuple(by_name[words] for words in objects), background=background
            )
    return None


def render(attributes: VideoAttributes, rng: random.Random) -> np.ndarray:
    """Draw the frames of a clip: uint8 [4, 96, 96, 3]. What appears or changes does so after any frame but the last."""
    start, end = attributes.scenes
    turn = rng.randrange(1, FRAMES)
    before, after = (images.layout(scene) if scene is not None else [] for scene in (start, end))
    frames = []
    for number in range(FRAMES):
        if {name for name, *_ in before} == {name for name, *_ in after}:
            placed = _between(before, after, number / (FRAMES - 1))
        else:
            placed = after if number >= turn else before
        frames.append(images.draw(attributes.background, placed))
    return np.stack(frames)


def _between(before: list[Placed], after: list[Placed], share: float) -> list[Placed]:
    """The objects on their way. Two pass each other, one above and one below."""
    goals = {name: goal for name, *goal in after}
    placed = []
    for number, (name, *here) in enumerate(before):
        side, x, y = (a + (b - a) * share for a, b in zip(here, goals[name], strict=True))
        if len(before) > 1:
            y += (-1) ** number * 0.24 * float(np.sin(np.pi * share))
        placed.append((name, side, x, y))
    return placed


class VideoWorld:
    """An endless, indexable stream of clips: `sample(i)` depends on (seed, split, i) alone.

    `split` is "train" or "heldout"; what is held out (see `VideoAttributes.is_held_out`) never occurs in training.
    """

    def __init__(self, split: str = "train", seed: int = 0) -> None:
        if split not in SPLITS:
            raise AnyGPTError(f"video world: unknown split '{split}', expected one of {', '.join(SPLITS)}")
        self.split, self.seed = split, seed

    def attributes(self, index: int) -> VideoAttributes:
        """What sample `index` is, without drawing it."""
        return self._draw(index)[0]

    def sample(self, index: int) -> VideoSample:
        """Clip `index`, freshly drawn."""
        attributes, rng = self._draw(index)
        return VideoSample(frames=render(attributes, rng), caption=caption(attributes), attributes=attributes)

    def __iter__(self) -> Iterator[VideoSample]:
        return map(self.sample, itertools.count())

    def _draw(self, index: int) -> tuple[VideoAttributes, random.Random]:
        rng = random.Random(f"video/{self.split}/{self.seed}/{index}")
        while True:
            event = rng.choice(tuple(EVENTS))
            objects = tuple(rng.sample(ACTORS, EVENTS[event].actors))
            found = VideoAttributes(event=event, objects=objects, background=rng.choice(tuple(BACKGROUNDS)))
            if found.is_held_out == (self.split == "heldout"):
                return found, rng
