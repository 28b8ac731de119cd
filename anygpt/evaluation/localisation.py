"""Where objects are in a picture whose objects and background are known, by a fit without anything learned.

Each object is laid over the background at every place and in many sizes, and the best of these pictures is taken: what
an ideal reader of the picture could tell of the place. On reconstructions that is what a tokenizer's codes keep of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from anygpt.boxes import Corners
from anygpt.world.emoji import glyph
from anygpt.world.images import IMAGE_SIZE, Placed, background_pixels, corners

SCALES = np.geomspace(0.625, 1.6, 21)
"""Sizes that are tried, as multiples of the true one, which is among them."""


class _Fit(NamedTuple):
    gain: float
    """How much smaller the sum of squared differences is with the object there."""
    side: int
    left: int
    top: int


def find_objects(picture: Image.Image, placed: Sequence[Placed], background: str) -> list[Corners]:
    """Where objects seem to be, in pixels at 96 px; of `placed` names and sizes are used, and not the places.

    The most prominent object is taken out of the picture before the next one is looked for; then each is looked for
    once more without the others. A gradient behind an object is taken as it is at the picture's middle row.
    """
    size = (IMAGE_SIZE, IMAGE_SIZE)
    seen = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX), np.float64)
    ground = background_pixels(background, IMAGE_SIZE).astype(np.float64)
    rest = seen - ground
    colour = ground[IMAGE_SIZE // 2, 0]
    found: dict[int, _Fit] = {}
    while len(found) < len(placed):
        fits = {number: _fit(rest, one, colour) for number, one in enumerate(placed) if number not in found}
        best = max(fits, key=lambda number: fits[number].gain)
        found[best] = fits[best]
        rest -= _drawn(placed[best][0], found[best], colour)
    for number, fit in sorted(found.items()) if len(placed) > 1 else ():
        rest += _drawn(placed[number][0], fit, colour)
        found[number] = _fit(rest, placed[number], colour)
        rest -= _drawn(placed[number][0], found[number], colour)
    return [_corners(one[0], found[number]) for number, one in enumerate(placed)]


def _fit(rest: np.ndarray, placed: Placed, colour: np.ndarray) -> _Fit:
    """The place and size at which an object explains most of what is left of a picture, by correlation."""
    name, side_px, _, _ = placed
    spectrum = np.fft.rfft2(rest, axes=(0, 1))
    best = _Fit(-np.inf, round(side_px), 0, 0)
    for side in sorted({round(float(side_px * scale)) for scale in SCALES}):
        if side > IMAGE_SIZE:
            continue
        drawn = _drawn(name, _Fit(0.0, side, 0, 0), colour)
        product = spectrum * np.fft.rfft2(drawn, axes=(0, 1)).conj()
        correlation = np.fft.irfft2(product, s=rest.shape[:2], axes=(0, 1)).sum(-1)
        places = IMAGE_SIZE - side + 1
        gain = 2 * correlation[:places, :places] - (drawn**2).sum()
        top, left = divmod(int(gain.argmax()), places)
        best = max(best, _Fit(float(gain[top, left]), side, left, top))
    return best


def _drawn(name: str, fit: _Fit, colour: np.ndarray) -> np.ndarray:
    """What an object changes of a background of one colour."""
    inside, alpha = glyph(name, fit.side)
    drawn = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3))
    drawn[fit.top : fit.top + fit.side, fit.left : fit.left + fit.side] = inside - alpha * colour
    return drawn


def _corners(name: str, fit: _Fit) -> Corners:
    x, y = ((start + fit.side / 2) / IMAGE_SIZE for start in (fit.left, fit.top))
    return corners((name, fit.side, x, y))
