"""Conversations as files: `talk.json` with all text and codes, and `talk.media/` with the pictures and sounds.

The JSON file alone is the conversation; the media files are for people. What is read may come from anyone, so
everything in it is checked before a turn is made of it. Shape suffixes: K levels, T frames.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor

from anygpt.code_strings import codes_to_indices
from anygpt.config import from_dict
from anygpt.data.instructions import MESSAGE_CONTROLS
from anygpt.errors import AnyGPTError, nearest
from anygpt.media import atomic_write, check_file, shown
from anygpt.prompts.segments import Media, Segment, Turn
from anygpt.prompts.templates import join_texts
from anygpt.vocabulary import Control, Text

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

FORMAT, VERSION = "anygpt-conversation", 1
MAX_BYTES = 1 << 22
MAX_TURNS = 10_000
MAX_MEDIA_BYTES = 1 << 28
"""A larger media file is not copied beside the conversation."""

_MEDIA_NAME = re.compile(r"\d{2,}-[a-z]+-[0-9a-f]{8}(\.[a-z0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True)
class _SavedPart:
    """A segment: a text, a control token, or media."""

    text: str | None = None
    control: str | None = None
    media: str | None = None
    codes: list | None = None
    """[K][T]"""
    file: str | None = None
    """Relative to the JSON file: `<folder>.media/<name>`."""


@dataclass(frozen=True, kw_only=True)
class _SavedTurn:
    role: Literal["user", "assistant"]
    message: list[_SavedPart]


@dataclass(frozen=True, kw_only=True)
class _SavedConversation:
    format: str
    version: int
    tokenizers: dict[str, str] = field(default_factory=dict)
    """Modality -> fingerprint of the tokenizer that its codes are of."""
    turns: list[_SavedTurn]


def save_conversation(path: Path | str, turns: Sequence[Turn], model: "AnyGPT") -> Path:
    """Write a conversation to `path` (`.json` is added where it is missing), its media files copied beside it.

    An earlier saved conversation of that name is replaced. Whatever goes wrong, a full disk or Ctrl-C, the files are as
    before. Returns the path of the JSON file. Raises AnyGPTError when there is nothing to save, when `path` holds
    something else, or when it can't be written.
    """
    target = _json_path(path)
    if not turns:
        raise AnyGPTError(f"{shown(target)}: not written, the conversation is empty")
    folder = target.with_suffix(".media")
    used = sorted({media.modality for turn in turns for media in turn.media})
    with _undone_on_error(target, folder) as created:
        old_names = _names_in(target)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise AnyGPTError(f"{shown(folder)}: is no folder, but the media would go into it; choose another name")
        rows, names = [], set()
        for number, turn in enumerate(turns, start=1):
            parts = []
            for segment in turn.segments:
                parts.append(_part_row(segment))
                name = _copy_media(segment, number, folder, created)
                if name is not None:
                    parts[-1]["file"] = f"{folder.name}/{name}"
                    names.add(name)
            rows.append({"role": turn.role, "message": parts})
        content = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizers": {name: model.tokenizers.fingerprint(name) for name in used},
            "turns": rows,
        }
        with atomic_write(target) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in old_names - names:
        with contextlib.suppress(OSError):  # a file too many does no harm
            (folder / name).unlink(missing_ok=True)
    return target


def load_conversation(path: Path | str, model: "AnyGPT") -> list[Turn]:
    """The turns that `save_conversation` wrote, for a model with the same tokenizers.

    Raises AnyGPTError, one line, for a file that is missing, too large, damaged, of another version or not in the
    format, for codes that are out of range or of other tokenizers, and for media paths that leave the folder.
    """
    target = Path(path).expanduser()
    if target.suffix != ".json" and target.parent.is_dir() and not os.path.lexists(target):
        target = _json_path(path)
    where = shown(target)
    saved = _read(target)
    parts = [part for row in saved.turns for part in row.message]
    for name in sorted({part.media for part in parts if part.media is not None and part.media in model.specs}):
        _check_fingerprint(name, saved.tokenizers.get(name), where, model)
    turns: list[Turn] = []
    for number, row in enumerate(saved.turns, start=1):
        due: Literal["user", "assistant"] = "assistant" if turns and turns[-1].role == "user" else "user"
        place = f"{where}: turn {number}"
        if row.role != due:
            raise AnyGPTError(f"{place} is by the {row.role}, expected the {due}: they take turns, the user begins")
        segments = [
            _segment(part, row.role, f"{place}, part {at}", target.parent, model)
            for at, part in enumerate(row.message, start=1)
        ]
        if not join_texts(segments):
            raise AnyGPTError(f"{place} is empty")
        turns.append(Turn(row.role, segments))
    if not turns or turns[-1].role != "assistant":
        raise AnyGPTError(f"{where}: ends without an answer, expected the assistant's turn last")
    return turns


# Writing


def _json_path(path: Path | str) -> Path:
    path = Path(path).expanduser()
    return path if path.suffix == ".json" else path.with_name(f"{path.name}.json")


def _names_in(target: Path) -> set[str]:
    """The media that the conversation to be replaced names. Raises AnyGPTError when it isn't a conversation."""
    if not target.exists():
        return set()
    try:
        saved = _read(target)
    except AnyGPTError:
        raise AnyGPTError(f"{shown(target)}: exists and is no saved conversation; choose another name") from None
    files = [part.file for turn in saved.turns for part in turn.message if part.file is not None]
    names = {PurePosixPath(file).name for file in files if file.startswith(f"{target.stem}.media/")}
    return {name for name in names if _MEDIA_NAME.fullmatch(name)}


@contextlib.contextmanager
def _undone_on_error(target: Path, folder: Path) -> Iterator[list[Path]]:
    """Collects the files that are new in `folder`, and removes them again when the block ends in an error.

    Errors of the file system become one line.
    """
    created: list[Path] = []
    had_folder = True
    try:
        had_folder = folder.exists()
        yield created
    except BaseException as error:
        for file in created:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        if not had_folder:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or error.__class__.__name__
            raise AnyGPTError(f"{shown(target)}: can't be saved ({reason}); nothing was changed") from None
        raise


def _part_row(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, Text):
        return {"text": segment.text}
    if isinstance(segment, Control):
        return {"control": segment.token}
    return {"media": segment.modality, "codes": segment.codes_KT.tolist()}


def _copy_media(segment: Segment, number: int, folder: Path, created: list[Path]) -> str | None:
    """Copy the file of a segment to `folder`, under a name that follows from its content; None where it has none.

    Equal names mean equal content, so the files of an earlier save stay valid until its JSON file is replaced.
    """
    source = segment.path.expanduser() if isinstance(segment, Media) and segment.path is not None else None
    if source is None or not source.is_file() or source.stat().st_size > MAX_MEDIA_BYTES:
        return None
    assert isinstance(segment, Media)
    if source.parent.resolve() == folder.resolve() and _MEDIA_NAME.fullmatch(source.name):
        return source.name  # this conversation was saved or loaded here before
    content = source.read_bytes()
    suffix = source.suffix.lower()
    name = f"{number:02}-{segment.modality}-{hashlib.sha256(content).hexdigest()[:8]}"
    name += suffix if _MEDIA_NAME.fullmatch(name + suffix) else ""
    file = folder / name
    if not file.is_file() or file.read_bytes() != content:
        created.append(file)
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
    return name


# Reading


def _read(path: Path) -> _SavedConversation:
    """The content of a file with the types that the format wants. Raises AnyGPTError for anything else."""
    where = shown(path)
    check_file(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise AnyGPTError(f"{where}: {size:,} bytes, a conversation has at most {MAX_BYTES:,}")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise AnyGPTError(f"{where}: not JSON, or cut off (line {error.lineno}: {error.msg})") from None
    except UnicodeDecodeError:
        raise AnyGPTError(f"{where}: not JSON (the file is no UTF-8 text)") from None
    except RecursionError:
        raise AnyGPTError(f"{where}: nested too deeply for a conversation") from None
    except (ValueError, OSError) as error:
        raise AnyGPTError(_shortened(f"{where}: can't be read ({error})")) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise AnyGPTError(f"{where}: no saved conversation: 'format' must be '{FORMAT}'")
    version = content.get("version")
    if version != VERSION or isinstance(version, bool):
        raise AnyGPTError(_shortened(f"{where}: 'version' is {version!r}, this version of anygpt reads {VERSION}"))
    try:
        saved = from_dict(_SavedConversation, content, source=where)
    except AnyGPTError as error:
        raise AnyGPTError(_shortened(str(error))) from None
    if len(saved.turns) > MAX_TURNS:
        raise AnyGPTError(f"{where}: {len(saved.turns):,} turns, a conversation has at most {MAX_TURNS:,}")
    return saved


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key is given twice")
    return unique


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of a conversation")


def _shortened(message: str) -> str:
    """Messages quote the file, which may hold anything."""
    return message if len(message) <= 400 else f"{message[:300]}…{message[-90:]}"


def _segment(part: _SavedPart, role: str, where: str, parent: Path, model: "AnyGPT") -> Segment:
    given = [name for name in ("text", "control", "media") if getattr(part, name) is not None]
    if len(given) != 1:
        raise AnyGPTError(f"{where}: expected one of 'text', 'control' and 'media', got {len(given)} of them")
    if part.media is None and (part.codes is not None or part.file is not None):
        raise AnyGPTError(f"{where}: 'codes' and 'file' belong to 'media'")
    if part.text is not None:
        try:
            part.text.encode()
        except UnicodeEncodeError as error:
            raise AnyGPTError(f"{where}: not valid Unicode at character {error.start}") from None
        return Text(part.text)
    if part.control is not None:
        return _control(part.control, role, where, model)
    assert part.media is not None
    known = model.specs
    if part.media not in known:
        hint = f"{nearest(part.media, known)}; it has: {', '.join(known)}"
        raise AnyGPTError(_shortened(f"{where}: this model has no modality {part.media!r}{hint}"))
    path = _media_file(part.file, parent, where) if part.file is not None else None
    return Media(part.media, _codes(part, where, model), path)


def _control(token: str, role: str, where: str, model: "AnyGPT") -> Control:
    """Only what an answer may hold: a role tag or an end of turn would forge another turn."""
    if role != "assistant" or token not in MESSAGE_CONTROLS or token not in model.vocabulary.controls:
        raise AnyGPTError(_shortened(f"{where}: control token {token!r} can't stand in a message of the {role}"))
    return Control(token)


def _codes(part: _SavedPart, where: str, model: "AnyGPT") -> Tensor:
    """`part.codes` as int64 [K, T], checked against the model's codebooks."""
    assert part.media is not None
    spec = model.specs[part.media]
    levels = part.codes
    if not levels or not all(isinstance(level, list) for level in levels) or len({len(level) for level in levels}) > 1:
        raise AnyGPTError(f"{where}: 'codes' must be {spec.num_codebooks} lists of equal length")
    for level, row in enumerate(levels):
        for frame, code in enumerate(row):
            if type(code) is not int or not 0 <= code < spec.codebook_size:
                expected = f"expected a whole number from 0 to {spec.codebook_size - 1}"
                got = code if isinstance(code, int | float) and abs(code) < 1e9 else type(code).__name__
                raise AnyGPTError(f"{where}: {spec.name} code {got} at level {level}, frame {frame}, {expected}")
    codes_KT = torch.tensor(levels, dtype=torch.int64)
    try:
        codes_to_indices(spec, codes_KT)
    except AnyGPTError as error:
        raise AnyGPTError(f"{where}: {error}") from None
    return codes_KT


def _media_file(file: str, parent: Path, where: str) -> Path | None:
    """The file that a saved conversation names, None where it is gone. Raises AnyGPTError when it lies elsewhere."""
    parts = PurePosixPath(file).parts
    path = parent / file
    try:
        is_inside = len(parts) == 2 and parts[0].endswith(".media") and ".." not in parts and "\\" not in file
        is_inside = is_inside and path.resolve().parent == parent.resolve() / parts[0]
        if is_inside and not path.exists():
            return None
        is_inside = is_inside and path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long or with a zero byte, a loop of links
        is_inside = False
    if not is_inside:
        raise AnyGPTError(
            _shortened(f"{where}: the file {file!r} is not in a media folder beside the conversation (NAME.media/FILE)")
        )
    return path


def _check_fingerprint(name: str, got: str | None, where: str, model: "AnyGPT") -> None:
    expected = model.tokenizers.fingerprint(name)
    if got is None:
        raise AnyGPTError(f"{where}: 'tokenizers' doesn't say which tokenizer made the {name} codes")
    if got != expected:
        raise AnyGPTError(
            f"{where}: its {name} codes were made by another tokenizer (fingerprint {got[:12]!r}, "
            f"this model's is {expected[:12]!r}): they would mean other things"
        )
