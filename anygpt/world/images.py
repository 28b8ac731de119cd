"""The image world: one or two objects on a background, with captions that say all there is to see.

Every picture is a `Scene`; `render` draws it, `caption` names it and `parse_caption` reads a caption back, so
that a caption can be judged attribute by attribute.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from anygpt.boxes import Box, Corners
from anygpt.world.emoji import OBJECTS, glyph, with_article
from anygpt.world.splits import held_out

IMAGE_SIZE = 96
SIZES = ("small", "medium", "large")
SINGLE_PX = {"small": 36, "medium": 56, "large": 80}
PAIR_PX = {"small": 28, "medium": 36, "large": 46}
PLACES = {"center": (0.5, 0.5), "left": (0.3, 0.5), "right": (0.7, 0.5), "top": (0.5, 0.3), "bottom": (0.5, 0.7)}
"""Where a single object sits: centre as a fraction of the picture (x, y)."""
PLACE_WORDS = {
    "center": "", "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"
}  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CANONICAL_RELATIONS = ("left of", "above")

BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((255, 255, 255), (255, 255, 255)),
    "black": ((24, 24, 24), (24, 24, 24)),
    "gray": ((168, 168, 168), (168, 168, 168)),
    "pink": ((255, 190, 215), (255, 190, 215)),
    "yellow": ((255, 240, 150), (255, 240, 150)),
    "green": ((150, 215, 150), (150, 215, 150)),
    "blue": ((140, 190, 250), (140, 190, 250)),
    "purple": ((190, 150, 230), (190, 150, 230)),
    "sunset": ((255, 120, 60), (110, 60, 150)),
    "sea": ((215, 245, 250), (20, 90, 160)),
}
"""Background name -> colours of the top and the bottom row; in between is a linear gradient."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "first": tuple(OBJECTS),
    "second": ("none", *OBJECTS),
    "first_size": SIZES,
    "second_size": ("none", *SIZES),
    "background": tuple(BACKGROUNDS),
    "place": (*PLACES, *CANONICAL_RELATIONS),
}
"""What a caption says, as one choice each; "none" where there is no second object."""

VISIBLE = 0.1
"""An object ends where it hides less than this share of the background: the rim of smoothed edges isn't seen."""
HELD_OUT_PAIRS = 0.08
HELD_OUT_SINGLES = 0.08


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows. A pair is stored in canonical order: relation `left of` or `above`."""

    objects: tuple[str, ...]
    sizes: tuple[str, ...]
    background: str
    place: str = "center"
    relation: str | None = None

    def __post_init__(self) -> None:
        assert len(self.objects) == len(self.sizes) == (2 if self.relation else 1), self
        assert self.relation is None or self.relation in CANONICAL_RELATIONS, self.relation

    @property
    def is_held_out(self) -> bool:
        """Pairs of objects, and for single objects the combination with size, place and background."""
        if self.relation:
            return held_out("|".join(sorted(self.objects)), HELD_OUT_PAIRS, "image-pair")
        key = f"{self.objects[0]}|{self.sizes[0]}|{self.place}|{self.background}"
        return held_out(key, HELD_OUT_SINGLES, "image-single")


def attributes(scene: Scene) -> dict[str, str]:
    """The value of each of `ATTRIBUTES`."""
    is_pair = scene.relation is not None
    return {
        "first": scene.objects[0],
        "second": scene.objects[1] if is_pair else "none",
        "first_size": scene.sizes[0],
        "second_size": scene.sizes[1] if is_pair else "none",
        "background": scene.background,
        "place": scene.relation or scene.place,
    }


@dataclass(frozen=True, kw_only=True)
class ImageSample:
    """`pixels` uint8 [96, 96, 3]; `caption` canonical."""

    pixels: np.ndarray
    caption: str
    scene: Scene


@lru_cache(maxsize=64)
def background_pixels(name: str, size: int) -> np.ndarray:
    """A background without objects: float32 [size, size, 3] in 0..255. Copy it before drawing: it is cached."""
    top, bottom = (np.array(colour, np.float32) for colour in BACKGROUNDS[name])
    ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)[:, None, None]
    return np.broadcast_to(top + (bottom - top) * ramp, (size, size, 3)).copy()


Placed = tuple[str, float, float, float]
"""(object, side in pixels at 96 px, centre x, centre y as fractions of the picture)."""


def layout(scene: Scene) -> list[Placed]:
    """Where each object is."""
    if scene.relation is None:
        size = scene.sizes[0]
        x, y = PLACES[scene.place]
        return [(scene.objects[0], SINGLE_PX[size], x, y)]
    first, second = ((0.26, 0.5), (0.74, 0.5)) if scene.relation == "left of" else ((0.5, 0.26), (0.5, 0.74))
    centres = zip(scene.objects, scene.sizes, (first, second), strict=True)
    return [(name, PAIR_PX[size], x, y) for name, size, (x, y) in centres]


def render(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw a scene: uint8 [size, size, 3]."""
    return draw(scene.background, layout(scene), size)


def draw(background: str, placed: Sequence[Placed], size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw objects on a background, whole ones within the picture: uint8 [size, size, 3]."""
    canvas = background_pixels(background, size).copy()
    for name, side_px, x, y in placed:
        left, top, side = _square(side_px, x, y, size)
        colour, alpha = glyph(name, side)
        region = canvas[top : top + side, left : left + side]
        region *= 1.0 - alpha
        region += colour
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _square(side_px: float, x: float, y: float, size: int) -> tuple[int, int, int]:
    """Left, top and side of an object's square in pixels."""
    side = max(1, round(side_px * size / IMAGE_SIZE))
    return round(x * size - side / 2), round(y * size - side / 2), side


def corners(placed: Placed, size: int = IMAGE_SIZE) -> Corners:
    """What is seen of an object in a picture of `size` pixels: the tight box around what hides the background."""
    name, side_px, x, y = placed
    left, top, side = _square(side_px, x, y, size)
    rows, columns = np.nonzero(glyph(name, side)[1][..., 0] >= VISIBLE)
    return (
        float(left + columns.min()),
        float(top + rows.min()),
        float(left + columns.max() + 1),
        float(top + rows.max() + 1),
    )


def boxes(scene: Scene) -> tuple[Box, ...]:
    """The box of each object, with its name as in the caption."""
    named = zip(layout(scene), phrases(scene), strict=True)
    return tuple(Box.from_pixels(corners(placed), (IMAGE_SIZE, IMAGE_SIZE), phrase) for placed, phrase in named)


def _adjective(size: str) -> str:
    return "" if size == "medium" else size


def phrases(scene: Scene) -> list[str]:
    """The objects as captions name them, such as `a small dog`."""
    return [with_article(name, _adjective(size)) for name, size in zip(scene.objects, scene.sizes, strict=True)]


def caption(scene: Scene, names: Sequence[str] = ()) -> str:
    """The canonical caption: medium size and central place go unsaid. `names` take the place of the `phrases`."""
    names = names or phrases(scene)
    if scene.relation:
        return f"{names[0]} {scene.relation} {names[1]} on a {scene.background} background"
    place = f" {PLACE_WORDS[scene.place]}" if PLACE_WORDS[scene.place] else ""
    return f"{names[0]}{place} on a {scene.background} background"


_OPENINGS = ("", "", "", "a picture of ", "an image of ", "please draw ", "draw ", "show me ")


def caption_variant(scene: Scene, rng: random.Random) -> str:
    """A caption as a user might type it: other wordings, the relation turned round, details left out."""
    objects, sizes, relation = list(scene.objects), list(scene.sizes), scene.relation
    if relation and rng.random() < 0.5:
        objects, sizes, relation = objects[::-1], sizes[::-1], INVERSE[relation]
    names = [with_article(name, _adjective(size)) for name, size in zip(objects, sizes, strict=True)]
    if relation:
        words = f"{names[0]} {relation} {names[1]}"
    else:
        words = f"{names[0]} {PLACE_WORDS[scene.place]}".strip()
    words = on_background(words, scene.background, rng)
    return rng.choice(_OPENINGS) + words


def on_background(words: str, background: str, rng: random.Random) -> str:
    """The words with a background as a user might say it, or without."""
    kind = rng.random()
    if kind < 0.6:
        words += f" on a {background} background"
    elif kind < 0.75:
        words += f", {background} background"
    return words


@lru_cache(maxsize=1)
def _object_pattern() -> re.Pattern[str]:
    names = "|".join(sorted(map(re.escape, OBJECTS), key=len, reverse=True))
    return re.compile(rf"^(?:an? )?(?:(small|large) )?({names})$")


def parse_caption(text: str) -> Scene | None:
    """Read a caption of the world's canonical form back; None when it is not one. `B right of A` is `A left of B`."""
    match = re.fullmatch(rf"(.+) on an? ({'|'.join(BACKGROUNDS)}) background\.?", text.strip().lower())
    if not match:
        return None
    body, background = match.groups()
    for relation in RELATIONS:
        first, found, second = body.partition(f" {relation} ")
        if found:
            parsed = [_object_pattern().match(part) for part in (first, second)]
            if not all(parsed):
                return None
            objects = [part.group(2) for part in parsed if part]
            sizes = [part.group(1) or "medium" for part in parsed if part]
            if relation not in CANONICAL_RELATIONS:
                objects, sizes, relation = objects[::-1], sizes[::-1], INVERSE[relation]
            return Scene(objects=tuple(objects), sizes=tuple(sizes), background=background, relation=relation)
    said = [place for place, words in PLACE_WORDS.items() if words and body.endswith(" " + words)]
    place = said[0] if said else "center"
    single = _object_pattern().match(body.removesuffix(" " + PLACE_WORDS[place]) if said else body)
    if not single:
        return None
    return Scene(objects=(single.group(2),), sizes=(single.group(1) or "medium",), background=background, place=place)


def random_scene(rng: random.Random) -> Scene:
    """Any scene, held out or not: half of them single objects."""
    background = rng.choice(tuple(BACKGROUNDS))
    if rng.random() < 0.5:
        size = rng.choices(SIZES, (0.25, 0.5, 0.25))[0]
        place = "center" if size == "large" or rng.random() < 0.5 else rng.choice(tuple(PLACES)[1:])
        return Scene(objects=(rng.choice(tuple(OBJECTS)),), sizes=(size,), background=background, place=place)
    first, second = rng.sample(tuple(OBJECTS), 2)
    sizes = (rng.choices(SIZES, (0.2, 0.6, 0.2))[0], rng.choices(SIZES, (0.2, 0.6, 0.2))[0])
    relation = rng.choice(CANONICAL_RELATIONS)
    return Scene(objects=(first, second), sizes=sizes, background=background, relation=relation)


def caption_sentence(rng: random.Random) -> str:
    """The caption of a random scene, for the speech world to read aloud."""
    return caption(random_scene(rng))


class ImageWorld:
    """An endless, indexable stream of pictures: `sample(i)` depends on (seed, split, i) alone.

    `split` is "train" or "heldout"; a held-out scene (see `Scene.is_held_out`) never occurs in training.
    """

    def __init__(self, split: str = "train", seed: int = 0) -> None:
        assert split in ("train", "heldout"), split
        self.split, self.seed = split, seed

    def scene(self, index: int) -> Scene:
        rng = random.Random(f"image/{self.split}/{self.seed}/{index}")
        while True:
            scene = random_scene(rng)
            if scene.is_held_out == (self.split == "heldout"):
                return scene

    def sample(self, index: int) -> ImageSample:
        scene = self.scene(index)
        return ImageSample(pixels=render(scene), caption=caption(scene), scene=scene)

    def __iter__(self) -> Iterator[ImageSample]:
        index = 0
        while True:
            yield self.sample(index)
            index += 1
