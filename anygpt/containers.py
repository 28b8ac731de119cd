"""Whether a sound file is whole, read from its container: libsndfile decodes what is left of a cut file in silence.

It also takes the length of an MP3 without a frame count from its first bit rate, so those are counted here. And which
files hold videos.
"""

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

_MP3_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III by header index: MPEG-1, and MPEG-2 with 2.5 (ISO 11172-3 and 13818-3)."""
_MP3_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_RESYNC_BYTES = 1 << 16
_TRAILERS = (b"TAG", b"APETAGEX", b"LYRICS", b"ID3", b"\x00\x00\x00")
_VIDEOS = (
    (re.compile(rb"....(?:ftyp|moov|mdat|free|skip|wide)", re.DOTALL), "mov"),
    (re.compile(rb"\x1aE\xdf\xa3"), "matroska"),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), "avi"),
)
# Encoders disagree on whether the frame with the count counts itself, and some on the last, flushing one.
_COUNT_SLACK_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class Mp3Frames:
    """The frames of an MP3 file as they lie in it."""

    start: int
    """Byte where the first frame begins, after any ID3 tag."""
    header: bytes
    """The four header bytes of the first frame."""
    frames: int
    """Whole frames of sound, the one that only carries the count left out."""
    samples_per_frame: int
    rate_hz: int
    promised: int | None
    """Frames that a Xing, Info or VBRI header states, if there is one."""
    is_cut_off: bool

    @property
    def duration_s(self) -> float:
        return self.frames * self.samples_per_frame / self.rate_hz

    def counting_frame(self) -> bytes:
        """An Info frame with the true count, to be put before the first frame of a file that has none."""
        header = _Mp3Header.parse(self.header)
        assert header is not None
        # The highest bit rate gives room; without padding; without CRC, which would shift the layout.
        fields = bytes([self.header[0], self.header[1] | 1, 0xE0 | self.header[2] & 0x0D, self.header[3]])
        filled = _Mp3Header.parse(fields)
        assert filled is not None
        info = b"Info" + (1).to_bytes(4, "big") + self.frames.to_bytes(4, "big")
        return (fields + bytes(filled.side_info_bytes) + info).ljust(filled.length, b"\0")


@dataclass(frozen=True)
class _Mp3Header:
    length: int
    rate_hz: int
    samples_per_frame: int
    side_info_bytes: int

    @classmethod
    def parse(cls, data: bytes) -> "_Mp3Header | None":
        """The meaning of four header bytes, or None where they are no layer III header."""
        if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE6 != 0xE2:
            return None
        version, kbps_index, rate_index = data[1] >> 3 & 3, data[2] >> 4, data[2] >> 2 & 3
        if version == 1 or kbps_index in (0, 15) or rate_index == 3:
            return None
        is_mpeg1 = version == 3
        rate_hz = _MP3_RATES_HZ[version][rate_index]
        bits_per_s = _MP3_KBPS[1 if is_mpeg1 else 2][kbps_index] * 1000
        length = (144 if is_mpeg1 else 72) * bits_per_s // rate_hz + (data[2] >> 1 & 1)
        is_mono = data[3] >> 6 == 3
        side_info_bytes = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
        return cls(length, rate_hz, 1152 if is_mpeg1 else 576, side_info_bytes)


def scan_mp3(path: Path, max_duration_s: float) -> Mp3Frames | None:
    """Count the frames of an MP3 file without decoding; None for any other kind of file.

    Stops counting once the sound is longer than `max_duration_s`, where `is_cut_off` is then left False.
    """
    with open(path, "rb") as file:
        head = file.read(10)
        if not (head[:3] == b"ID3" or _Mp3Header.parse(head)):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _scan(data, _after_id3(head), max_duration_s)


def wav_is_cut_off(path: Path) -> bool:
    """Whether a RIFF WAV file ends before the sound that its header announces (False for other kinds of file)."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        size = file.seek(0, os.SEEK_END)
        position = 12
        while position + 8 <= size:
            file.seek(position)
            name, length = file.read(4), int.from_bytes(file.read(4), "little")
            if name == b"data":
                # Programs that write to a pipe can't go back to fill the length in and leave one of these.
                is_unknown = length == 0 or length >= 0x7FFF_0000
                return not is_unknown and position + 8 + length > size
            position += 8 + length + length % 2
    return False


def ogg_is_cut_off(path: Path) -> bool:
    """Whether an Ogg file ends within a page (RFC 3533, section 6; False for other kinds of file)."""
    with open(path, "rb") as file:
        if file.read(4) != b"OggS":
            return False
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * 65_307))  # a page has at most 65,307 bytes
        tail = file.read()
    page = tail.rfind(b"OggS\x00")
    if page < 0 or len(tail) < page + 27 or len(tail) < page + 27 + tail[page + 26]:
        return True
    segments = tail[page + 26]
    end = page + 27 + segments + sum(tail[page + 27 : page + 27 + segments])
    is_last = bool(tail[page + 5] & 0x04)
    return end > len(tail) or (end < len(tail) and not is_last)


def video_format(path: Path) -> str | None:
    """What FFmpeg calls the container of a video, by its opening bytes; None for other files, and for a GIF.

    FFmpeg's own guess takes text for video, and opens the files that a playlist names.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    return next((name for magic, name in _VIDEOS if magic.match(head)), None)


def is_gif(path: Path) -> bool:
    """Whether a file is a GIF by its opening bytes."""
    with open(path, "rb") as file:
        return file.read(6) in (b"GIF87a", b"GIF89a")


def _after_id3(head: bytes) -> int:
    """Where an ID3v2 tag at the start of the file ends: ten bytes of header, then a size in four 7-bit bytes."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _scan(data: mmap.mmap, position: int, max_duration_s: float) -> Mp3Frames | None:
    start = _find_frame(data, position)
    if start is None:
        return None
    first = _Mp3Header.parse(data[start : start + 4])
    assert first is not None
    promised = _stated_frames(data[start : start + 200], first)
    max_frames = max_duration_s * first.rate_hz / first.samples_per_frame
    frames, position, is_cut_off = 0, start if promised is None else start + first.length, False
    while position < len(data) and frames <= max_frames:
        header = _Mp3Header.parse(data[position : position + 4])
        if header is None:
            if data[position : position + 8].startswith(_TRAILERS):
                break
            found = _find_frame(data, position + 1)
            if found is None:
                break
            position = found
            continue
        if position + header.length > len(data):
            is_cut_off = True
            break
        frames, position = frames + 1, position + header.length
    if promised is not None:
        is_cut_off = frames < promised - _COUNT_SLACK_FRAMES and frames <= max_frames
    return Mp3Frames(
        start=start,
        header=data[start : start + 4],
        frames=frames,
        samples_per_frame=first.samples_per_frame,
        rate_hz=first.rate_hz,
        promised=promised,
        is_cut_off=is_cut_off,
    )


def _find_frame(data: mmap.mmap, position: int) -> int | None:
    """The next header from `position` on that is followed by another one, or by the end of the file."""
    limit = position + _RESYNC_BYTES
    while (position := data.find(b"\xff", position, limit)) >= 0:
        header = _Mp3Header.parse(data[position : position + 4])
        if header is not None:
            follower = position + header.length
            if follower >= len(data) or _Mp3Header.parse(data[follower : follower + 4]) is not None:
                return position
        position += 1
    return None


def _stated_frames(frame: bytes, header: _Mp3Header) -> int | None:
    """The frame count of a Xing, Info or VBRI header frame, or None for a frame of sound."""
    place = 4 + header.side_info_bytes
    if frame[place : place + 4] in (b"Xing", b"Info") and frame[place + 7] & 1:
        return int.from_bytes(frame[place + 8 : place + 12], "big")
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big")
    return None
