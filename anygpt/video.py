"""Videos: reading, checking and writing files. Nothing here knows about codes.

A video is a few frames a second. Files have ten times as many: of those the ones are kept that show at the times
wanted, scaled down, while the file is gone through once, so that memory doesn't grow with what isn't kept. PyAV is
imported where a file needs it; GIFs are Pillow's.
"""

import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anygpt import containers
from anygpt.errors import AnyGPTError, MediaError
from anygpt.media import MAX_PIXELS, Audio, atomic_write, check_file, check_size, is_silent, shown

READ_RATE_HZ = 4.0
"""Frames kept of a second of a file; of these a tokenizer takes those at its own rate."""
MAX_SIDE_PX = 512
"""Frames are kept at this size; no image tokenizer sees more."""
MAX_DURATION_S = 60.0
TIME_SLACK_S = 0.01
"""Times in files are rounded."""
GIF_STEP_MS = 10
_AAC_RATES_HZ = (48000, 44100, 32000, 24000, 22050, 16000)


@dataclass(frozen=True, eq=False)
class Video:
    """Moving pictures: `frames`, RGB and of one size, `rate_hz` of them a second, and perhaps a sound."""

    frames: tuple[Image.Image, ...]
    rate_hz: float
    sound: Audio | None = None

    def __post_init__(self) -> None:
        assert self.frames and self.rate_hz > 0, (len(self.frames), self.rate_hz)
        assert {(frame.mode, frame.size) for frame in self.frames} == {("RGB", self.frames[0].size)}

    @property
    def duration_s(self) -> float:
        """Of the frames; the last one shows as long as the others."""
        return len(self.frames) / self.rate_hz

    def at_rate(self, rate_hz: float) -> "Video":
        """The same video at another rate: at each time the frame that shows then."""
        count = max(1, round(self.duration_s * rate_hz))
        last = len(self.frames) - 1
        chosen = (min(last, int(number / rate_hz * self.rate_hz + 1e-6)) for number in range(count))
        return Video(tuple(self.frames[number] for number in chosen), rate_hz, self.sound)


def load_video(
    path: Path | str,
    *,
    rate_hz: float = READ_RATE_HZ,
    max_duration_s: float = MAX_DURATION_S,
    max_pixels: int = MAX_PIXELS,
) -> Video:
    """Read an MP4, MOV, WebM, MKV, AVI or GIF file as `rate_hz` frames a second, no side above 512 pixels.

    Sound is kept unless it is silent. Raises MediaError with one line for a path that is missing, a directory or
    empty, for a file that is no video or is cut off, for frames under 8 pixels on a side or over `max_pixels`, and for
    more than `max_duration_s` seconds (judged by the header where it says so, else as soon as it shows).
    """
    path = Path(path).expanduser()
    check_file(path)
    try:
        if containers.is_gif(path):
            return _load_gif(path, rate_hz, max_duration_s, max_pixels)
        container = containers.video_format(path)
        if container is None:
            raise MediaError(f"{shown(path)}: not a video that can be read; expected MP4, WebM, AVI or GIF")
        return _load_container(path, container, rate_hz, max_duration_s, max_pixels)
    except AnyGPTError:
        raise
    except Exception as error:  # Pillow's and FFmpeg's readers raise whatever comes up on damaged data
        said = getattr(error, "strerror", None) or str(error)
        reason = " ".join(said.split()) or error.__class__.__name__
        raise MediaError(f"{shown(path)}: the video is damaged or cut off ({reason})") from None


def save_video(path: Path | str, video: Video) -> Path:
    """Write an MP4 (H.264, sound as AAC), or a GIF, which has no sound, where the name ends so; returns the path.

    It is written atomically. H.264 has even sides: an odd one loses a pixel. Raises AnyGPTError when it can't be
    written there.
    """
    path = Path(path)
    content = gif_bytes(video) if path.suffix.lower() == ".gif" else mp4_bytes(video)  # in memory, as sounds are
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def _load_gif(path: Path, rate_hz: float, max_duration_s: float, max_pixels: int) -> Video:
    def shows() -> Iterator[tuple[float, Image.Image]]:
        end_s = 0.0
        for number in itertools.count():
            try:
                image.seek(number)
            except EOFError:
                return
            # A browser shows a frame without a duration for a tenth of a second.
            end_s += (image.info.get("duration") or 100) / 1000
            _check_duration(path, end_s, max_duration_s)
            yield end_s, image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            check_size(path, image.size, max_pixels)
            return Video(_picked(shows(), rate_hz, _gif_frame), rate_hz)


def _load_container(path: Path, name: str, rate_hz: float, max_duration_s: float, max_pixels: int) -> Video:
    av = _av()
    with av.open(str(path), format=name, metadata_errors="ignore") as file:
        stream = next((one for one in file.streams.video if not one.disposition & one.disposition.attached_pic), None)
        if stream is None:
            raise MediaError(f"{shown(path)}: holds no moving pictures")
        check_size(path, (stream.width, stream.height), max_pixels)
        if file.duration is not None:
            _check_duration(path, file.duration / 1_000_000, max_duration_s)
        step_s = float(1 / stream.average_rate) if stream.average_rate else 1 / rate_hz
        count = 0

        def shows() -> Iterator[tuple[float, Any]]:
            nonlocal count
            first_s = next_s = 0.0
            before: Any = None
            for frame in file.decode(stream):
                time_s = next_s if frame.time is None else frame.time
                if before is None:
                    first_s = time_s
                else:
                    _check_duration(path, time_s - first_s, max_duration_s)
                    yield time_s - first_s, before
                before, next_s = frame, time_s + step_s
                count += 1
            if before is not None:
                yield next_s - first_s, before

        frames = _picked(shows(), rate_hz, _container_frame)
        if count + 1 < stream.frames:
            raise MediaError(f"{shown(path)}: the video is cut off after {count} of {stream.frames} frames")
        has_sound = bool(file.streams.audio)
    if not frames:
        raise MediaError(f"{shown(path)}: the video is damaged or cut off (it has no frames)")
    return Video(frames, rate_hz, _load_sound(path, name, max_duration_s) if has_sound else None)


def _picked(
    shows: Iterable[tuple[float, Any]], rate_hz: float, picture: Callable[[Any], Image.Image]
) -> tuple[Image.Image, ...]:
    """Of frames, each with the time until which it shows, those that show at the multiples of 1 / `rate_hz` seconds."""
    frames: list[Image.Image] = []
    for end_s, frame in shows:
        due = max(1, math.ceil((end_s - TIME_SLACK_S) * rate_hz)) - len(frames)
        if due > 0:
            frames += [picture(frame)] * due
    return tuple(frame if frame.size == frames[0].size else frame.resize(frames[0].size) for frame in frames)


def _gif_frame(image: Image.Image) -> Image.Image:
    frame = image.convert("RGBA")
    white = Image.new("RGBA", frame.size, (255, 255, 255, 255))
    frame = Image.alpha_composite(white, frame).convert("RGB")
    frame.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX)
    return frame


def _container_frame(frame: Any) -> Image.Image:
    scale = min(1.0, MAX_SIDE_PX / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    picture = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _load_sound(path: Path, name: str, max_duration_s: float) -> Audio | None:
    """The first sound of a file, of one or two channels at its own rate; None where it is silent."""
    av = _av()
    parts: list[np.ndarray] = []
    with av.open(str(path), format=name, metadata_errors="ignore") as file:
        stream = file.streams.audio[0]
        rate_hz = stream.rate
        layout = "mono" if stream.channels == 1 else "stereo"
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate_hz)
        samples = 0
        for frame in itertools.chain(file.decode(stream), [None]):
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray())
                samples += part.samples
                _check_duration(path, samples / rate_hz, max_duration_s + 1)
    if not samples:
        return None
    wave = np.clip(np.nan_to_num(np.concatenate(parts, axis=1)), -1.0, 1.0)
    sound = Audio(np.ascontiguousarray(wave, dtype=np.float32), rate_hz)
    return None if is_silent(sound) else sound


def gif_bytes(video: Video) -> bytes:
    """A video as GIF, without its sound."""
    content = io.BytesIO()
    # Times are whole hundredths of a second: rounded at the ends of frames, so that they don't drift.
    ends = [round((number + 1) / video.rate_hz * 1000 / GIF_STEP_MS) for number in range(len(video.frames))]
    durations = [(end - start) * GIF_STEP_MS for start, end in zip([0, *ends], ends, strict=False)]
    first, *others = (frame.quantize(256, method=Image.Quantize.MEDIANCUT) for frame in video.frames)
    first.save(content, format="GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=False)
    return content.getvalue()


def mp4_bytes(video: Video) -> bytes:
    """A video as MP4: H.264, and AAC for its sound."""
    av = _av()
    content = io.BytesIO()
    rate = Fraction(video.rate_hz).limit_denominator(1000)
    width, height = (max(2, side - side % 2) for side in video.frames[0].size)
    with av.open(content, "w", format="mp4") as file:
        pictures = file.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium", "threads": "1"})
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        sound = video.sound
        if sound is not None:
            rate_hz = next((rate for rate in sorted(_AAC_RATES_HZ) if rate >= sound.rate_hz), max(_AAC_RATES_HZ))
            wave = sound.resample(rate_hz).wave[:2]
            waves = file.add_stream("aac", rate=rate_hz, layout="mono" if len(wave) == 1 else "stereo")
        for number, picture in enumerate(video.frames):
            frame = av.VideoFrame.from_image(picture.crop((0, 0, width, height)))
            frame.pts, frame.time_base = number, 1 / rate
            file.mux(pictures.encode(frame))
        file.mux(pictures.encode(None))
        if sound is not None:
            for start in range(0, wave.shape[1], 1024):
                part = np.ascontiguousarray(wave[:, start : start + 1024])
                block = av.AudioFrame.from_ndarray(part, format="fltp", layout=waves.layout.name)
                block.pts, block.rate, block.time_base = start, rate_hz, Fraction(1, rate_hz)
                file.mux(waves.encode(block))
            file.mux(waves.encode(None))
    return content.getvalue()


def _check_duration(path: Path, duration_s: float, max_duration_s: float) -> None:
    if duration_s > max_duration_s + TIME_SLACK_S:
        limit = f"the limit is {max_duration_s:.3g} s"
        raise MediaError(f"{shown(path)}: {duration_s:.1f} s of video or more, {limit}; cut it first")


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise MediaError("videos other than GIF need PyAV; install it with: pip install 'anygpt[video]'") from None
    av.logging.set_level(None)
    return av
