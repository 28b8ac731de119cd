"""Pictures and sounds: reading, checking and writing files. Nothing here knows about codes.

Arrays: `wave` is float32 [channels, samples] in [-1, 1]. The libraries for sound are imported where a sound is read,
resampled or written: a command that makes a picture starts without them.
"""

import contextlib
import errno
import io
import math
import os
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from anygpt import containers
from anygpt.errors import AnyGPTError, MediaError

MIN_SIDE_PX = 8
MAX_PIXELS = 80_000_000
MIN_DURATION_S = 0.02
"""One frame of the 50 Hz tokenizers."""
MAX_DURATION_S = 600.0
MAX_CHANNELS = 8
RATES_HZ = (2_000, 768_000)
PART_SLACK_S = 0.1
"""Lists of parts round their seconds, so that the last part may seem to end after the recording."""
SILENCE_PEAK = 1e-3
"""A recording whose loudest sample stays below this (-60 dB of full scale) counts as silent."""


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound: `wave` float32 [channels, samples] in [-1, 1], at `rate_hz` samples per second."""

    wave: np.ndarray
    rate_hz: int

    def __post_init__(self) -> None:
        assert self.wave.ndim == 2 and self.wave.dtype == np.float32, (self.wave.shape, self.wave.dtype)
        assert self.rate_hz > 0, self.rate_hz

    @property
    def channels(self) -> int:
        return int(self.wave.shape[0])

    @property
    def samples(self) -> int:
        return int(self.wave.shape[1])

    @property
    def duration_s(self) -> float:
        return self.samples / self.rate_hz

    def mono(self, how: Literal["first", "mean"] = "mean") -> "Audio":
        """One channel: the first one, or the mean of all."""
        if self.channels == 1:
            return self
        wave = self.wave[:1] if how == "first" else self.wave.mean(axis=0, keepdims=True, dtype=np.float32)
        return Audio(np.ascontiguousarray(wave), self.rate_hz)

    def resample(self, rate_hz: int) -> "Audio":
        """The same sound at another rate (soxr, high quality), clipped to [-1, 1] where the filter overshoots."""
        if rate_hz == self.rate_hz:
            return self
        import soxr

        wave = soxr.resample(np.ascontiguousarray(self.wave.T), self.rate_hz, rate_hz, quality="HQ")
        return Audio(np.ascontiguousarray(np.clip(wave.T, -1.0, 1.0), dtype=np.float32), rate_hz)


def load_audio(
    path: Path | str,
    *,
    max_duration_s: float = MAX_DURATION_S,
    min_duration_s: float = MIN_DURATION_S,
    reject_silence: bool = False,
    part_s: tuple[float, float] | None = None,
) -> Audio:
    """Read a WAV, FLAC, OGG or MP3 file of any rate; channels are kept. `part_s` reads from one second to another.

    Raises MediaError with one line for a path that is missing, a directory or empty, for a file that is no sound or
    is cut off, for non-finite samples, and for a length outside [`min_duration_s`, `max_duration_s`] seconds (judged
    by the header, before decoding). With `reject_silence` also for a recording without a sample above -60 dB.
    """
    path = Path(path).expanduser()
    check_file(path)
    wave, rate_hz = _decode(path, max_duration_s, part_s)
    if wave.shape[1] < max(1, min_duration_s * rate_hz):
        got = f"{wave.shape[1] / rate_hz:.3g} s"
        raise MediaError(f"{shown(path)}: holds {got} of sound, expected at least {min_duration_s:g} s")
    if not np.isfinite(wave).all():
        raise MediaError(f"{shown(path)}: holds samples that are not finite numbers; export it again as 16-bit WAV")
    audio = Audio(np.ascontiguousarray(np.clip(wave, -1.0, 1.0), dtype=np.float32), rate_hz)
    if reject_silence and is_silent(audio):
        raise MediaError(f"{shown(path)}: the recording is silent (nothing louder than -60 dB); check the microphone")
    return audio


def is_silent(audio: Audio) -> bool:
    """Whether no sample, a constant offset aside, is louder than -60 dB of full scale."""
    if audio.samples == 0:
        return True
    centred = audio.wave - audio.wave.mean(axis=1, keepdims=True, dtype=np.float64)
    return bool(np.abs(centred).max() < SILENCE_PEAK)


def load_image(path: Path | str, *, max_pixels: int = MAX_PIXELS, min_side_px: int = MIN_SIDE_PX) -> Image.Image:
    """Read a picture as RGB, turned upright by its EXIF tag, transparency on white, first frame of an animation.

    Raises MediaError with one line for a path that is missing, a directory or empty, for a file that is no picture or
    is cut off, for a side under `min_side_px`, and for more than `max_pixels` (judged by the header, before decoding).
    """
    path = Path(path).expanduser()
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large or slightly odd files; the checks here decide
            with Image.open(path) as image:
                check_size(path, image.size, max_pixels, min_side_px)
                image.load()
                return _upright_rgb(image)
    except AnyGPTError:
        raise
    except UnidentifiedImageError:
        raise MediaError(f"{shown(path)}: not a picture that can be read; expected JPEG, PNG, WebP or alike") from None
    except Image.DecompressionBombError:
        limit = f"{max_pixels / 1e6:g} million pixels"
        raise MediaError(f"{shown(path)}: more than the limit of {limit}; scale it down first") from None
    except Exception as error:  # Pillow's readers raise whatever comes up on damaged data
        reason = " ".join(str(error).split()) or error.__class__.__name__
        raise MediaError(f"{shown(path)}: the picture is damaged or cut off ({reason})") from None


def kind_of_file(path: Path | str) -> Literal["image", "audio", "video"]:
    """What a file holds by its opening bytes, whatever its name, for a GIF a picture; nothing is decoded.

    Raises MediaError for a path that is missing, a directory or empty, and for a file that is nothing of these.
    """
    path = Path(path).expanduser()
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path).close()
        return "image"
    except Image.DecompressionBombError:
        return "image"
    except Exception:  # Pillow's readers raise whatever comes up on other data
        pass
    import soundfile

    try:
        soundfile.SoundFile(path).close()
    except (soundfile.SoundFileError, TypeError):  # TypeError: the name ends in .raw
        if containers.video_format(path) is not None:
            return "video"
        raise MediaError(f"{shown(path)}: neither a picture nor a sound that can be read") from None
    return "audio"


def save_audio(path: Path | str, audio: Audio) -> Path:
    """Write 16-bit WAV, atomically, and return the path. Raises AnyGPTError when it can't be written there."""
    import soundfile

    path = Path(path)
    # 32768 is what reading divides by, so that 16-bit sound survives a round trip unchanged.
    samples = np.clip(np.round(audio.wave.T * 32768.0), -32768, 32767).astype(np.int16)
    content = io.BytesIO()  # in memory first: libsndfile reports a full disk as "System error", and not as an OSError
    soundfile.write(content, samples, audio.rate_hz, format="WAV", subtype="PCM_16")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
    return path


def save_image(path: Path | str, image: Image.Image, *, quality: int = 95) -> Path:
    """Write a JPEG (or PNG where the name ends in .png), atomically, and return the path.

    Raises AnyGPTError when it can't be written there.
    """
    path = Path(path)
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".png":
            image.convert("RGB").save(temporary, format="PNG")
        else:
            image.convert("RGB").save(temporary, format="JPEG", quality=quality)
    return path


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it becomes `path` when the block ends without an error.

    Makes missing parent folders. Readers see the old file or the whole new one, also after a crash.
    Raises AnyGPTError when the folder can't be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp{path.suffix[:20]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EISDIR):
            raise _unwritable(path, error) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def ensure_writable(folder: Path | str) -> Path:
    """Make `folder` if needed and prove that a file can be written there, before long work is spent on one.

    Raises AnyGPTError naming the folder and the reason.
    """
    folder = Path(folder).expanduser()
    probe = folder / f".write-test.{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from None
    return folder


def _unwritable(path: Path, error: OSError | ValueError) -> AnyGPTError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return AnyGPTError(f"{shown(path)}: can't be written ({reason}); choose another output folder")


def shown(path: Path) -> str:
    """The path as one line of bounded length: what a user typed as a path may be anything."""
    text = "".join(char if char.isprintable() else "?" for char in str(path))
    return text if len(text) <= 300 else f"{text[:140]}…{text[-140:]}"


def check_file(path: Path) -> None:
    """Raise MediaError with one line for a path that is missing, no regular file, unreadable or empty."""
    try:
        if path.is_dir():
            raise MediaError(f"{shown(path)}: is a directory, expected a file")
        if not path.exists():
            raise MediaError(f"{shown(path)}: no such file")
        if not path.is_file():
            raise MediaError(f"{shown(path)}: not a regular file")
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except AnyGPTError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MediaError(f"{shown(path)}: can't be read ({reason})") from None
    if size == 0:
        raise MediaError(f"{shown(path)}: the file is empty (0 bytes)")


def _decode(path: Path, max_duration_s: float, part_s: tuple[float, float] | None = None) -> tuple[np.ndarray, int]:
    """(wave float32 [channels, samples], rate), or MediaError; nothing is decoded before the container is checked."""
    import soundfile

    source: Path | io.BytesIO = path
    mp3 = containers.scan_mp3(path, max_duration_s if part_s is None else math.inf)
    if mp3 is not None:
        _check_duration(path, mp3.duration_s if part_s is None else 0.0, max_duration_s)
        if mp3.promised is None and not mp3.is_cut_off:
            source = io.BytesIO(mp3.counting_frame() + path.read_bytes()[mp3.start :])
    if (mp3 is not None and mp3.is_cut_off) or containers.wav_is_cut_off(path) or containers.ogg_is_cut_off(path):
        raise _cut_off(path)
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.SoundFileError, TypeError):  # TypeError: the name ends in .raw
        raise MediaError(f"{shown(path)}: not a sound file that can be read; expected WAV, FLAC, OGG or MP3") from None
    with file:
        rate_hz, promised = int(file.samplerate), int(file.frames)
        low, high = RATES_HZ
        if not low <= rate_hz <= high:
            raise MediaError(f"{shown(path)}: sample rate {rate_hz} Hz, expected {low} to {high} Hz")
        if file.channels > MAX_CHANNELS:
            raise MediaError(f"{shown(path)}: {file.channels} channels, expected at most {MAX_CHANNELS}")
        if part_s is not None:
            if part_s[1] > promised / rate_hz + PART_SLACK_S:
                lasts = f"lasts {promised / rate_hz:.2f} s"
                raise MediaError(f"{shown(path)}: {lasts}, but a part to second {part_s[1]:.2f} is asked for")
            first, last = (min(round(second * rate_hz), promised) for second in part_s)
            promised = last - first
        _check_duration(path, promised / rate_hz, max_duration_s)
        try:
            if part_s is not None:
                file.seek(first)
            wave = file.read(promised if part_s is not None else -1, dtype="float32", always_2d=True).T
        except soundfile.SoundFileError:
            raise _cut_off(path) from None
    if mp3 is None and wave.shape[1] < promised:
        raise _cut_off(path)
    return wave, rate_hz


def _check_duration(path: Path, duration_s: float, max_duration_s: float) -> None:
    if duration_s > max_duration_s:
        limit = f"the limit is {max_duration_s:g} s"
        raise MediaError(f"{shown(path)}: {duration_s:.0f} s of sound or more, {limit}; cut it first")


def _cut_off(path: Path) -> MediaError:
    return MediaError(f"{shown(path)}: the sound file is damaged or cut off; copy or record it again")


def check_size(path: Path, size: tuple[int, int], max_pixels: int, min_side_px: int = MIN_SIDE_PX) -> None:
    """Raise MediaError for a picture, or frame, of a size (width, height) outside these limits."""
    width, height = size
    if min(width, height) < min_side_px:
        raise MediaError(f"{shown(path)}: {width}x{height} pixels, expected at least {min_side_px} on each side")
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} million"
        raise MediaError(f"{shown(path)}: {width}x{height} pixels, the limit is {limit} in all; scale it down first")


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit grey: a plain conversion would clip instead of scale.
        grey = np.asarray(image, dtype=np.float64)
        image_8bit = Image.fromarray(np.clip(grey / 257.0 + 0.5, 0, 255).astype(np.uint8))
        image_8bit.info = image.info
        image = image_8bit
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
