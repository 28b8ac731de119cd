"""Media as requests carry them: data URLs, base64 and uploads in, base64 and files of several formats out.

Everything is checked by size and header before it is decoded. No path and no address of a request is ever opened,
but for remote media where the server allows them.
"""

import base64
import binascii
import hashlib
import io
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import soxr
from PIL import Image
from torch import Tensor

from anygpt.errors import MediaError
from anygpt.media import Audio, load_audio, load_image
from anygpt.serving.remote import fetch
from anygpt.video import Video

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

PICTURE_MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM", re.DOTALL)
"""PNG, JPEG, GIF, WebP, BMP: Pillow's other readers are not for strangers' files."""
SOUND_CONTAINERS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "MPEG")
PCM_RATE_HZ = 24_000
"""Of headerless sound (`pcm`, `pcm16`), as OpenAI's clients expect it."""
KEPT_CODES = 512
_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[\w.+\"-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What media a server takes."""

    max_bytes: int = 20_000_000
    """Of one file."""
    max_pixels: int = 40_000_000
    max_samples: int = 30_000_000
    """Of one sound, over all channels."""
    max_voice_s: float = 30.0
    allow_remote: bool = False
    remote_timeout_s: float = 15.0


class MediaReader:
    """Turns what requests carry into codes and sounds for one model. Its methods block, and may run in any thread."""

    def __init__(self, model: "AnyGPT", limits: MediaLimits) -> None:
        self._model = model
        self._limits = limits
        self._codes: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def from_url(self, url: str, where: str) -> bytes:
        """The bytes behind a data URL, or a remote one where that is allowed. Raises MediaError."""
        if url[:5].lower() == "data:":
            return self.from_data_url(url, where)
        if not self._limits.allow_remote:
            raise MediaError(f"{where}: expected a data URL (data:image/png;base64,…); this server fetches nothing")
        try:
            return fetch(url, max_bytes=self._limits.max_bytes, timeout_s=self._limits.remote_timeout_s)
        except MediaError as error:
            raise MediaError(f"{where}: {error}") from None

    def from_data_url(self, url: str, where: str) -> bytes:
        """The bytes in a base64 data URL. Raises MediaError."""
        header = _DATA_URL.match(url[:200])
        if header is None:
            raise MediaError(f"{where}: expected a data URL (data:image/png;base64,…)")
        return self.from_base64(url[header.end() :], where)

    def from_base64(self, text: str, where: str) -> bytes:
        """The bytes that base64 stands for. Raises MediaError where it is damaged, empty or too long."""
        if len(text) > self._limits.max_bytes * 4 // 3 + 4:
            raise MediaError(f"{where}: more than the limit of {self._limits.max_bytes / 1e6:g} MB")
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise MediaError(f"{where}: the base64 is damaged") from None
        if not content:
            raise MediaError(f"{where}: the file is empty (0 bytes)")
        return content

    def encode(self, name: str, content: bytes, where: str) -> Tensor:
        """Codes int64 [K, T] of a file of modality `name`; those of late are remembered, since conversations repeat
        their media. Raises MediaError for a file that is unfit."""
        key = (name, hashlib.sha256(content).digest())
        with self._lock:
            if (known := self._codes.get(key)) is not None:
                self._codes.move_to_end(key)
                return known
        readers: dict[str, Callable[[str, bytes, str], Any]] = {
            "image": lambda _, content, where: self.picture(content, where),
            "audio": self._sound,
            "video": self._video,
        }
        loaded = readers[self._model.specs[name].media](name, content, where)
        codes_KT = self._model.encode(name, loaded)
        with self._lock:
            self._codes[key] = codes_KT
            while len(self._codes) > KEPT_CODES:
                self._codes.popitem(last=False)
        return codes_KT

    def picture(self, content: bytes, where: str) -> Image.Image:
        """Raises MediaError for what is no picture of a usual format, is damaged, or has too many pixels."""
        if not PICTURE_MAGIC.match(content):
            raise MediaError(f"{where}: not a picture that can be read; expected PNG, JPEG, GIF, WebP or BMP")
        return self._load(content, where, lambda path: load_image(path, max_pixels=self._limits.max_pixels))

    def voice(self, content: bytes, where: str) -> Audio:
        """A sample of a voice. Raises MediaError for one that is unfit, silent, too short or too long."""
        from anygpt.engine import MIN_VOICE_S

        self._check_sound(content, where)
        limits: dict[str, Any] = {"min_duration_s": MIN_VOICE_S, "max_duration_s": self._limits.max_voice_s}
        return self._load(content, where, lambda path: load_audio(path, reject_silence=True, **limits))

    def _video(self, name: str, content: bytes, where: str) -> Video:
        if len(content) > self._limits.max_bytes:
            raise MediaError(f"{where}: more than the limit of {self._limits.max_bytes / 1e6:g} MB")
        most = self._limits.max_pixels
        return self._load(content, where, lambda path: self._model.load(name, path, max_pixels=most))

    def _sound(self, name: str, content: bytes, where: str) -> Audio:
        self._check_sound(content, where)
        return self._load(content, where, lambda path: self._model.load(name, path))

    def _check_sound(self, content: bytes, where: str) -> None:
        """Silence compresses to nothing: what a sound takes in memory is judged by its header."""
        if len(content) > self._limits.max_bytes:
            raise MediaError(f"{where}: more than the limit of {self._limits.max_bytes / 1e6:g} MB")
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                kind, samples = file.format, file.frames * file.channels
        except (soundfile.SoundFileError, TypeError, ValueError):
            kind, samples = None, 0
        if kind not in SOUND_CONTAINERS:
            raise MediaError(f"{where}: not a sound file that can be read; expected WAV, FLAC, OGG or MP3")
        if samples > self._limits.max_samples:
            limit = f"{self._limits.max_samples / 1e6:g} million"
            raise MediaError(f"{where}: {samples} samples over all channels, the limit is {limit}; cut it first")

    @staticmethod
    def _load(content: bytes, where: str, load: Any) -> Any:
        """Readers take files: this one has a name of ours, in a folder of its own."""
        with tempfile.TemporaryDirectory(prefix="anygpt-") as folder:
            path = Path(folder, "media")
            path.write_bytes(content)
            try:
                return load(path)
            except MediaError as error:
                raise MediaError(str(error).replace(str(path), where)) from None


@dataclass(frozen=True)
class SoundFormat:
    """A format that sound is sent in."""

    media_type: str
    container: str | None = None
    """libsndfile's name of the format; None for samples without a header."""
    subtype: str | None = None
    rates_hz: tuple[int, ...] = ()
    """Rates that it can have; any where empty."""


SOUND_FORMATS = {
    "wav": SoundFormat("audio/wav", "WAV", "PCM_16"),
    "mp3": SoundFormat("audio/mpeg", "MP3", None, (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)),
    "flac": SoundFormat("audio/flac", "FLAC", "PCM_16"),
    "opus": SoundFormat("audio/ogg", "OGG", "OPUS", (16_000, 24_000, 48_000)),
    "pcm": SoundFormat("audio/pcm", rates_hz=(PCM_RATE_HZ,)),
    "pcm16": SoundFormat("audio/pcm", rates_hz=(PCM_RATE_HZ,)),
}
STREAMED_FORMATS = ("wav", "pcm", "pcm16")
"""Those that can be sent while the sound is still made."""


def encode_sound(audio: Audio, name: str) -> bytes:
    """A whole sound in one of `SOUND_FORMATS`; resampled where the format doesn't have its rate."""
    kind = SOUND_FORMATS[name]
    if kind.rates_hz and audio.rate_hz not in kind.rates_hz:
        higher = [rate for rate in kind.rates_hz if rate >= audio.rate_hz]
        audio = audio.resample(min(higher, default=max(kind.rates_hz)))
    if kind.container is None:
        return _pcm16(audio.mono().wave[0])
    content = io.BytesIO()
    soundfile.write(content, _int16(audio.wave.T), audio.rate_hz, format=kind.container, subtype=kind.subtype)
    return content.getvalue()


class SoundEncoder:
    """A sound in one of `STREAMED_FORMATS`, piece by piece: the results joined are the file."""

    def __init__(self, name: str) -> None:
        assert name in STREAMED_FORMATS, name
        self._is_raw = SOUND_FORMATS[name].container is None
        self._resampler: soxr.ResampleStream | None = None
        self._has_begun = False

    def push(self, audio: Audio) -> bytes:
        """The next piece; channels are mixed."""
        wave = audio.mono().wave[0]
        if self._is_raw:
            if audio.rate_hz != PCM_RATE_HZ:
                self._resampler = self._resampler or soxr.ResampleStream(audio.rate_hz, PCM_RATE_HZ, 1, quality="HQ")
                wave = self._resampler.resample_chunk(wave)
            return _pcm16(wave)
        header = b"" if self._has_begun else _open_wav_header(audio.rate_hz)
        self._has_begun = True
        return header + _pcm16(wave)

    def finish(self) -> bytes:
        """What is left at the end."""
        if self._resampler is None:
            return b""
        return _pcm16(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def encode_picture(image: Image.Image, name: str) -> bytes:
    """A picture as "png", "jpeg" or "webp"."""
    content = io.BytesIO()
    image.convert("RGB").save(content, format=name.upper(), **({} if name == "png" else {"quality": 95}))
    return content.getvalue()


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _int16(wave: np.ndarray) -> np.ndarray:
    return np.clip(np.round(wave * 32768.0), -32768, 32767).astype("<i2")


def _pcm16(wave: np.ndarray) -> bytes:
    return _int16(wave).tobytes()


def _open_wav_header(rate_hz: int) -> bytes:
    """Of 16-bit mono whose length isn't known yet, which the largest number stands for."""
    unknown = b"\xff\xff\xff\xff"
    numbers = [(16, 4), (1, 2), (1, 2), (rate_hz, 4), (2 * rate_hz, 4), (2, 2), (16, 2)]
    fields = b"".join(value.to_bytes(size, "little") for value, size in numbers)
    return b"RIFF" + unknown + b"WAVEfmt " + fields + b"data" + unknown
