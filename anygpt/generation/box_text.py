"""Boxes in generated text: which ids may come, so that every box is whole and in order (see `anygpt.boxes`).

An automaton over characters, since vocabularies cut the text of a box differently: an id may come where each of its
characters may. Its state is the text of the box that is open, so that the second corner can't lie before the first.
"""

from collections.abc import Iterable, Mapping
from functools import cache, cached_property

from anygpt.boxes import DELIMITER, SCALE
from anygpt.prompts.tags import BoxForm
from anygpt.text_tokenizer import TextTokenizer

_OPEN, _CLOSED = "{", "}"
SHORTEST_BOX = len("{<0><0><0><0>}")
"""Ids of the shortest box where every character takes one, which it may, as a byte if there is no piece for it."""
_LONGEST_WAY = 2 * SHORTEST_BOX + len(DELIMITER)
"""With more ids than this left, any id that may come at all leaves enough of them."""


class BoxPieces:
    """The text ids of a vocabulary as far as they matter to boxes."""

    def __init__(self, text: TextTokenizer, ids: Iterable[int]) -> None:
        """`ids` are the text ids that may be generated."""
        self._strings = {index: _characters(text, index) for index in ids}

    @cached_property
    def inside(self) -> Mapping[int, str]:
        """The ids that may occur in boxes and between them, with their characters."""
        letters = set("{<0123456789>} " + DELIMITER)
        return {index: string for index, string in self._strings.items() if string and set(string) <= letters}

    @cached_property
    def opening(self) -> Mapping[int, str]:
        """The ids that open a box, whatever else they hold."""
        return {index: string for index, string in self._strings.items() if _OPEN in string}

    @cached_property
    def plain(self) -> frozenset[int]:
        """All others."""
        return frozenset(self._strings) - frozenset(self.opening)

    def characters(self, index: int) -> str:
        return self._strings[index]


class BoxText:
    """The state of one answer's text."""

    def __init__(self, pieces: BoxPieces, form: BoxForm) -> None:
        self._pieces = pieces
        self._is_alone = form == "alone"
        self._state = ""
        """The open box; else `}` and what has come of a delimiter, behind a box of those that stand alone; else what
        came before the first of these."""

    @property
    def due(self) -> int:
        """Ids that have to come, at least, before the text may end."""
        return self._rest(self._state)

    @property
    def is_free(self) -> bool:
        """Whether any text may come next, a box's beginning included."""
        return not self._is_alone and not self._state

    def push(self, index: int) -> None:
        """Take the text id that was drawn."""
        state = self._after(self._state, self._pieces.characters(index))
        assert state is not None, (self._state, index)
        self._state = state

    def allowed(self, room: int) -> tuple[frozenset[int], frozenset[int]]:
        """The ids that may come next where `room` ids are left, this one included: of all plain ones (or none), and of
        those that matter to boxes."""
        known = self._pieces.opening if self.is_free else self._pieces.inside
        special = frozenset(index for index, string in known.items() if self._leads_on(string, room))
        return (self._pieces.plain if self.is_free and room else frozenset()), special

    def _leads_on(self, string: str, room: int) -> bool:
        state = self._after(self._state, string)
        return state is not None and (room > _LONGEST_WAY or self._rest(state) < room)

    def _after(self, state: str, string: str) -> str | None:
        """The state after some more characters, None where they can't come."""
        for char in string:
            if state.startswith(_OPEN):
                following = _in_box(state + char)
                if following == _CLOSED and not self._is_alone:
                    following = ""
            elif self._is_alone:
                following = _between(state, char)
            else:
                following = _OPEN if char == _OPEN else ""
            if following is None:
                return None
            state = following
        return state

    def _rest(self, state: str) -> int:
        if state.startswith(_OPEN):
            return _box_rest(state) or 0
        if not self._is_alone or state == _CLOSED:
            return 0
        return (len(DELIMITER) + 1 - len(state) if state.startswith(_CLOSED) else 0) + SHORTEST_BOX


def _characters(text: TextTokenizer, index: int) -> str:
    """The characters of a piece; a byte that is no character by itself counts as some other one."""
    piece = text.piece(index)
    if text.is_byte(index):
        value = int(piece[3:5], 16)
        return chr(value) if value < 128 else "\N{REPLACEMENT CHARACTER}"
    return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")


def _in_box(text: str) -> str | None:
    """The state where a box has so much text; `}` where that is all of it."""
    rest = _box_rest(text)
    return None if rest is None else text if rest else _CLOSED


def _between(state: str, char: str) -> str | None:
    """The state before the first box and between boxes that stand alone."""
    if state in ("", " ", _CLOSED + DELIMITER):
        return _OPEN if char == _OPEN else " " if not state and char == " " else None
    behind = state + char
    return behind if (_CLOSED + DELIMITER).startswith(behind) else None


def _box_rest(text: str) -> int | None:
    """Characters that the shortest whole box with this beginning still lacks; None where there is no such box."""
    opening, *numbers = text.split("<")
    if opening != _OPEN or len(numbers) > 4:
        return None
    values: list[int] = []
    rest = 0
    for place, number in enumerate(numbers):
        digits, mark, behind = number.partition(">")
        is_last = place + 1 == len(numbers)
        if behind and (behind != _CLOSED or place != 3):
            return None
        least = values[place - 2] if place > 1 else 0
        value = _shortest(digits, least, whole=bool(mark))
        if value is None or not (mark or is_last):
            return None
        rest += len(str(value)) - len(digits) + (not mark)
        values.append(value)
        if behind:
            return 0
    for place in range(len(values), 4):
        least = values[place - 2] if place > 1 else 0
        values.append(least)
        rest += len(f"<{least}>")
    return rest + 1


@cache  # there are some ten thousand
def _shortest(digits: str, least: int, *, whole: bool) -> int | None:
    """Of the numbers from `least` that begin so (or are this) the shortest, and of these the smallest, which leaves the
    most for what follows; None where there is none."""
    if whole:
        is_number = digits.isdecimal() and str(int(digits)) == digits and least <= int(digits) <= SCALE
        return int(digits) if is_number else None
    fitting = [value for value in range(least, SCALE + 1) if str(value).startswith(digits)]
    return min(fitting, key=lambda value: (len(str(value)), value), default=None)
