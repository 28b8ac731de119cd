"""Where a span that is being generated stands, and which ids may come next in it."""

from collections.abc import Callable, Sequence

from anygpt.blocks import Block
from anygpt.code_strings import sound_frames

TimeIds = Callable[[Block, int], Sequence[int]]
"""From a span that is made of frames and a frame's number (from 0) to the ids of the text before it."""


class OpenSpan:
    """Where a span stands that is codes and nothing else."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.codes = 0

    def allowed(self, least: int, most: int, room: int) -> list[range]:
        """What may come next in a span of so many codes, for whose rest there is room for so many ids."""
        spec = self.block.spec
        levels = spec.num_codebooks
        level = self.codes % levels
        codes, end = self.block.level_ids(level), single(self.block.end_id)
        if level:
            return [codes]
        if spec.frames is not None:
            return [codes] if self.codes < spec.frames * levels else [end]
        if self.codes == 0:
            return [codes]
        if self.codes + levels > most or room < levels + 1:
            return [end]
        if self.codes < least:
            return [codes]
        return merged([codes, end])

    def push(self, index: int) -> bool:
        """Take an id; whether the span is closed by it."""
        if index == self.block.end_id:
            return True
        self.codes += 1
        return False


class OpenParts:
    """Where a span stands that is made of frames, each after its time, and perhaps of a sound that lasts as long.

    Nothing is begun that couldn't be ended: neither a frame nor a sound for which there is no room, in ids or codes.
    """

    def __init__(self, block: Block, time_ids: TimeIds) -> None:
        self.block = block
        self._time_ids = time_ids
        self._frames = self._codes = self._sound_codes = 0
        self._part: OpenSpan | None = None
        self._has_sound = False
        self._forced = self._frame_start

    @property
    def _frame_start(self) -> list[int]:
        """The time of the next frame and its start tag."""
        return [*self._time_ids(self.block, self._frames), self.block.parts[0].start_id]

    def allowed(self, least: int, most: int, room: int) -> list[range]:
        """As in `OpenSpan`; codes are those of all parts."""
        if self._forced:
            return [single(self._forced[0])]
        if self._part is not None:
            return self._part.allowed(self._sound_codes, self._sound_codes, room - 1)
        end = single(self.block.end_id)
        if self._has_sound:
            return [end]
        ways = []
        next_frame = frame_length(self.block, self._time_ids(self.block, self._frames))
        if self._codes + self.block.spec.fewest_codes <= most and room > next_frame:
            ways.append(single(self._frame_start[0]))
        for sound in self.block.parts[1:]:
            codes = self._sound_length(sound)
            if self._codes + codes <= most and room > codes + 2:
                ways.append(single(sound.start_id))
        return merged([*ways, end]) if self._codes >= least or not ways else merged(ways)

    def push(self, index: int) -> bool:
        """As in `OpenSpan`."""
        if self._part is not None:
            if self._part.push(index):
                self._codes += self._part.codes
                self._frames += self._part.block is self.block.parts[0]
                self._part = None
            return False
        if index == self.block.end_id:
            return True
        for sound in self.block.parts[1:]:
            if index == sound.start_id:
                self._part, self._has_sound, self._sound_codes = OpenSpan(sound), True, self._sound_length(sound)
                return False
        self._forced = (self._forced or self._frame_start)[1:]
        if not self._forced:
            self._part = OpenSpan(self.block.parts[0])
        return False

    def _sound_length(self, sound: Block) -> int:
        return sound_frames(self.block.spec, self._frames) * sound.spec.num_codebooks


def open_span(block: Block, time_ids: TimeIds) -> OpenSpan | OpenParts:
    """A span of a modality whose start tag has just come."""
    return OpenParts(block, time_ids) if block.parts else OpenSpan(block)


def frame_length(block: Block, time_ids: Sequence[int]) -> int:
    """Ids of a frame of a span that is made of parts, with its time and tags."""
    return len(time_ids) + 2 + block.spec.fewest_codes


def single(index: int) -> range:
    """A single id as a range."""
    return range(index, index + 1)


def merged(ranges: Sequence[range]) -> list[range]:
    """Sort ranges that don't overlap and join those that touch."""
    joined: list[range] = []
    for ids in sorted(ranges, key=lambda ids: ids.start):
        if joined and joined[-1].stop == ids.start:
            joined[-1] = range(joined[-1].start, ids.stop)
        else:
            joined.append(ids)
    return joined
