"""Reading an answer while it is generated: ids to text as soon as it is final, and to spans."""

from collections.abc import Iterator
from dataclasses import dataclass

from anygpt.text_tokenizer import TextStream
from anygpt.vocabulary import Span, Vocabulary


@dataclass(frozen=True)
class TextPiece:
    """Some more text of an answer; never empty.

    The pieces between two spans, joined, are the text there without space at its ends.
    """

    text: str
    is_heard: bool = False
    """Whether it belongs to what was heard in a spoken instruction; the reply comes after it."""


@dataclass(frozen=True)
class SpanStart:
    """A picture or sound has begun; its codes follow."""

    modality: str


class AnswerReader:
    """Takes the ids of one answer, one at a time.

    Characters are held back until all their bytes are there, and space until more than space follows.
    """

    def __init__(self, vocabulary: Vocabulary, *, heard_ids: tuple[int, int] | None = None) -> None:
        """`heard_ids` as in `Grammar`."""
        self._vocabulary = vocabulary
        self._heard_ids = heard_ids
        self._starts = {block.start_id: block for block in vocabulary.blocks.values()}
        self._is_heard = False
        self._stream: TextStream | None = None
        self._held = ""
        self._has_text = False
        self._span_ids: list[int] = []

    def push(self, index: int) -> Iterator[TextPiece | SpanStart | Span]:
        """What one more id makes known. The ids must be well-formed, as the grammar's are."""
        if self._span_ids:
            self._span_ids.append(index)
            if index == self._starts[self._span_ids[0]].end_id:
                (span,) = self._vocabulary.decode_ids(self._span_ids)
                assert isinstance(span, Span), span
                self._span_ids = []
                yield span
        elif self._vocabulary.is_text(index):
            self._stream = self._stream or self._vocabulary.text.stream()
            yield from self._text(self._stream.push(index))
        else:
            yield from self.flush()
            if index in self._starts:
                self._span_ids = [index]
                yield SpanStart(self._starts[index].spec.name)
            elif self._heard_ids is not None and index in self._heard_ids:
                self._is_heard = index == self._heard_ids[0]

    def flush(self) -> Iterator[TextPiece]:
        """The end of a run of text, and of the answer: what is held back of an incomplete character."""
        if self._stream is not None:
            yield from self._text(self._stream.flush())
        self._stream, self._held, self._has_text = None, "", False

    def _text(self, new: str) -> Iterator[TextPiece]:
        text = self._held + new
        if not self._has_text:
            text = text.lstrip()
        final = text.rstrip()
        self._held = text[len(final) :]
        if final:
            self._has_text = True
            yield TextPiece(final, self._is_heard)
