"""The published pre-training JSONL: one object a line, `{"text": "...", "<modality>": "<start>codes<end>"}`."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from anygpt.errors import AnyGPTError, ConfigError
from anygpt.modality import ModalitySpec

BLOCK = 2**26
"""Bytes that are looked through for ends of lines at a time."""


class JsonlFile:
    """Random access to the lines of a JSONL file, without holding it in memory.

    Raises ConfigError when the file is missing or has no line.
    """

    def __init__(self, path: Path | str, *, command: str = "anygpt tokenize MANIFEST") -> None:
        """`command` makes such a file; a message says so."""
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"{self.path}: no such data file; make one with: {command} --out {path}")
        if not len(self):
            raise ConfigError(f"{self.path}: has no lines")

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Start of each line and the end of the last one, int64."""
        content = np.memmap(self.path, np.uint8, "r") if self.path.stat().st_size else np.empty(0, np.uint8)
        # Block by block: the comparison of all at once would take as much memory as the file has bytes.
        blocks = range(0, len(content), BLOCK)
        found = [np.flatnonzero(content[at : at + BLOCK] == ord("\n")) + at + 1 for at in blocks]
        ends = np.concatenate(found) if found else np.empty(0, np.int64)
        if len(content) and (not len(ends) or ends[-1] != len(content)):
            ends = np.append(ends, len(content))
        return np.concatenate([np.zeros(1, np.int64), ends.astype(np.int64)])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def where(self, index: int) -> str:
        """Line `index` from 0, for messages."""
        return f"{self.path}: line {index + 1}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Line `index` from 0. Raises AnyGPTError that names file and line when it holds no JSON object."""
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[index]))
            line = file.read(int(self._offsets[index + 1] - self._offsets[index]))
        try:
            row = json.loads(line)
        except ValueError as error:
            raise AnyGPTError(f"{self.path}: line {index + 1} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise AnyGPTError(f"{self.path}: line {index + 1} is not a JSON object")
        return row

    def texts(self, spec: ModalitySpec) -> Iterator[str]:
        """The text of every line in order. Raises AnyGPTError for a line that is no pair of text and `spec`."""
        for index in range(len(self)):
            yield pair_of(self[index], spec, self.where(index))[0]


def check_field(row: dict[str, Any], name: str, spec: ModalitySpec, where: str) -> str:
    """The string under `name` in a pair of text and `spec`. Raises AnyGPTError where it is missing or empty."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise AnyGPTError(f"{where}: field '{name}' is missing or empty; expected text and {spec.name} codes")
    return value


def pair_of(row: dict[str, Any], spec: ModalitySpec, where: str) -> tuple[str, str]:
    """Text and code string of a row. Raises AnyGPTError naming the missing or empty field."""
    return check_field(row, "text", spec, where), check_field(row, spec.name, spec, where)


def instruction_of(row: dict[str, Any], where: str) -> str | None:
    """What a row of media to text asks for in words of its own, None where it leaves that to the task's wordings.

    Raises AnyGPTError for anything but a text.
    """
    value = row.get("instruction")
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise AnyGPTError(f"{where}: field 'instruction' is {value!r}, expected a text")
    return value.strip() if value is not None else None


def in_validation(text: str, fraction: float) -> bool:
    """Whether the pair with this text belongs to validation: a hash, so that equal texts never fall on both sides."""
    digest = hashlib.sha256(text.strip().lower().encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
