"""Boxes as text and back, in percents and pixels, and on a picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anygpt.boxes import COLOURS, Box, draw_boxes, find_boxes, format_boxes, format_phrase, overlap, parse_box
from anygpt.errors import AnyGPTError
from anygpt.prompts.tags import TAGS, box_form, find_tag, tagged

PERCENT = st.integers(0, 100)


@st.composite
def boxes(draw: st.DrawFn, phrase: str = "") -> Box:
    (x1, x2), (y1, y2) = (sorted(draw(st.tuples(PERCENT, PERCENT))) for _ in range(2))
    return Box(x1, y1, x2, y2, phrase=phrase)


@given(st.lists(boxes(), min_size=1, max_size=4))
def test_text_and_back(wanted: list[Box]) -> None:
    assert parse_box(str(wanted[0])) == wanted[0]
    assert find_boxes(format_boxes(wanted)) == tuple(wanted)
    assert find_boxes(f"It is at {format_boxes(wanted)}.") == tuple(wanted)


@given(st.lists(st.tuples(st.sampled_from(["a red apple", "grapes"]), st.lists(boxes(), min_size=1, max_size=3))))
def test_phrases_and_back(wanted: list[tuple[str, list[Box]]]) -> None:
    text = " left of ".join(format_phrase(phrase, each) for phrase, each in wanted)
    expected = [Box(*box.values, phrase=phrase) for phrase, each in wanted for box in each]
    assert find_boxes(f"{text} on a table") == tuple(expected)


def test_a_phrase_counts_for_the_boxes_right_behind_it() -> None:
    one, other = Box(1, 2, 3, 4), Box(5, 6, 7, 8)
    assert [box.phrase for box in find_boxes(f"<p>a dog</p> {one}<delim>{other}")] == ["a dog", "a dog"]
    assert [box.phrase for box in find_boxes(f"<p>a dog</p> {one} and {other}")] == ["a dog", ""]
    assert [box.phrase for box in find_boxes(f"<p>a dog</p> is not {one}")] == [""]


@pytest.mark.parametrize("text", ["", "{<1><2><3>}", "{<1><2><3><4>", "<1><2><3><4>", "{1,2,3,4}", "{<1><2><3><1000>}"])
def test_what_is_no_box(text: str) -> None:
    assert find_boxes(text) == ()
    with pytest.raises(AnyGPTError, match="is no box; expected such as"):
        parse_box(text)


def test_numbers_that_make_no_box() -> None:
    with pytest.raises(AnyGPTError, match="from 0 to 100"):
        parse_box("{<1><2><3><101>}")
    with pytest.raises(AnyGPTError, match="ends before it begins"):
        Box(50, 0, 40, 10)
    assert find_boxes("{<50><0><40><10>} {<0><0><101><1>} {<1><1><2><2>}") == (Box(1, 1, 2, 2),)


@given(boxes(), st.integers(100, 4000), st.integers(100, 4000))
def test_pixels_and_back(box: Box, width: int, height: int) -> None:
    assert Box.from_pixels(box.pixels((width, height)), (width, height)) == box


def test_pixels_beyond_the_picture_are_cut_off() -> None:
    assert Box.from_pixels((-5, 10, 130, 50), (100, 50), "a dog") == Box(0, 20, 100, 100, phrase="a dog")


def test_overlap() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == overlap((3, 3, 3, 3), (3, 3, 3, 3)) == 0
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0


@given(boxes(), boxes())
def test_overlap_is_a_share_and_the_same_both_ways(one: Box, other: Box) -> None:
    found = overlap(one.pixels((100, 100)), other.pixels((100, 100)))
    assert 0 <= found <= 1 and found == overlap(other.pixels((100, 100)), one.pixels((100, 100)))


def test_boxes_are_drawn_where_they_are() -> None:
    picture = Image.new("RGB", (1000, 500), "white")
    drawn = draw_boxes(picture, [Box(10, 20, 50, 60), Box(60, 60, 100, 100, phrase="a dog")])
    assert drawn.size == picture.size and picture.getpixel((100, 100)) == (255, 255, 255)
    pixels = np.asarray(drawn)
    red = (pixels == tuple(bytes.fromhex(COLOURS[0][1:]))).all(-1)
    rows, columns = np.nonzero(red)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (100, 100, 499, 299)
    assert not red[110:290, 110:490].any()
    green = (pixels == tuple(bytes.fromhex(COLOURS[1][1:]))).all(-1)
    rows, columns = np.nonzero(green)
    assert columns.min() == 600 and columns.max() == 999 and rows.max() == 499 and 260 < rows.min() < 300


def test_small_pictures_are_enlarged_and_edges_stand_what_there_is() -> None:
    drawn = draw_boxes(Image.new("L", (96, 48)), [Box(0, 0, 0, 0, phrase="x" * 80), Box(100, 100, 100, 100)])
    assert drawn.size == (768, 384) and drawn.mode == "RGB"


def test_tags() -> None:
    assert [find_tag(tagged(tag, "what?")) for tag in TAGS] == [find_tag(f"[{tag}]") for tag in TAGS] == list(TAGS)
    assert find_tag(" [refer] a dog") == "refer"
    for text in ("refer a dog", "a [refer] dog", "[refer]dog", "[Refer] a dog", "[other] a dog", ""):
        assert find_tag(text) is box_form(text) is None
    assert box_form("[refer] a dog") == "alone"
    assert box_form("[grounding] a dog") == box_form("[detection] dog") == "amid text"
    assert box_form("[identify] {<1><2><3><4>}") is box_form("[vqa] what?") is box_form("[caption]") is None
