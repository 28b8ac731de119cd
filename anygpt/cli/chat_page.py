"""A conversation as a Markdown page, with its pictures and sounds in a folder beside it, small enough to commit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anygpt.errors import AnyGPTError
from anygpt.media import atomic_write, kind_of_file, load_audio, load_image, save_audio, save_image
from anygpt.prompts.segments import Media, Turn
from anygpt.vocabulary import Control, Text

MAX_BYTES = 2_000_000
MAX_SIDE_PX = 384
RATE_HZ = 16_000


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One line of a conversation and what came of it."""

    line: str
    heading: str = ""
    turns: Sequence[Turn] = ()
    """Question and answer; nothing for a command."""
    notes: Sequence[str] = ()
    """What a command printed."""


def read_script(path: Path) -> list[tuple[str, str]]:
    """(heading, line) for every line of a script; blank lines are skipped, and `# …` is the heading of what follows.

    Raises AnyGPTError when it can't be read or holds no line.
    """
    try:
        rows = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnyGPTError(f"{path}: can't be read as a script ({error.__class__.__name__})") from None
    script: list[tuple[str, str]] = []
    heading = ""
    for row in map(str.strip, rows):
        if row.startswith("#"):
            heading = row.lstrip("# ")
        elif row:
            script.append((heading, row))
            heading = ""
    if not script:
        raise AnyGPTError(f"{path}: holds no line of a conversation")
    return script


def write_page(page: Path, exchanges: Sequence[Exchange], *, introduction: str) -> None:
    """Write the page, its media to a folder of the same name: JPEG, and WAV with one channel at 16 kHz at most.

    Other files of these kinds in the folder are removed. Raises AnyGPTError when the media are over `MAX_BYTES`.
    """
    folder = page.with_suffix("")
    written: list[Path] = []
    lines = ["# A conversation", "", introduction]
    for number, exchange in enumerate(exchanges, start=1):
        lines += ["", f"## {number}. {exchange.heading}" if exchange.heading else f"## {number}."]
        lines += ["", "~~~text", exchange.line, "~~~"]
        lines += [f"\n{_escaped(note)}" for note in exchange.notes]
        media: list[Media] = []
        for turn in exchange.turns:
            shown = _question(turn) if turn.role == "user" else _answer(turn)
            for part in shown:
                if isinstance(part, str):
                    lines += ["", f"> {part}"]
                    continue
                media.append(part)
                file = _copy(part, folder / f"{number:02}-{len(media)}-{turn.role}-{part.modality}")
                written.append(file)
                quote = "> " if turn.role == "assistant" else ""
                lines += ["", quote + _embedded(part.modality, file, page)]
    size = sum(file.stat().st_size for file in written)
    if size > MAX_BYTES:
        raise AnyGPTError(f"{folder}: {size:,} bytes of media, a page takes at most {MAX_BYTES:,}; shorten the script")
    with atomic_write(page) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for stale in {*folder.glob("*.jpg"), *folder.glob("*.wav")} - {*written}:
        stale.unlink()


def _question(turn: Turn) -> list[str | Media]:
    """The line above shows the text; here are the media."""
    return list(turn.media)


def _answer(turn: Turn) -> list[str | Media]:
    parts: list[str | Media] = []
    label = ""
    for segment in turn.segments:
        if isinstance(segment, Media):
            parts.append(segment)
        elif isinstance(segment, Control):
            label = {"<-Ins->": "heard: "}.get(segment.token, "")
        elif isinstance(segment, Text) and segment.text.strip():
            parts.append(f"{label}{_escaped(segment.text)}")
    return parts


def _escaped(text: str) -> str:
    """What a model wrote, as one line that Markdown leaves alone."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", " ".join(text.split()))


def _copy(media: Media, stem: Path) -> Path:
    if media.path is None:
        raise AnyGPTError(f"{stem.name}: the file of this {media.modality} is unknown")
    if kind_of_file(media.path) == "image":
        image = load_image(media.path)
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        return save_image(stem.with_suffix(".jpg"), image, quality=90)
    sound = load_audio(media.path).mono()
    return save_audio(stem.with_suffix(".wav"), sound.resample(min(RATE_HZ, sound.rate_hz)))


def _embedded(modality: str, file: Path, page: Path) -> str:
    link = file.relative_to(page.parent).as_posix()
    if file.suffix == ".jpg":
        return f"![{modality}]({link})"
    return f"[{modality}, {load_audio(file).duration_s:.1f} s]({link})"
