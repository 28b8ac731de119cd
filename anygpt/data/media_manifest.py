"""Manifests of raw media: JSONL or Parquet rows with a file, or its bytes, and the text that goes with it."""

import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow
import pyarrow.parquet

from anygpt.data.storage import Place, fingerprint, is_url, open_file, reaching
from anygpt.errors import AnyGPTError
from anygpt.modality import MODALITIES, get_modality

PARQUET_MAGIC = b"PAR1"
_PARQUET_ROWS = 128
"""Read at once: rows may hold the bytes of media."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a manifest, from 1; `fault` says why it can't be used, and is None for a good one."""

    line: int
    text: str = ""
    path: str | None = None
    """As the manifest writes it."""
    place: Place | None = None
    """Where the bytes are; None only beside a fault."""
    part_s: tuple[float, float] | None = None
    """Beginning and end in seconds, where only a part of a recording is meant."""
    fault: str | None = None

    @property
    def is_whole_file(self) -> bool:
        """Whether all of the file at `path` is meant: not bytes that the manifest holds, nor a part of a recording."""
        return self.place is not None and self.place.data is None and self.part_s is None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive lines of a manifest: `lines` of them, of which blank ones have no row."""

    lines: int
    rows: tuple[Row, ...]


def grouped(rows: Iterator[Row | None], size: int) -> Iterator[Batch]:
    """Rows as batches of `size`; None is a blank line."""
    while chunk := tuple(itertools.islice(rows, size)):
        yield Batch(lines=len(chunk), rows=tuple(row for row in chunk if row is not None))


class MediaManifest:
    """The rows of a manifest file, in order, without holding them in memory.

    Columns are `text` and the name of one modality. That one holds paths, absolute or relative to the manifest's
    folder, or URLs; in Parquet also the bytes themselves, alone or as Hugging Face's `{bytes, path}`. `begin_s` and
    `end_s`, where a row has them, cut a part out of a recording. Other columns are ignored. The file may be here or
    behind a URL. Raises AnyGPTError when it is missing, unreadable or empty, or when `modality` is None and the columns
    don't tell which one is meant.
    """

    def __init__(self, path: Path | str, modality: str | None = None) -> None:
        self._url = path if isinstance(path, str) and is_url(path) else None
        self.path = Path(path) if self._url else Path(path).expanduser()
        if self._url is None and not self.path.is_file():
            problem = "is a directory" if self.path.is_dir() else "no such manifest"
            raise AnyGPTError(f"{self.path}: {problem}; expected a JSONL or Parquet file")
        self._shown = self._url or str(self.path)
        with self._open() as file:
            start = file.read(len(PARQUET_MAGIC))
        self._is_parquet = start == PARQUET_MAGIC
        if not start or (self._is_parquet and not self.lines):
            raise AnyGPTError(f"{self._shown}: has no rows; expected some with text and the path of a file")
        self.modality = get_modality(modality).name if modality is not None else self._find_modality()
        self._check_columns()

    @property
    def folder(self) -> Path:
        """What relative paths start from, for a manifest that is here."""
        assert self._url is None, self._url
        return self.path.parent

    @cached_property
    def sha256(self) -> str:
        """Equal hashes mean equal rows: of the whole file, or of size, beginning and end of a remote Parquet file."""
        if self._is_parquet:
            if self._url is not None:
                return fingerprint(self._url)
            with self._open() as file:
                return hashlib.file_digest(cast(io.BufferedIOBase, file), "sha256").hexdigest()
        return self._scanned[0]

    @cached_property
    def lines(self) -> int:
        """Blank lines included."""
        if self._is_parquet:
            with self._parquet() as parquet:
                return int(parquet.metadata.num_rows)
        return self._scanned[1]

    def batches(self, size: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """The lines from number `first` (of 0) to before `last`, `size` at a time."""
        return grouped(self._rows(first, last), size)

    def _rows(self, first: int, last: int | None) -> Iterator[Row | None]:
        for line, content in enumerate(self._contents(first, last), start=first + 1):
            yield self._row(line, content)

    def _row(self, line: int, content: dict[str, Any] | str | None) -> Row | None:
        """A checked row; None for a blank line."""
        if content is None:
            return None
        if isinstance(content, str):
            return Row(line=line, fault=content)
        given: Any = content.get(self.modality)
        fields = given if isinstance(given, dict) else {"bytes" if isinstance(given, bytes) else "path": given}
        value, data = fields.get("path"), fields.get("bytes")
        path = value if isinstance(value, str) and value.strip() else None
        if path is None and data is None:
            return Row(line=line, fault=f"field '{self.modality}' is missing or empty, expected the path of a file")
        place = Place("", data=data) if data is not None else Place(self.located(path or ""))
        begin_s: Any = content.get("begin_s")
        end_s: Any = content.get("end_s")
        if begin_s is None and end_s is None:
            return checked_row(line, text=content.get("text"), path=path, place=place)
        if not (_is_number(begin_s) and _is_number(end_s) and 0 <= begin_s < end_s):
            fault = f"fields 'begin_s' and 'end_s' are {begin_s!r} and {end_s!r}, expected 0 <= begin_s < end_s"
            return Row(line=line, path=path, fault=fault)
        part_s = (float(begin_s), float(end_s))
        return checked_row(line, text=content.get("text"), path=path, place=place, part_s=part_s)

    def located(self, path: str) -> Path | str:
        """What a path in the manifest stands for."""
        if is_url(path):
            return path
        if self._url is not None:
            return path if path.startswith("/") else f"{self._url.rpartition('/')[0]}/{path}"
        return self.path.parent / Path(path).expanduser()

    def _contents(self, first: int, last: int | None) -> Iterator[dict[str, Any] | str | None]:
        """Each line as a mapping, as the reason why it is none, or None where it is blank."""
        if not self._is_parquet:
            with reaching(self._shown), self._open() as file:
                yield from map(parse_line, itertools.islice(file, first, last))
            return
        with self._parquet() as parquet:
            groups, skipped = _groups_from(parquet, first)
            wanted = ("text", self.modality, "begin_s", "end_s")
            columns = [name for name in wanted if name in parquet.schema_arrow.names]
            batches = parquet.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=columns)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from itertools.islice(rows, first - skipped, None if last is None else last - skipped)

    @contextlib.contextmanager
    def _parquet(self) -> Iterator[pyarrow.parquet.ParquetFile]:
        with reaching(self._shown), self._open() as file:
            try:
                yield pyarrow.parquet.ParquetFile(file)
            except (pyarrow.ArrowException, OSError) as error:
                raise AnyGPTError(f"{self._shown}: damaged Parquet file ({' '.join(str(error).split())})") from None

    def _open(self) -> BinaryIO:
        return open_file(self._url or self.path)

    @cached_property
    def _scanned(self) -> tuple[str, int]:
        """SHA-256 of the file and its number of lines, a last one without a newline included."""
        digest, newlines, last = hashlib.sha256(), 0, b"\n"
        with reaching(self._shown), self._open() as file:
            while block := file.read(1 << 20):
                digest.update(block)
                newlines += block.count(b"\n")
                last = block[-1:]
        return digest.hexdigest(), newlines + (last != b"\n")

    def _find_modality(self) -> str:
        """The one modality that the columns name."""
        found: list[str] = []
        if self._is_parquet:
            with self._parquet() as parquet:
                found = [name for name in parquet.schema_arrow.names if name in MODALITIES]
        else:
            with reaching(self._shown), self._open() as file:
                for content in map(parse_line, file):
                    if isinstance(content, dict) and (found := [name for name in content if name in MODALITIES]):
                        break
        if len(found) == 1:
            return found[0]
        if found:
            raise AnyGPTError(f"{self._shown}: has {' and '.join(found)}; choose one with --modality")
        known = ", ".join(f"'{name}'" for name in MODALITIES)
        example = '{"image": "path/of/a.jpg", "text": "what it shows"}'
        raise AnyGPTError(f"{self._shown}: no row has a field {known}; expected rows like {example}")

    def _check_columns(self) -> None:
        if not self._is_parquet:
            return
        with self._parquet() as parquet:
            names = parquet.schema_arrow.names
        for name in ("text", self.modality):
            if name not in names:
                raise AnyGPTError(f"{self._shown}: no column '{name}'; it has: {', '.join(names)}")


def checked_row(
    line: int, *, text: Any, path: str | None, place: Place, part_s: tuple[float, float] | None = None
) -> Row:
    """A row whose text is checked; `text` is whatever the source has."""
    if not isinstance(text, str) or not text.strip():
        return Row(line=line, path=path, fault="field 'text' is missing or empty")
    if any("\ud800" <= char <= "\udfff" for char in text):
        return Row(line=line, path=path, fault="field 'text' holds half a surrogate pair, which is no character")
    return Row(line=line, text=text, path=path, place=place, part_s=part_s)


def _groups_from(parquet: pyarrow.parquet.ParquetFile, first: int) -> tuple[list[int], int]:
    """The row groups from the one that holds row `first` on, and the number of rows before them."""
    skipped = 0
    for group in range(parquet.num_row_groups):
        rows = int(parquet.metadata.row_group(group).num_rows)
        if skipped + rows > first:
            return list(range(group, parquet.num_row_groups)), skipped
        skipped += rows
    return [], skipped


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_line(line: bytes) -> dict[str, Any] | str | None:
    """The object in a line of JSONL, the reason why there is none, or None for a blank line."""
    if not line.strip():
        return None
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return content if isinstance(content, dict) else "not a JSON object"
