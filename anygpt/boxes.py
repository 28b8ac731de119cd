"""Boxes in text, as MiniGPT-v2 writes them (Chen et al. 2023): `{<12><3><45><60>}`, percents of width and height.

Several are joined by `<delim>`, and a phrase may stand before them: `<p>a red apple</p> {<12><3><45><60>}`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from anygpt.errors import AnyGPTError

SCALE = 100
DELIMITER = "<delim>"
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
"""Boxes are drawn in these, in turn."""
MIN_DRAWN_PX = 384
"""A smaller picture is enlarged before boxes are drawn, so that lines and words can be told from it."""

_BOX = r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}"
_FOUND = re.compile(rf"<p>(?P<phrase>[^<]*)</p>|{_BOX}")
_JOINT = re.compile(rf"\s*(?:{DELIMITER})?\s*")

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels; right and bottom are where the thing ends."""


@dataclass(frozen=True)
class Box:
    """Left, top, right and bottom in percents of width and height, whole numbers from 0 to 100.

    `phrase` is what is there, where that is known. Raises AnyGPTError for numbers out of range, or right of left.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    phrase: str = ""

    def __post_init__(self) -> None:
        if not all(0 <= value <= SCALE for value in self.values):
            raise AnyGPTError(f"box {self}: expected numbers from 0 to {SCALE}")
        if self.x1 > self.x2 or self.y1 > self.y2:
            raise AnyGPTError(f"box {self}: expected left, top, right, bottom; it ends before it begins")

    def __str__(self) -> str:
        return "{" + "".join(f"<{value}>" for value in self.values) + "}"

    @property
    def values(self) -> tuple[int, int, int, int]:
        return self.x1, self.y1, self.x2, self.y2

    @classmethod
    def of(cls, values: Iterable[int | str], phrase: str = "") -> "Box":
        """The box of four numbers. Raises AnyGPTError as the class does."""
        x1, y1, x2, y2 = map(int, values)
        return cls(x1, y1, x2, y2, phrase)

    @classmethod
    def from_pixels(cls, corners: Corners, size: tuple[int, int], phrase: str = "") -> "Box":
        """The box of pixels in a picture of `size` (width, height), each side at the nearest percent."""
        sides = [
            min(SCALE, max(0, round(corner * SCALE / length))) for corner, length in zip(corners, size * 2, strict=True)
        ]
        return cls.of(sides, phrase)

    def pixels(self, size: tuple[int, int]) -> Corners:
        """The box in pixels of a picture of `size` (width, height)."""
        left, top, right, bottom = (value * length / SCALE for value, length in zip(self.values, size * 2, strict=True))
        return left, top, right, bottom


def parse_box(text: str) -> Box:
    """The box that a text is. Raises AnyGPTError for anything else."""
    match = re.fullmatch(_BOX, text.strip())
    if match is None:
        raise AnyGPTError(f"{text[:60]!r} is no box; expected such as {Box(12, 3, 45, 60)}")
    return Box.of(match.groups())


def find_boxes(text: str) -> tuple[Box, ...]:
    """The boxes in a text in order, each with the phrase that stands before it; what only looks like one is left out.

    A phrase counts for the boxes right behind it, with `<delim>` between them.
    """
    found: list[Box] = []
    phrase, end = "", 0
    for match in _FOUND.finditer(text):
        if not _JOINT.fullmatch(text, end, match.start()):
            phrase = ""
        end = match.end()
        if match["phrase"] is not None:
            phrase = match["phrase"].strip()
            continue
        try:
            found.append(Box.of(match.groups()[1:], phrase))
        except AnyGPTError:
            continue
    return tuple(found)


def format_boxes(boxes: Sequence[Box]) -> str:
    """The boxes joined by `<delim>`; their phrases are left out."""
    return DELIMITER.join(map(str, boxes))


def format_phrase(phrase: str, boxes: Sequence[Box]) -> str:
    """A phrase with its boxes: `<p>a red apple</p> {<12><3><45><60>}`."""
    return f"<p>{phrase}</p> {format_boxes(boxes)}"


def overlap(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 where both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def draw_boxes(picture: Image.Image, boxes: Iterable[Box]) -> Image.Image:
    """A copy of a picture with boxes and their phrases on it, enlarged where it is small."""
    factor = max(1, -(-MIN_DRAWN_PX // min(picture.size)))
    drawn = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(drawn)
    width_px = max(2, min(drawn.size) // 150)
    font_px = max(12, min(drawn.size) // 25)
    font = ImageFont.load_default(font_px)
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        left, top, right, bottom = box.pixels(drawn.size)
        canvas.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width_px)
        if box.phrase:
            at = (left + width_px, max(0.0, top - font_px - width_px))
            canvas.rectangle(canvas.textbbox(at, box.phrase, font=font), fill=colour)
            canvas.text(at, box.phrase, fill="white", font=font)
    return drawn
