"""Files of pictures and sounds to codes, many at once; what can't be used becomes a reason instead of an error.

Shape suffixes: K levels that the language model sees, T frames.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from anygpt.code_strings import codes_to_indices
from anygpt.data.storage import Place
from anygpt.errors import AnyGPTError
from anygpt.media import Audio, load_audio, load_image
from anygpt.modality import ModalitySpec
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.video import Video, load_video

GROUP_BYTES = 256 * 2**20
"""Media are encoded in groups of about this size, so that a few large photographs don't fill the memory."""

_LOADERS: dict[str, Callable[..., Any]] = {
    "image": load_image,
    "audio": functools.partial(load_audio, reject_silence=True),
    "video": load_video,
}
"""How one kind of file (`ModalitySpec.media`) is read."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Fault:
    """Why something is skipped."""

    reason: str


def spec_of(tokenizer: ModalityTokenizer) -> ModalitySpec:
    """The row of the tokenizer's modality, at the tokenizer's codebook sizes."""
    return tokenizer.spec


def load_media(path: Path, spec: ModalitySpec, **settings: Any) -> Any:
    """The picture or sound in a file, as `ModalityTokenizer.encode` takes it, or a Fault.

    `settings` are those of `anygpt.media.load_image` or `load_audio`.
    """
    try:
        return _LOADERS[spec.media](path, **settings)
    except AnyGPTError as error:
        return Fault(_without_path(str(error), path))
    except OSError as error:
        return Fault(f"can't be read ({error.strerror or error})")


def load_place(place: Place, spec: ModalitySpec, **settings: Any) -> Any:
    """The same for a file wherever it is.

    Raises AnyGPTError for an archive that can't be read: that is no fault of the member, and may be over in a minute.
    """
    try:
        with place.as_file() as path:
            return load_media(path, spec, **settings)
    except (AnyGPTError, OSError) as error:
        reason = str(error) if isinstance(error, AnyGPTError) else f"can't be read ({error.strerror or error})"
        reason = _without_path(reason, place.path)
        if place.offset is not None:
            raise AnyGPTError(f"{place.path}: {reason}; the same command goes on where it stopped") from None
        return Fault(reason)


def encode_all(
    tokenizer: ModalityTokenizer, keys: Iterable[Key], load: Callable[[Key], Any]
) -> dict[Key, Tensor | Fault]:
    """Codes, int64 [K, T], of what `load` returns for each key, or the Fault that it returned or that came up."""
    spec = spec_of(tokenizer)
    outcomes: dict[Key, Tensor | Fault] = {}
    group: dict[Key, Any] = {}
    size = 0

    def encode_group() -> None:
        outcomes.update(zip(group, _encode(tokenizer, spec, list(group.values())), strict=True))
        group.clear()

    for key in keys:
        media = load(key)
        if isinstance(media, Fault):
            outcomes[key] = media
            continue
        group[key] = media
        size += _bytes(media)
        if size > GROUP_BYTES:
            encode_group()
            size = 0
    encode_group()
    return outcomes


def _encode(tokenizer: ModalityTokenizer, spec: ModalitySpec, media: Sequence[Any]) -> list[Tensor | Fault]:
    """The codes of each item; where the tokenizer refuses a batch, its items are tried one by one."""
    try:
        codes = tokenizer.encode(media) if media else []
        for codes_KT in codes:
            codes_to_indices(spec, codes_KT)
        return list(codes)
    except AnyGPTError as error:
        if len(media) == 1:
            return [Fault(" ".join(str(error).split()))]
        return [_encode(tokenizer, spec, [item])[0] for item in media]


def _without_path(message: str, path: Path | str) -> str:
    """A message about a file without the file at its beginning, so that moving a data set leaves its errors alike."""
    tail = message[len(str(path)) :]  # cut by length: the message shows unprintable characters as others
    return tail.removeprefix(": ") if tail.startswith(": ") else message


def _bytes(media: Image.Image | Audio | Video) -> int:
    if isinstance(media, Video):
        return sum(map(_bytes, media.frames)) + (_bytes(media.sound) if media.sound is not None else 0)
    return media.wave.nbytes if isinstance(media, Audio) else 3 * media.width * media.height
