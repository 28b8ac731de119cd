"""Tar archives read in place: their members by the headers alone, and WebDataset shards of samples."""

import itertools
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from anygpt.data.media_manifest import Batch, Row, checked_row, grouped
from anygpt.data.storage import Place, fingerprint, open_file, reaching
from anygpt.errors import AnyGPTError
from anygpt.modality import MODALITIES, get_modality

logger = logging.getLogger(__name__)

MAX_MEMBER_BYTES = 512 * 2**20
MAX_HEADER_BYTES = 2**20
"""More than any honest name in an archive needs."""
MAX_TEXT_BYTES = 2**20
EXTENSIONS = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"),
    "audio": ("flac", "wav", "mp3", "ogg", "opus"),
    "video": ("mp4", "webm", "mkv", "mov", "avi"),
}
"""Kind of media (`ModalitySpec.media`) -> extensions of its members in a WebDataset sample."""
TEXT_EXTENSIONS = ("txt", "text", "caption")
JSON_TEXT_FIELDS = ("text", "caption")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive; `size` is None where it is a link or something else that is no plain file."""

    archive: Path | str
    name: str
    offset: int
    size: int | None

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.name).parts

    def place(self) -> Place | str:
        """Where its bytes are, or why they can't be had."""
        archive = PurePosixPath(self.archive).name
        if self.size is None:
            return f"is a link or special file in {archive}; only plain files are read"
        if self.size > MAX_MEMBER_BYTES:
            return f"has {self.size} bytes in {archive}, the limit is {MAX_MEMBER_BYTES}"
        return Place(self.archive, self.offset, self.size)


class _Headers:
    """A file that refuses to read more at once than a header should need, however large one claims to be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def tar_members(path: Path | str, file: BinaryIO) -> Iterator[Member]:
    """The files of a tar archive, in order, read from its headers alone; `file` is `path`, opened.

    Raises AnyGPTError where it is damaged, after the members before the damage.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=_Headers(file), mode="r:")  # type: ignore[call-overload]
        while (info := archive.next()) is not None:
            archive.members.clear()  # else all headers stay in memory
            if not info.isdir():
                is_plain = info.isreg() and not info.issparse()
                yield Member(path, info.name, info.offset_data, info.size if is_plain else None)
        end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        at = f"near byte {file.tell()} of {size}"
        hint = "expected a plain tar; unpack a compressed one first, and copy a damaged one again"
        raise AnyGPTError(f"{path}: not a tar archive, or damaged {at} ({error}); {hint}") from None
    file.seek(end)
    rest = file.read(tarfile.BLOCKSIZE)
    # tarfile takes a broken header in the middle for the end; a whole archive ends with zeros.
    if len(rest) < tarfile.BLOCKSIZE and not rest.strip(b"\0"):
        logger.warning("%s: the mark at the end is missing, so that the archive may be cut off", path)
    if rest.strip(b"\0"):
        raise AnyGPTError(f"{path}: damaged at byte {end}: no header where one is due; copy or download it again")


class TarShard:
    """The samples of a WebDataset shard as rows of a manifest.

    A sample is what members that follow each other share up to the first dot of their file names (`00/000123.jpg`,
    `00/000123.txt`): its picture or sound, and its text in a `.txt`, or under `text` or `caption` of a `.json`. Rows
    hold the place of the media in the archive, so that whoever loads them reads it there. A damaged archive gives the
    samples before the damage and one faulty row. Raises AnyGPTError when `modality` is None and the members don't tell
    which one is meant.
    """

    lines: None = None
    """How many samples there are is known at the end."""

    def __init__(self, path: Path | str, modality: str | None = None) -> None:
        self.path = path
        self.modality = get_modality(modality).name if modality is not None else self._find_modality()
        self._kind = MODALITIES[self.modality].media

    @property
    def sha256(self) -> str:
        """Of size, beginning and end."""
        return fingerprint(self.path)

    def batches(self, size: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """The samples from number `first` (of 0) to before `last`, `size` at a time."""
        return grouped(itertools.islice(self._rows(), first, last), size)

    def _rows(self) -> Iterator[Row]:
        line = 0
        with reaching(self.path), open_file(self.path) as file:
            try:
                for line, sample in enumerate(self._samples(file), start=1):
                    yield self._row(line, sample, file)
            except AnyGPTError as error:
                logger.warning("%s", error)
                reason = str(error).removeprefix(f"{self.path}: ")
                yield Row(line=line + 1, fault=f"nothing is read from here on: the archive is {reason}")

    def _samples(self, file: BinaryIO) -> Iterator[list[Member]]:
        """Members that share a key. A sample that the damage begins in is left out."""
        sample: list[Member] = []
        for member in tar_members(self.path, file):
            if sample and _key(member) != _key(sample[0]):
                yield sample
                sample = []
            sample.append(member)
        if sample:
            yield sample

    def _row(self, line: int, sample: list[Member], file: BinaryIO) -> Row:
        media = [member for member in sample if _extension(member) in EXTENSIONS[self._kind]]
        if not media:
            has = ", ".join(f".{_extension(member)}" for member in sample)
            wanted = ", ".join(f".{name}" for name in EXTENSIONS[self._kind])
            fault = f"the sample has no {self.modality} (expected {wanted}); it has: {has}"
            return Row(line=line, path=sample[0].name, fault=fault)
        place = media[0].place()
        if isinstance(place, str):
            return Row(line=line, path=media[0].name, fault=place)
        return checked_row(line, text=self._text(sample, file), path=media[0].name, place=place)

    def _text(self, sample: list[Member], file: BinaryIO) -> str | None:
        for member in sample:
            extension = _extension(member)
            if extension not in (*TEXT_EXTENSIONS, "json") or not 0 < (member.size or 0) <= MAX_TEXT_BYTES:
                continue
            at = file.tell()
            file.seek(member.offset)
            content = file.read(member.size or 0)
            file.seek(at)
            try:
                text = json.loads(content) if extension == "json" else content.decode("utf-8")
            except ValueError:
                continue
            if isinstance(text, dict):
                text = next((text[name] for name in JSON_TEXT_FIELDS if name in text), None)
            if isinstance(text, str) and text.strip():
                return text.strip()
        return None

    def _find_modality(self) -> str:
        with reaching(self.path), open_file(self.path) as file:
            for member in itertools.islice(tar_members(self.path, file), 1000):
                for kind, extensions in EXTENSIONS.items():
                    if _extension(member) in extensions:
                        names = [spec.name for spec in MODALITIES.values() if spec.media == kind]
                        if len(names) == 1:
                            return names[0]
                        choice = f"{', '.join(names[:-1])} or {names[-1]}"
                        raise AnyGPTError(f"{self.path}: holds sounds; choose --modality {choice}")
        known = ", ".join(f".{name}" for names in EXTENSIONS.values() for name in names)
        raise AnyGPTError(f"{self.path}: no member is a picture or sound; expected names like 000123.jpg ({known})")


def _key(member: Member) -> str:
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}"


def _extension(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()
