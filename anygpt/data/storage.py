"""Files here, or wherever fsspec reaches (`s3://`, `gs://`, `hf://`, `https://`, `memory://`, …)."""

import contextlib
import glob
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from anygpt.errors import AnyGPTError

_COPY_BYTES = 2**20
_BLOCK_BYTES = 2**20
_ENDS_BYTES = 2**16
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_url(path: Path | str) -> bool:
    """Whether this names a file by its protocol instead of its place on this machine."""
    return isinstance(path, str) and "://" in path


@contextlib.contextmanager
def reaching(path: Path | str) -> Iterator[None]:
    """Turn what goes wrong with a remote file into an AnyGPTError of one line that begins with `path`."""
    if not is_url(path):
        yield
        return
    try:
        yield
    except AnyGPTError:
        raise
    except FileNotFoundError:
        raise AnyGPTError(f"{path}: no such file") from None
    except Exception as error:  # each protocol's library has errors of its own
        reason = " ".join(str(error).split()) or error.__class__.__name__
        raise AnyGPTError(f"{path}: can't be read ({reason})") from None


def open_file(path: Path | str) -> BinaryIO:
    """A file to read and seek in. Raises AnyGPTError for a URL that can't be read, OSError for a file here."""
    if not is_url(path):
        return Path(path).open("rb")
    with reaching(path):
        system, path_there = fsspec.core.url_to_fs(str(path))
        # Blocks that stay, and not fsspec's reading ahead: headers of archives are read here and there.
        opened = system.open(path_there, "rb", block_size=_BLOCK_BYTES, cache_type="blockcache")
        return cast(BinaryIO, opened)


def fingerprint(path: Path | str) -> str:
    """SHA-256 over size, beginning and end of a file: of terabytes of archives nobody wants to read all first."""
    with reaching(path), open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        for start in (0, max(0, size - _ENDS_BYTES)):
            file.seek(start)
            digest.update(file.read(_ENDS_BYTES))
    return digest.hexdigest()


def find_files(spec: Path | str) -> list[str]:
    """The files that a path, folder, glob pattern or URL names, sorted; `{0000..0120}` counts.

    Of a folder, the entries directly in it. Raises AnyGPTError when there is none.
    """
    found = sorted({path for each in _expand(str(spec)) for path in _find(each)})
    if not found:
        raise AnyGPTError(f"{spec}: no such manifest or shards; expected JSONL, Parquet or tar files")
    return found


def _expand(spec: str) -> list[str]:
    match = _BRACES.search(spec)
    if match is None:
        return [spec]
    first, last = match[1], match[2]
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [each for number in numbers for each in _expand(spec[: match.start()] + number + spec[match.end() :])]


def _find(spec: str) -> list[str]:
    if not is_url(spec):
        path = Path(spec).expanduser()
        if path.is_dir():
            return [str(entry) for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
        return [str(path)] if path.exists() else glob.glob(str(path))
    with reaching(spec):
        system, path_there = fsspec.core.url_to_fs(spec)
        if glob.has_magic(path_there):
            return [system.unstrip_protocol(each) for each in system.glob(path_there)]
        info: dict[str, Any] = system.info(path_there)
        if info["type"] != "directory":
            return [spec]
        entries = system.ls(path_there, detail=True)
        files = [each["name"] for each in entries if each["type"] == "file"]
        return [system.unstrip_protocol(name) for name in files if not name.rpartition("/")[2].startswith(".")]


@dataclass(frozen=True)
class Place:
    """A file here or behind a URL, or `size` bytes of one from `offset` on, or `data` that a manifest holds itself."""

    path: Path | str
    offset: int | None = None
    size: int = 0
    data: bytes | None = None

    @contextlib.contextmanager
    def as_file(self) -> Iterator[Path]:
        """A path to read from; what is no file here is copied to a temporary one first.

        Raises AnyGPTError for a URL that can't be read.
        """
        if self.offset is None and self.data is None and not is_url(self.path):
            yield Path(self.path)
            return
        with tempfile.NamedTemporaryFile(prefix="anygpt-") as copy:
            if self.data is not None:
                copy.write(self.data)
            else:
                self._copy_to(cast(BinaryIO, copy))
            copy.flush()
            yield Path(copy.name)

    def _copy_to(self, copy: BinaryIO) -> None:
        if is_url(self.path) and self.offset is not None:
            with reaching(self.path):
                system, path_there = fsspec.core.url_to_fs(str(self.path))
                copy.write(system.cat_file(path_there, start=self.offset, end=self.offset + self.size))
            return
        with reaching(self.path), open_file(self.path) as file:
            file.seek(self.offset or 0)
            left = self.size if self.offset is not None else None
            while left != 0 and (block := file.read(min(left or _COPY_BYTES, _COPY_BYTES))):
                copy.write(block)
                left = None if left is None else left - len(block)
