"""Errors that are the user's to mend: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class AnyGPTError(ValueError):
    """A mistake in what the user gave. The message names the file or field and says what to do."""


class CodeError(AnyGPTError):
    """A media code or span that breaks its format; the message carries the position."""


class MediaError(AnyGPTError):
    """A picture or sound file that can't be read, or is unfit (empty, silent, too large)."""


class CheckpointError(AnyGPTError):
    """A model or tokenizer folder that is incomplete, damaged or doesn't fit its counterpart."""


class ConfigError(AnyGPTError):
    """An unknown key or a bad value in a configuration file."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
