"""What messages are made of. Shape suffixes: K levels that the language model sees, T frames."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from anygpt.code_strings import codes_to_string
from anygpt.modality import ModalitySpec
from anygpt.vocabulary import Control, Span, Text, Vocabulary

Role = Literal["user", "assistant"]


@dataclass(frozen=True, eq=False)
class Media:
    """One picture or sound in a message: `codes_KT` int64 [K, T]; `path` is the file it came from or went to."""

    modality: str
    codes_KT: Tensor
    path: Path | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Media)
            and self.modality == other.modality
            and self.path == other.path
            and torch.equal(self.codes_KT, other.codes_KT)
        )

    def __hash__(self) -> int:
        return hash((self.modality, self.path, tuple(self.codes_KT.flatten().tolist())))


Segment = Text | Media | Control
"""Control tokens inside messages (`<-Ins->`, `<-Res->`) come from training files and models, never from users."""


@dataclass(frozen=True)
class Turn:
    """One message by user or assistant."""

    role: Role
    segments: Sequence[Segment] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))

    @property
    def text(self) -> str:
        """The text segments joined, without space at the ends; media and control tokens left out."""
        return text_of(self.segments)

    @property
    def media(self) -> list[Media]:
        """The media segments in order."""
        return [segment for segment in self.segments if isinstance(segment, Media)]


def text_of(items: Iterable[Text | Control | Span | Media]) -> str:
    """The texts among them joined, without space at the ends."""
    return "".join(item.text for item in items if isinstance(item, Text)).strip()


def segments_from_items(items: Iterable[Text | Control | Span]) -> tuple[Segment, ...]:
    """What `Vocabulary.decode_ids` returns, with spans as media."""
    return tuple(Media(item.spec.name, item.codes_KT) if isinstance(item, Span) else item for item in items)


def segments_from_marked(string: str, vocab: Vocabulary) -> tuple[Segment, ...]:
    """Read a message of a training file: codes and control tokens stand for themselves. Raises CodeError."""
    return segments_from_items(vocab.split_marked(string))


def segments_to_marked(segments: Sequence[Segment], specs: Mapping[str, ModalitySpec]) -> str:
    """Write a message as training files hold it; the inverse of `segments_from_marked`. `specs` by modality name."""
    return "".join(_marked(segment, specs) for segment in segments)


def _marked(segment: Segment, specs: Mapping[str, ModalitySpec]) -> str:
    if isinstance(segment, Text):
        return segment.text
    if isinstance(segment, Control):
        return segment.token
    return codes_to_string(specs[segment.modality], segment.codes_KT)
