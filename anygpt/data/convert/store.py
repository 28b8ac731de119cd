"""Where the media of a source lie: in folders, and in tar archives that are read in place."""

import contextlib
import logging
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from anygpt.data.media_codes import Fault
from anygpt.errors import AnyGPTError

logger = logging.getLogger(__name__)

MAX_MEMBER_BYTES = 512 * 2**20
MAX_HEADER_BYTES = 2**20
"""More than any honest name in an archive needs."""
_COPY_BYTES = 2**20


@dataclass(frozen=True)
class Place:
    """A file, or `size` bytes of one from `offset` on."""

    path: Path
    offset: int | None = None
    size: int = 0

    @contextlib.contextmanager
    def as_file(self) -> Iterator[Path]:
        """A path to read from; a member of an archive is copied to a temporary file first."""
        if self.offset is None:
            yield self.path
            return
        with tempfile.NamedTemporaryFile(prefix="anygpt-") as copy:
            with self.path.open("rb") as archive:
                archive.seek(self.offset)
                left = self.size
                while left and (block := archive.read(min(left, _COPY_BYTES))):
                    copy.write(block)
                    left -= len(block)
            copy.flush()
            yield Path(copy.name)


class MediaStore:
    """Finds media by the names that a source gives them.

    `roots` are folders and plain tar archives. A name is looked for as it is, then without first folders that name the
    modality (`images/0001.png` also as `0001.png`): under each folder and those of its folders that name the modality;
    in an archive wherever the member lies (`images_224/0001.png`). Of several members those count whose archive names
    the modality (`speech.tar`), then one whose path is the name; where that leaves two, none does. Raises AnyGPTError
    for a root that is missing, compressed, or damaged.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._folders = [root for root in roots if root.is_dir()]
        self._members: dict[str, dict[tuple[Path, str], _Member]] = {}
        for root in roots:
            if not root.is_dir():
                for member in _members(root):
                    # A later member of the same name replaces an earlier one, as when tar unpacks.
                    self._members.setdefault(PurePosixPath(member.name).name, {})[root, member.name] = member
        self._searched: dict[str, list[Path]] = {}
        self._shown = ", ".join(root.name or str(root) for root in roots)

    def find(self, modality: str, name: str) -> Place | Fault:
        """Where the file called `name` is, or why it can't be had."""
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name or "\\" in name:
            return Fault("the name is not that of a file below the media folder")
        forms = [parts]
        while len(forms[-1]) > 1 and forms[-1][0].lower().startswith(modality):
            forms.append(forms[-1][1:])
        for form in forms:
            for folder in self._folders_of(modality):
                with contextlib.suppress(OSError, ValueError):
                    if (path := folder.joinpath(*form)).is_file():
                        return Place(path)
            found = [m for m in self._members.get(form[-1], {}).values() if m.parts[-len(form) :] == form]
            found = [m for m in found if m.archive.name.lower().startswith(modality)] or found
            found = [m for m in found if m.parts == form] or found
            if len(found) > 1:
                return Fault(f"the name fits {' and '.join(f'{m.archive.name}: {m.name}' for m in found[:2])}")
            if found:
                return found[0].place()
        return Fault(f"no such file in {self._shown}")

    def _folders_of(self, modality: str) -> list[Path]:
        """The roots, and the folders in them that are named after the modality."""
        if modality not in self._searched:
            within = [path for root in self._folders for path in sorted(root.glob("*/"))]
            named = [path for path in within if path.name.lower().startswith(modality)]
            self._searched[modality] = [*self._folders, *named]
        return self._searched[modality]


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in an archive; `size` is None where it is a link or something else that is no plain file."""

    archive: Path
    name: str
    offset: int
    size: int | None

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.name).parts

    def place(self) -> Place | Fault:
        if self.size is None:
            return Fault(f"is a link or special file in {self.archive.name}; only plain files are read")
        if self.size > MAX_MEMBER_BYTES:
            return Fault(f"has {self.size} bytes in {self.archive.name}, the limit is {MAX_MEMBER_BYTES}")
        return Place(self.archive, self.offset, self.size)


class _Headers:
    """A file that refuses to read more at once than a header should need, however large one claims to be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(path: Path) -> Iterator[_Member]:
    """The files of a tar archive, in order, read from its headers alone. Raises AnyGPTError."""
    if not path.is_file():
        raise AnyGPTError(f"{path}: no such folder or archive; expected where the media of the source are")
    with path.open("rb") as file:
        try:
            archive = tarfile.open(fileobj=_Headers(file), mode="r:")  # type: ignore[call-overload]
            while (info := archive.next()) is not None:
                archive.members.clear()  # else all headers stay in memory
                if not info.isdir():
                    is_plain = info.isreg() and not info.issparse()
                    yield _Member(path, info.name, info.offset_data, info.size if is_plain else None)
            end = archive.offset
        except (tarfile.TarError, ValueError, OverflowError) as error:
            at = f"near byte {file.tell()} of {os.fstat(file.fileno()).st_size}"
            hint = "expected a plain tar; unpack a compressed one first, and copy a damaged one again"
            raise AnyGPTError(f"{path}: not a tar archive, or damaged {at} ({error}); {hint}") from None
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        # tarfile takes a broken header in the middle for the end; a whole archive ends with zeros.
        if len(rest) < tarfile.BLOCKSIZE and not rest.strip(b"\0"):
            logger.warning("%s: the mark at the end is missing, so that the archive may be cut off", path)
        if rest.strip(b"\0"):
            raise AnyGPTError(f"{path}: damaged at byte {end}: no header where one is due; copy or download it again")
