"""Manifests of raw media: JSONL or Parquet rows with the path of a file and the text that goes with it."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from anygpt.errors import AnyGPTError
from anygpt.modality import MODALITIES, get_modality

_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a manifest, from 1; `fault` says why it can't be used, and is None for a good one."""

    line: int
    text: str = ""
    path: str | None = None
    """As the manifest writes it."""
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive lines of a manifest: `lines` of them, of which blank ones have no row."""

    lines: int
    rows: tuple[Row, ...]


class MediaManifest:
    """The rows of a manifest file, in order, without holding them in memory.

    Columns are `text` and the name of one modality, which holds paths, absolute or relative to the manifest's folder;
    other columns are ignored. Raises AnyGPTError when the file is missing, unreadable or empty, or when `modality` is
    None and the columns don't tell which one is meant.
    """

    def __init__(self, path: Path | str, modality: str | None = None) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            problem = "is a directory" if self.path.is_dir() else "no such manifest"
            raise AnyGPTError(f"{self.path}: {problem}; expected a JSONL or Parquet file")
        self._parquet = self._open_parquet()
        self.sha256, newlines = self._scan()
        """Of the whole file: equal hashes mean equal rows."""
        self.lines = newlines if self._parquet is None else int(self._parquet.metadata.num_rows)
        """Blank lines included."""
        if not self.lines:
            raise AnyGPTError(f"{self.path}: has no rows; expected some with text and the path of a file")
        self.modality = get_modality(modality).name if modality is not None else self._find_modality()
        self._check_columns()

    @property
    def folder(self) -> Path:
        """What relative paths start from."""
        return self.path.parent

    def batches(self, size: int, first: int = 0) -> Iterator[Batch]:
        """The lines from number `first` (of 0) on, `size` at a time."""
        rows = itertools.islice(self._rows(), first, None)
        while chunk := tuple(itertools.islice(rows, size)):
            yield Batch(lines=len(chunk), rows=tuple(row for row in chunk if row is not None))

    def _rows(self) -> Iterator[Row | None]:
        for line, content in enumerate(self._contents(), start=1):
            yield self._row(line, content)

    def _row(self, line: int, content: dict[str, Any] | str | None) -> Row | None:
        """A checked row; None for a blank line."""
        if content is None:
            return None
        if isinstance(content, str):
            return Row(line=line, fault=content)
        text, path = content.get("text"), content.get(self.modality)
        if not isinstance(path, str) or not path.strip():
            return Row(line=line, fault=f"field '{self.modality}' is missing or empty, expected the path of a file")
        if not isinstance(text, str) or not text.strip():
            return Row(line=line, path=path, fault="field 'text' is missing or empty")
        if any("\ud800" <= char <= "\udfff" for char in text):
            return Row(line=line, path=path, fault="field 'text' holds half a surrogate pair, which is no character")
        return Row(line=line, text=text, path=path)

    def _contents(self) -> Iterator[dict[str, Any] | str | None]:
        """Each line as a mapping, as the reason why it is none, or None where it is blank."""
        if self._parquet is None:
            with self.path.open("rb") as file:
                yield from map(parse_line, file)
            return
        wanted = [name for name in ("text", self.modality) if name in self._parquet.schema_arrow.names]
        try:
            for batch in self._parquet.iter_batches(1024, columns=wanted):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise AnyGPTError(f"{self.path}: damaged Parquet file ({' '.join(str(error).split())})") from None

    def _open_parquet(self) -> pyarrow.parquet.ParquetFile | None:
        with self.path.open("rb") as file:
            if file.read(len(_PARQUET_MAGIC)) != _PARQUET_MAGIC:
                return None
        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise AnyGPTError(f"{self.path}: damaged Parquet file ({' '.join(str(error).split())})") from None

    def _scan(self) -> tuple[str, int]:
        """SHA-256 of the file and its number of lines, a last one without a newline included."""
        digest, newlines, last = hashlib.sha256(), 0, b"\n"
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                newlines += block.count(b"\n")
                last = block[-1:]
        return digest.hexdigest(), newlines + (last != b"\n")

    def _find_modality(self) -> str:
        """The one modality that the columns name."""
        found: list[str] = []
        if self._parquet is not None:
            found = [name for name in self._parquet.schema_arrow.names if name in MODALITIES]
        else:
            with self.path.open("rb") as file:
                for content in map(parse_line, file):
                    if isinstance(content, dict) and (found := [name for name in content if name in MODALITIES]):
                        break
        if len(found) == 1:
            return found[0]
        if found:
            raise AnyGPTError(f"{self.path}: has {' and '.join(found)}; choose one with --modality")
        known = ", ".join(f"'{name}'" for name in MODALITIES)
        example = '{"image": "path/of/a.jpg", "text": "what it shows"}'
        raise AnyGPTError(f"{self.path}: no row has a field {known}; expected rows like {example}")

    def _check_columns(self) -> None:
        if self._parquet is None:
            return
        names = self._parquet.schema_arrow.names
        for name in ("text", self.modality):
            if name not in names:
                raise AnyGPTError(f"{self.path}: no column '{name}'; it has: {', '.join(names)}")


def parse_line(line: bytes) -> dict[str, Any] | str | None:
    """The object in a line of JSONL, the reason why there is none, or None for a blank line."""
    if not line.strip():
        return None
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return content if isinstance(content, dict) else "not a JSON object"
