"""libfluidsynth offline, through ctypes: timed notes to samples, with a General MIDI soundfont.

Needs the shared library (apt package `libfluidsynth3`) and a soundfont (`timgm6mb-soundfont`).
"""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from anygpt.errors import AnyGPTError

_LIBRARIES = ("libfluidsynth.so.3", "libfluidsynth.so.2", "libfluidsynth.3.dylib", "libfluidsynth-3.dll")
_FOLDERS = ("/usr/share/sounds/sf2", "/usr/share/soundfonts", "/usr/local/share/soundfonts")
_PACKAGES = {"TimGM6mb": "timgm6mb-soundfont", "FluidR3_GM": "fluid-soundfont-gm"}
DRUM_CHANNEL = 9
BLOCK = 64
"""FluidSynth computes this many samples at once; notes begin and end on multiples of it."""
_LOG_LEVELS = 5

_LogFunction = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@dataclass(frozen=True, kw_only=True)
class Note:
    """One note: `pitch` and `velocity` as in MIDI, times in seconds. On `DRUM_CHANNEL` the pitch names the drum."""

    start_s: float
    end_s: float
    pitch: int
    velocity: int
    channel: int = 0


class FluidSynth:
    """A synthesizer with one soundfont, by name (`TimGM6mb`, `FluidR3_GM`) or path to an .sf2 file, without effects.

    The same notes give the same samples. Raises AnyGPTError that names the apt package when the library or the
    soundfont is missing.
    """

    def __init__(self, soundfont: str = "TimGM6mb", *, rate_hz: int = 32_000) -> None:
        self.rate_hz = rate_hz
        self._library = _load()
        self._lock = threading.Lock()
        path = find_soundfont(soundfont)
        self._settings = self._library.new_fluid_settings()
        self._library.fluid_settings_setnum(self._settings, b"synth.sample-rate", rate_hz)
        for switch in (b"synth.reverb.active", b"synth.chorus.active"):
            self._library.fluid_settings_setint(self._settings, switch, 0)
        # Only keeps the soundfont in memory.
        self._owner = self._library.new_fluid_synth(self._settings)
        assert self._owner, "new_fluid_synth failed"
        if self._library.fluid_synth_sfload(self._owner, str(path).encode(), 1) < 0:
            raise AnyGPTError(f"{path}: not a readable soundfont; expected an .sf2 file")
        self._font = self._library.fluid_synth_get_sfont(self._owner, 0)

    @staticmethod
    @lru_cache(maxsize=2)
    def shared(soundfont: str = "TimGM6mb") -> "FluidSynth":
        """This process's synthesizer for `soundfont`, loaded at the first call."""
        return FluidSynth(soundfont)

    def render(self, notes: Sequence[Note], *, program: int, duration_s: float) -> np.ndarray:
        """Play `notes` with GM `program` (0-127) on all channels but the drums: float32 [samples], the mean of left and
        right at FluidSynth's own scale, cut at `duration_s`.
        """
        library = self._library
        with self._lock:
            # A new synthesizer each time (0.3 ms): one that has played before begins some notes a little differently,
            # even after a reset.
            synth = library.new_fluid_synth(self._settings)
            library.fluid_synth_add_sfont(synth, self._font)
            try:
                for channel in {note.channel for note in notes} - {DRUM_CHANNEL}:
                    library.fluid_synth_program_change(synth, channel, program)
                return self._play(synth, notes, round(duration_s * self.rate_hz))
            finally:
                library.fluid_synth_remove_sfont(synth, self._font)
                library.delete_fluid_synth(synth)

    def _play(self, synth: int, notes: Sequence[Note], end: int) -> np.ndarray:
        events = [(self._block(note.start_s), True, note) for note in notes]
        events += [(self._block(note.end_s), False, note) for note in notes]
        # At the same block notes end before others begin, so that a repeated pitch sounds again.
        events.sort(key=lambda event: (event[0], event[1], event[2].channel, event[2].pitch))
        stereo = np.zeros((2, end), np.float32)
        done = 0
        for position, begins, note in events:
            if position >= end:
                break
            self._write(synth, stereo[:, done:position])
            done = position
            if begins:
                self._library.fluid_synth_noteon(synth, note.channel, note.pitch, note.velocity)
            else:
                self._library.fluid_synth_noteoff(synth, note.channel, note.pitch)
        self._write(synth, stereo[:, done:])
        return stereo.mean(axis=0)

    def _block(self, time_s: float) -> int:
        return round(time_s * self.rate_hz / BLOCK) * BLOCK

    def _write(self, synth: int, stereo: np.ndarray) -> None:
        count = stereo.shape[1]
        if count:
            left, right = (channel.ctypes.data for channel in stereo)
            status = self._library.fluid_synth_write_float(synth, count, left, 0, 1, right, 0, 1)
            assert status == 0, status


def find_soundfont(name: str) -> Path:
    """The file of a soundfont by name or path. Raises AnyGPTError with the apt package to install."""
    if name.endswith(".sf2"):
        if not Path(name).is_file():
            raise AnyGPTError(f"soundfont {name}: there is no such file")
        return Path(name)
    for folder in _FOLDERS:
        path = Path(folder, f"{name}.sf2")
        if path.is_file():
            return path
    if name not in _PACKAGES:
        raise AnyGPTError(f"unknown soundfont '{name}', expected {', '.join(_PACKAGES)} or the path of an .sf2 file")
    raise AnyGPTError(f"the soundfont {name} is missing; install it with: apt-get install {_PACKAGES[name]}")


@_LogFunction
def _ignore(level: int, message: bytes, data: int) -> None:
    """FluidSynth's log goes nowhere: it complains of missing sound devices, which offline rendering has no need of."""


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        # Without types ctypes would cut pointers to 32 bits.
        pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        output = (pointer, integer, integer)
        signatures: dict[str, tuple[Any, ...]] = {
            "new_fluid_settings": (),
            "new_fluid_synth": (pointer,),
            "fluid_settings_setnum": (pointer, text, ctypes.c_double),
            "fluid_settings_setint": (pointer, text, integer),
            "fluid_synth_sfload": (pointer, text, integer),
            "fluid_synth_get_sfont": (pointer, ctypes.c_uint),
            "fluid_synth_add_sfont": (pointer, pointer),
            "fluid_synth_remove_sfont": (pointer, pointer),
            "delete_fluid_synth": (pointer,),
            "fluid_synth_program_change": (pointer, integer, integer),
            "fluid_synth_noteon": (pointer, integer, integer, integer),
            "fluid_synth_noteoff": (pointer, integer, integer),
            "fluid_synth_write_float": (pointer, integer, *output, *output),
            "fluid_set_log_function": (integer, _LogFunction, pointer),
        }
        for function, arguments in signatures.items():
            getattr(library, function).argtypes = arguments
        for function in ("new_fluid_settings", "new_fluid_synth", "fluid_synth_get_sfont"):
            getattr(library, function).restype = pointer
        for level in range(_LOG_LEVELS):
            library.fluid_set_log_function(level, _ignore, None)
        return library
    raise AnyGPTError("the synthesizer FluidSynth is missing; install it with: apt-get install libfluidsynth3")
