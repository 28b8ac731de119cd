"""Which ids may come next, so that every answer is well-formed by construction.

A small automaton: in text, text pieces, the start tags that the request allows and the ends of the turn; inside a
span, the codes of the level that is due; the end tag on a frame boundary only. Everything is derived from the
modality table and the checkpoint's vocabulary, and every allowed set is a few slices of the logits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from anygpt.errors import AnyGPTError
from anygpt.generation.policies import Policy
from anygpt.vocabulary import Block, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an answer may hold."""

    allowed: frozenset[str] = frozenset()
    """Modalities that the model may start by itself, amid text."""
    forced: str | None = None
    """A modality that the answer begins with; its start tag is given, not drawn."""
    ends_after_span: bool = False
    """Whether the answer is over with its first span."""

    @classmethod
    def only(cls, name: str) -> "Request":
        """Text alone for "text", else one span of that modality and nothing else."""
        return cls() if name == "text" else cls(forced=name, ends_after_span=True)


class Grammar:
    """The rules of one checkpoint's vocabulary; `start` makes the automaton of one answer."""

    def __init__(self, vocabulary: Vocabulary, *, end_ids: Iterable[int]) -> None:
        """`end_ids` are the ids that end a turn."""
        self.blocks: Mapping[str, Block] = vocabulary.blocks
        self.end_ids = frozenset(end_ids)
        assert self.end_ids, "a turn must be able to end"
        self.text_ranges = _ranges(i for i in range(vocabulary.text.size) if vocabulary.is_text(i))

    def start(
        self, request: Request, policies: Mapping[str, Policy], *, prompt_length: int, context: int
    ) -> "Automaton":
        """The automaton of one answer to a prompt of so many ids, for a model of so long a context.

        `policies` limit the lengths, by modality and "text". Raises AnyGPTError when no whole answer fits in.
        """
        needed = self.shortest_span(request.forced) if request.forced else 1
        if prompt_length + needed > context:
            raise AnyGPTError(
                f"the prompt is {prompt_length} ids long and its {request.forced or 'text'} answer at least {needed}, "
                f"together more than the model's context of {context}: shorten the prompt"
            )
        return Automaton(self, request, policies, context - prompt_length)

    def shortest_span(self, name: str) -> int:
        """Ids of the shortest whole span of a modality, tags included."""
        spec = self.blocks[name].spec
        return 2 + (spec.frames or 1) * spec.num_codebooks

    def longest_answer(self, request: Request, policies: Mapping[str, Policy]) -> int | None:
        """Upper limit of the ids of an answer; None where only the context limits it."""
        if request.allowed:
            return None
        span = 0
        if request.forced is not None:
            span = max(policies[request.forced].max_new_tokens + 2, self.shortest_span(request.forced))
        return span if span and request.ends_after_span else span + policies["text"].max_new_tokens + 1


class Automaton:
    """The state of one answer: call `mask`, draw an id, call `push`, until `is_done`."""

    def __init__(self, grammar: Grammar, request: Request, policies: Mapping[str, Policy], room: int) -> None:
        self._grammar = grammar
        self._request = request
        self._policies = policies
        self._room = room
        self._start_ids = {grammar.blocks[name].start_id: grammar.blocks[name] for name in sorted(request.allowed)}
        self._block: Block | None = None
        self._codes = 0
        self._texts = 0
        self.is_done = False
        self.forced_ids: list[int] = []
        """Ids that the answer begins with; they are taken as pushed already."""
        if request.forced is not None:
            block = grammar.blocks[request.forced]
            self.forced_ids = [block.start_id]
            self._start_ids[block.start_id] = block
            self.push(block.start_id)
            if request.forced not in request.allowed:
                del self._start_ids[block.start_id]

    @property
    def modality(self) -> str:
        """Whose policy draws the next id: the modality of the open span, or "text"."""
        return self._block.spec.name if self._block is not None else "text"

    def allowed(self) -> list[range]:
        """The ids that may come next, as ranges in ascending order that neither touch nor overlap; never empty."""
        assert not self.is_done, "the answer is complete"
        ids = self._in_text() if self._block is None else self._in_span(self._block)
        assert ids, "the grammar has no way on"
        return ids

    def mask(self, logits_V: Tensor) -> None:
        """Set every logit of [V] that may not come next to -inf, in place."""
        at = 0
        for ids in self.allowed():
            logits_V[at : ids.start] = float("-inf")
            at = ids.stop
        logits_V[at:] = float("-inf")

    def push(self, index: int) -> None:
        """Take the id that was drawn. It must be one of `allowed`."""
        self._room -= 1
        if self._block is not None:
            if index == self._block.end_id:
                self._block = None
                self.is_done = self._request.ends_after_span
            else:
                self._codes += 1
        elif index in self._start_ids:
            self._block, self._codes = self._start_ids[index], 0
        elif index in self._grammar.end_ids:
            self.is_done = True
        else:
            self._texts += 1
        if self._block is None and (self._room < 1 or self._texts >= self._policies["text"].max_new_tokens):
            self.is_done = True

    def _in_text(self) -> list[range]:
        singles = [
            index
            for index, block in self._start_ids.items()
            if self._room >= self._grammar.shortest_span(block.spec.name)
        ]
        if self._texts >= self._policies["text"].min_new_tokens:
            singles += self._grammar.end_ids
        return _merged([*self._grammar.text_ranges, *(range(i, i + 1) for i in singles)])

    def _in_span(self, block: Block) -> list[range]:
        levels = block.spec.num_codebooks
        level = self._codes % levels
        codes, end = block.level_ids(level), range(block.end_id, block.end_id + 1)
        if level:
            return [codes]
        policy = self._policies[block.spec.name]
        if block.spec.frames is not None:
            return [codes] if self._codes < block.spec.frames * levels else [end]
        if self._codes == 0:
            return [codes]
        if self._codes + levels > policy.max_new_tokens or self._room < levels + 1:
            return [end]
        if self._codes < policy.min_new_tokens:
            return [codes]
        return _merged([codes, end])


def _ranges(ids: Iterable[int]) -> list[range]:
    """Ascending ids as ranges."""
    return _merged([range(i, i + 1) for i in ids])


def _merged(ranges: Sequence[range]) -> list[range]:
    """Sort ranges that don't overlap and join those that touch."""
    merged: list[range] = []
    for ids in sorted(ranges, key=lambda ids: ids.start):
        if merged and merged[-1].stop == ids.start:
            merged[-1] = range(merged[-1].start, ids.stop)
        else:
            merged.append(ids)
    return merged
