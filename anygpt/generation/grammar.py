"""Which ids may come next, so that every answer is well-formed by construction.

A small automaton: in text, text pieces, the start tags that the request allows and the ends of the turn; inside a
span, the codes of the level that is due; the end tag on a frame boundary only. Everything is derived from the
modality table and the checkpoint's vocabulary, and every allowed set is a few slices of the logits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from anygpt.errors import AnyGPTError
from anygpt.generation.box_text import SHORTEST_BOX, BoxPieces, BoxText
from anygpt.generation.policies import Policy
from anygpt.generation.spans import OpenParts, OpenSpan, frame_length, merged, open_span, single
from anygpt.prompts.tags import BoxForm
from anygpt.vocabulary import Block, Vocabulary

MOST_SPANS = 4
"""Spans in one answer of a conversation: what keeps a model that starts one after another from filling the context."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an answer may hold."""

    allowed: frozenset[str] = frozenset()
    """Modalities that the model may start by itself, amid text."""
    forced: str | None = None
    """A modality that the answer begins with; its start tag is given, not drawn."""
    required: str | None = None
    """A modality of which the answer holds a span: it can't end before, and where text runs to its limit the start
    tag is the only way on."""
    ends_after_span: bool = False
    """Whether the answer is over with its first span (or, where one is required, with that)."""
    most_spans: int | None = None
    """Spans that the answer may hold; None for no limit. The forced and the required one always fit in."""
    hears: bool = False
    """Whether the answer may open with what was heard in a spoken instruction, between the two tokens for it."""
    boxes: BoxForm | None = None
    """How boxes stand in the text, for answers that are nothing else; None: text that looks like one is text."""

    @property
    def given(self) -> frozenset[str]:
        """The modalities of which there will be a span."""
        return frozenset(name for name in (self.forced, self.required) if name is not None)

    @classmethod
    def only(cls, name: str) -> "Request":
        """Text alone for "text", else one span of that modality and nothing else."""
        return cls() if name == "text" else cls(forced=name, ends_after_span=True)

    @classmethod
    def chat(
        cls, answer: str | None, modalities: Iterable[str], *, hears: bool = False, boxes: BoxForm | None = None
    ) -> "Request":
        """An answer in a conversation: text and spans of `modalities` as the model likes.

        `answer` names the one that has to be among them; for "text" there are no spans. With `boxes` there are none
        either, unless one is asked for, which then matters more.
        """
        if boxes is not None and answer in (None, "text"):
            return cls(boxes=boxes)
        if answer == "text":
            return cls(hears=hears)
        return cls(allowed=frozenset(modalities), required=answer, most_spans=MOST_SPANS, hears=hears)


class Grammar:
    """The rules of one checkpoint's vocabulary; `start` makes the automaton of one answer."""

    def __init__(
        self, vocabulary: Vocabulary, *, end_ids: Iterable[int], heard_ids: tuple[int, int] | None = None
    ) -> None:
        """`end_ids` are the ids that end a turn; `heard_ids` those before what was heard and before the reply to it,
        None for a checkpoint without them."""
        self.blocks: Mapping[str, Block] = vocabulary.blocks
        self.end_ids = frozenset(end_ids)
        assert self.end_ids, "a turn must be able to end"
        self.heard_ids = heard_ids
        self.vocab_size = vocabulary.size
        self._vocabulary = vocabulary
        self.text_ranges = _ranges(self._text_ids())

    @cached_property
    def blank_ids(self) -> frozenset[int]:
        """Text ids that are nothing but space."""
        decode = self._vocabulary.text.decode
        return frozenset(index for index in self._text_ids() if not decode([index]).strip())

    @cached_property
    def box_pieces(self) -> BoxPieces:
        """The text ids as far as they matter to boxes."""
        return BoxPieces(self._vocabulary.text, self._text_ids())

    @cached_property
    def plain_ranges(self) -> list[range]:
        """The text ids that open no box."""
        return _ranges(sorted(self.box_pieces.plain))

    @cached_property
    def word_ranges(self) -> list[range]:
        """The text ids that are more than space."""
        return _ranges(index for index in self._text_ids() if index not in self.blank_ids)

    def start(
        self, request: Request, policies: Mapping[str, Policy], *, prompt_length: int, context: int
    ) -> "Automaton":
        """The automaton of one answer to a prompt of so many ids, for a model of so long a context.

        `policies` limit the lengths, by modality and "text". Raises AnyGPTError when no whole answer fits in.
        """
        needed = self.shortest_answer(request)
        if prompt_length + needed > context:
            names = " and ".join(sorted(request.given)) or "text"
            raise AnyGPTError(
                f"the prompt is {prompt_length} ids long and its {names} answer at least {needed}, "
                f"together more than the model's context of {context}: shorten the prompt"
            )
        if request.boxes == "alone" and (most := policies["text"].max_new_tokens) < SHORTEST_BOX:
            raise AnyGPTError(f"'max_new_tokens' of text is {most}, expected at least {SHORTEST_BOX}, the ids of a box")
        return Automaton(self, request, policies, context - prompt_length)

    def shortest_span(self, name: str) -> int:
        """Ids of the shortest whole span of a modality, tags included."""
        block = self.blocks[name]
        if block.parts:
            return 2 + frame_length(block, self.time_ids(block, 0))
        return 2 + block.spec.fewest_codes

    def longest_span(self, name: str, policy: Policy) -> int:
        """Upper limit of the ids of a span, tags included."""
        block = self.blocks[name]
        most = max(policy.max_new_tokens, block.spec.fewest_codes) + 2
        if not block.parts:
            return most
        frames = most // block.spec.fewest_codes
        return most + 2 * len(block.parts[1:]) + sum(2 + len(self.time_ids(block, n)) for n in range(frames))

    def time_ids(self, block: Block, number: int) -> list[int]:
        """Ids of the time of that frame."""
        return self._vocabulary.time_ids(block.spec, number)

    def shortest_answer(self, request: Request) -> int:
        """Ids of the shortest answer; the end of the turn isn't counted, since the context may cut it off."""
        return sum(map(self.shortest_span, request.given)) or (SHORTEST_BOX if request.boxes == "alone" else 1)

    def longest_answer(self, request: Request, policies: Mapping[str, Policy]) -> int | None:
        """Upper limit of the ids of an answer; None where only the context limits it."""
        if request.allowed:
            return None
        spans = sum(self.longest_span(name, policies[name]) for name in request.given)
        if request.ends_after_span and request.given == {request.forced}:
            return spans
        return spans + policies["text"].max_new_tokens + 1 + 2 * request.hears

    def _text_ids(self) -> Iterable[int]:
        return filter(self._vocabulary.is_text, range(self._vocabulary.text.size))


class Automaton:
    """The state of one answer: draw one of `allowed`, call `push`, until `is_done`.

    An answer is never blank: it ends after a word or a span, and after all that was required.
    """

    def __init__(self, grammar: Grammar, request: Request, policies: Mapping[str, Policy], room: int) -> None:
        self._grammar = grammar
        self._request = request
        self._policies = policies
        self._room = room
        self._blocks = {block.start_id: block for block in grammar.blocks.values()}
        self._pending = grammar.blocks[request.required] if request.required else None
        self._span: OpenSpan | OpenParts | None = None
        self._boxes = BoxText(grammar.box_pieces, request.boxes) if request.boxes is not None else None
        self._texts = self._spans = 0
        self._has_content = False
        self._may_hear = request.hears and grammar.heard_ids is not None
        self._is_hearing = False
        self.is_done = False
        self.forced_ids: list[int] = []
        """Ids that the answer begins with; they are taken as pushed already."""
        if request.forced is not None:
            self.forced_ids = [grammar.blocks[request.forced].start_id]
            self.push(self.forced_ids[0])

    @property
    def modality(self) -> str:
        """Whose policy draws the next id: the modality of the open span, or "text"."""
        return self._span.block.spec.name if self._span is not None else "text"

    def allowed(self) -> list[range]:
        """The ids that may come next, as ranges in ascending order that neither touch nor overlap; never empty."""
        assert not self.is_done, "the answer is complete"
        ids = self._in_text() if self._span is None else self._in_span(self._span)
        assert ids, "the grammar has no way on"
        return ids

    def push(self, index: int) -> None:
        """Take the id that was drawn. It must be one of `allowed`."""
        self._room -= 1
        if self._span is not None:
            if not self._span.push(index):
                return
            self._close_span(self._span.block)
        elif index in self._blocks:
            self._span, self._may_hear = open_span(self._blocks[index], self._grammar.time_ids), False
            return
        elif index in self._grammar.end_ids:
            self.is_done = True
        elif self._grammar.heard_ids is not None and index in self._grammar.heard_ids:
            self._is_hearing, self._may_hear = index == self._grammar.heard_ids[0], False
        else:
            self._texts += 1
            if self._boxes is not None:
                self._boxes.push(index)
            if not self._is_hearing and index not in self._grammar.blank_ids:
                self._has_content, self._may_hear = True, False
        if not self._due and (self._room < 1 or self._texts >= self._policies["text"].max_new_tokens):
            self.is_done = True

    def opens_with(self, index: int) -> bool:
        """Whether the id that was taken last, `index`, has begun a span."""
        return self._span is not None and self._span.block.start_id == index

    @property
    def reserved(self) -> int:
        """Ids that the open span has to leave for one that is required after it."""
        return self._reserve(self._span.block) if self._span is not None else 0

    @property
    def _due(self) -> int:
        """Ids that have to come, at least, before the answer may end."""
        if self._pending is not None:
            return self._is_hearing + self._grammar.shortest_span(self._pending.spec.name)
        return max(self._is_hearing + (not self._has_content), self._boxes.due if self._boxes is not None else 0)

    def _close_span(self, block: Block) -> None:
        self._span = None
        self._spans += 1
        self._has_content = True
        if block is self._pending:
            self._pending = None
        self.is_done = self._request.ends_after_span and self._pending is None

    def _in_text(self) -> list[range]:
        text, due = self._policies["text"], self._due
        singles: list[int] = []
        if self._is_hearing:
            assert self._grammar.heard_ids is not None
            singles.append(self._grammar.heard_ids[1])
        else:
            singles += [index for index, block in self._blocks.items() if self._may_start(block)]
            if self._may_hear and self._room >= due + 2:
                assert self._grammar.heard_ids is not None
                singles.append(self._grammar.heard_ids[0])
            if not due and (self._spans or self._texts >= text.min_new_tokens):
                singles += self._grammar.end_ids
        # A word has to come yet where neither word nor span did: the last id that there is room for is kept for it.
        words_due = not self._has_content and self._pending is None
        pieces: list[range] = []
        if self._boxes is not None:
            pieces = self._with_boxes(self._boxes, min(self._room, text.max_new_tokens - self._texts))
        elif self._room > due and self._texts + words_due < text.max_new_tokens:
            pieces = self._grammar.text_ranges
        elif words_due and not self._is_hearing:
            pieces = self._grammar.word_ranges
        return merged([*pieces, *map(single, singles)])

    def _with_boxes(self, boxes: BoxText, room: int) -> list[range]:
        """The text ids that may come next, where so many are left."""
        plain, special = boxes.allowed(room)
        ranges = self._grammar.plain_ranges if plain else []
        if plain and room == 1 and not self._has_content:
            ranges = _ranges(sorted(plain - self._grammar.blank_ids))
        return [*ranges, *(range(i, i + 1) for i in special)]

    def _may_start(self, block: Block) -> bool:
        if self._room < self._grammar.shortest_span(block.spec.name) + self._reserve(block):
            return False
        if block is self._pending:
            return True
        most = self._request.most_spans
        has_slot = most is None or self._spans + (self._pending is not None) < most
        has_time = self._texts < self._policies["text"].max_new_tokens
        return block.spec.name in self._request.allowed and has_slot and has_time

    def _reserve(self, block: Block) -> int:
        """Ids that a span has to leave for the one that is required."""
        if self._pending is None or block is self._pending:
            return 0
        return self._grammar.shortest_span(self._pending.spec.name)

    def _in_span(self, span: OpenSpan | OpenParts) -> list[range]:
        policy = self._policies[span.block.spec.name]
        room = self._room - self._reserve(span.block)
        return span.allowed(policy.min_new_tokens, policy.max_new_tokens, room)


def _ranges(ids: Iterable[int]) -> list[range]:
    """Ascending ids as ranges."""
    return merged([single(i) for i in ids])
