"""Where the media of a source lie: in folders, and in tar archives that are read in place."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from anygpt.data.media_codes import Fault
from anygpt.data.storage import Place
from anygpt.data.tars import Member, tar_members
from anygpt.errors import AnyGPTError


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
        self._members: dict[str, dict[tuple[Path, str], Member]] = {}
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
            found = [m for m in found if _archive(m).lower().startswith(modality)] or found
            found = [m for m in found if m.parts == form] or found
            if len(found) > 1:
                return Fault(f"the name fits {' and '.join(f'{_archive(m)}: {m.name}' for m in found[:2])}")
            if found:
                return _place(found[0])
        return Fault(f"no such file in {self._shown}")

    def _folders_of(self, modality: str) -> list[Path]:
        """The roots, and the folders in them that are named after the modality."""
        if modality not in self._searched:
            within = [path for root in self._folders for path in sorted(root.glob("*/"))]
            named = [path for path in within if path.name.lower().startswith(modality)]
            self._searched[modality] = [*self._folders, *named]
        return self._searched[modality]


def _members(path: Path) -> Iterator[Member]:
    """The files of a tar archive. Raises AnyGPTError."""
    if not path.is_file():
        raise AnyGPTError(f"{path}: no such folder or archive; expected where the media of the source are")
    with path.open("rb") as file:
        yield from tar_members(path, file)


def _place(member: Member) -> Place | Fault:
    place = member.place()
    return Fault(place) if isinstance(place, str) else place


def _archive(member: Member) -> str:
    return Path(member.archive).name
