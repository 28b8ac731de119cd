"""What a model answered, kept beside its scores: words in the log, pictures and sounds as files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from anygpt.media import Audio, save_audio, save_image
from anygpt.video import Video, save_video


@runtime_checkable
class Spoken(Protocol):
    """An answer of a conversation (`anygpt.evaluation.chat.Reply`)."""

    @property
    def text(self) -> str: ...

    @property
    def media(self) -> Iterable[tuple[str, Any]]: ...


_SHOWN = str | Image.Image | Audio | Video
Kept = list[dict[str, str]] | None
"""The parts of an answer in order, as JSON: {"text": words} or {"file": path}; None for no answer."""


def keep(answer: Any, folder: Path, name: str) -> Kept:
    """An answer for the log, paths relative to `folder`.

    An answer is text, a picture, a sound, a video, several of these, or of a conversation. Pictures (PNG), sounds
    (16-bit WAV) and videos (MP4) are written as `<name>.<extension>`, further ones as `<name>-2.<extension>` and so on.
    """
    if answer is None:
        return None
    parts: list[dict[str, str]] = []
    for part in _parts(answer):
        if isinstance(part, str):
            parts.append({"text": part})
            continue
        number = sum("file" in each for each in parts) + 1
        stem = name if number == 1 else f"{name}-{number}"
        if isinstance(part, Image.Image):
            path = save_image(folder / f"{stem}.png", part)
        elif isinstance(part, Video):
            path = save_video(folder / f"{stem}.mp4", part)
        else:
            path = save_audio(folder / f"{stem}.wav", part)
        parts.append({"file": path.relative_to(folder).as_posix()})
    return parts


def read_kept(parts: Kept, folder: Path) -> list[str | Path]:
    """The words and files that `keep` gave; nothing for no answer."""
    return [part["text"] if "text" in part else folder / part["file"] for part in parts or []]


def _parts(answer: Any) -> list[Any]:
    if isinstance(answer, _SHOWN):
        return [answer]
    if isinstance(answer, Spoken):
        return [answer.text, *(media for _, media in answer.media)]
    # Of a pair or list, what isn't one of these (a number that a task made up) is not for showing.
    return [part for part in answer if isinstance(part, _SHOWN)] if _is_listed(answer) else []


def _is_listed(answer: Any) -> bool:
    return isinstance(answer, list | tuple)
