"""libespeak-ng in this process, through ctypes: text to samples with the times of the phonemes.

Needs the shared library and the language data of the apt package `espeak-ng`, nothing else.
"""

import ctypes
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from anygpt.errors import AnyGPTError

_LIBRARIES = ("libespeak-ng.so.1", "libespeak-ng.dylib", "libespeak-ng.1.dylib", "libespeak-ng.dll")
# Constants of espeak-ng/speak_lib.h.
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DONT_EXIT = 0x0001, 0x8000
_EVENT_END, _EVENT_PHONEME = 0, 7
_PARAMETER_RATE = 1
_UTF8 = 1


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, eq=False)
class Utterance:
    """`wave` int16 [samples] at `rate_hz`; `phonemes`: espeak's names with their first sample, in order."""

    wave: np.ndarray
    rate_hz: int
    phonemes: tuple[tuple[str, int], ...]


class Espeak:
    """The synthesizer. One per process (`Espeak.shared()`): the library keeps its state in globals.

    Raises AnyGPTError that names the apt package when the library or its language data are missing.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._lock = threading.Lock()
        self._voices = tempfile.TemporaryDirectory(prefix="anygpt-voices-")
        self._pieces: list[bytes] = []
        self._phonemes: list[tuple[str, int]] = []
        # The library keeps the pointer only, so the object must live as long as this one.
        self._callback = _Callback(self._receive)
        self.rate_hz: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _DONT_EXIT)
        if self.rate_hz <= 0:
            raise AnyGPTError("espeak-ng has no language data; install it with: apt-get install espeak-ng")
        self._library.espeak_SetSynthCallback(self._callback)
        self._libc = ctypes.CDLL(None)

    @staticmethod
    @lru_cache(maxsize=1)
    def shared() -> "Espeak":
        """The synthesizer of this process, made at the first call."""
        return Espeak()

    def speak(self, text: str, *, voice: str, speed_wpm: int) -> Utterance:
        """Say `text` in the voice that the espeak voice file `voice` (its contents) describes.

        Two calls with the same arguments give the same samples if the voice has `flutter 0`.
        """
        with self._lock:
            # Also when it is the voice of the last call: this clears what the synthesizer remembers of it.
            self._set_voice(voice)
            self._library.espeak_SetParameter(_PARAMETER_RATE, speed_wpm, 0)
            # Breath is made of rand(); flutter has a counter that can't be reset, hence `flutter 0` above.
            self._libc.srand(1)
            self._pieces, self._phonemes = [], []
            data = text.encode()
            status = self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
            assert status == 0, (status, text)
            wave = np.frombuffer(b"".join(self._pieces), np.int16)
            return Utterance(wave=wave, rate_hz=self.rate_hz, phonemes=tuple(self._phonemes))

    def _set_voice(self, voice: str) -> None:
        path = Path(self._voices.name, "voice")
        path.write_text(voice)
        status = self._library.espeak_ng_SetVoiceByFile(str(path).encode())
        assert status == 0, (status, voice)

    def _receive(self, samples: int | None, count: int, events: "ctypes._Pointer[_Event]") -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, count * 2))
        position = 0
        while events[position].type != _EVENT_END:
            event = events[position]
            if event.type == _EVENT_PHONEME:
                self._phonemes.append((event.id.string.decode(), event.sample))
            position += 1
        return 0


def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if hasattr(library, "espeak_ng_SetVoiceByFile"):
            return library
    raise AnyGPTError("the speech synthesizer espeak-ng is missing; install it with: apt-get install espeak-ng")
