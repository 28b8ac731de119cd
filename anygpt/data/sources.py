"""Which reader a file of raw media gets, by its first bytes."""

import tarfile
from pathlib import Path

from anygpt.data.media_manifest import PARQUET_MAGIC, MediaManifest
from anygpt.data.storage import open_file, reaching
from anygpt.data.tars import TarShard
from anygpt.errors import AnyGPTError

_TAR_MAGIC_AT = 257
_OTHERS = {
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"PK\x03\x04": "a zip archive",
}
"""First bytes -> what such a file is."""


def open_source(path: Path | str, modality: str | None = None) -> MediaManifest | TarShard:
    """The rows of a JSONL or Parquet manifest or of a WebDataset tar, here or behind a URL.

    Raises AnyGPTError for a file of another kind, and as `MediaManifest` and `TarShard` do.
    """
    path = str(Path(path).expanduser()) if "://" not in str(path) else str(path)
    if "://" not in path and not Path(path).is_file():
        return MediaManifest(path, modality)  # says what is wrong
    with reaching(path), open_file(path) as file:
        start = file.read(tarfile.BLOCKSIZE)
    if start[_TAR_MAGIC_AT:].startswith(b"ustar"):
        return TarShard(path, modality)
    if not start.startswith(PARQUET_MAGIC) and (b"\0" in start or any(start.startswith(magic) for magic in _OTHERS)):
        kind = next((name for magic, name in _OTHERS.items() if start.startswith(magic)), "of an unknown format")
        raise AnyGPTError(f"{path}: is {kind}; expected JSONL, Parquet or a plain tar")
    return MediaManifest(path, modality)
