"""Generating ids: prefill, step and draw in turn, under a grammar, as Python generators.

`generate` makes one answer, `decode` many at a time; what an answer is and how its next id is drawn (`Answer`, `draw`)
is the same for both, and for the plain twin without a cache. Between two ids a caller may stop (close the generator,
Ctrl-C); a cache then holds the ids that were fed so far.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anygpt.generation.cache import BatchCache, StaticCache
from anygpt.generation.grammar import Grammar, Request
from anygpt.generation.llama import PREFILL_CHUNK, LlamaDecoder
from anygpt.generation.policies import Policy
from anygpt.generation.sampling import id_at, pick, sample

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FIRST_SLOTS = 128
"""Positions that a batch has memory for at first, in each of its rows; they double up to the context."""
WORTH_A_PASS = 16
"""Ids that one new prompt has to have in common with another to wait until that one is read."""


class Answer:
    """An answer in the making: the prompt, the ids so far, and all that decides the next one."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        grammar: Grammar,
        request: Request,
        policies: Mapping[str, Policy],
        context: int,
        generator: torch.Generator | None = None,
        unconditional_ids: Sequence[int] | None = None,
        begun: int = 0,
        pauses_at: Callable[[Policy], bool] | None = None,
    ) -> None:
        """`unconditional_ids` are the prompt without its input, for an answer that `Policy.guidance_scale` guides.
        Where an answer is carried on, the last `begun` ids of the prompt are its own already. It is done as well when
        it has begun a span of whose policy `pauses_at` is true: see `is_paused`.

        Raises AnyGPTError when prompt and shortest answer exceed the context.
        """
        self._rules: dict[str, Any] = {"grammar": grammar, "policies": policies, "context": context}
        self._request = request
        self._begun = begun
        self._pauses_at = pauses_at
        self.is_paused = False
        """Whether what it ends with is the start tag of a span that it pauses at."""
        asked = len(prompt_ids) - begun
        self.automaton = grammar.start(request, policies, prompt_length=asked, context=context)
        for index in prompt_ids[asked + len(self.automaton.forced_ids) :]:
            self.automaton.push(index)
        self.prompt_ids = list(prompt_ids)
        self.ids = [] if begun else list(self.automaton.forced_ids)
        """Of the answer so far, tags included; those that it began with are in `prompt_ids`."""
        self.generator = generator
        self.unconditional_ids = unconditional_ids
        assert unconditional_ids is None or len(unconditional_ids) <= len(prompt_ids), "guided by a longer prompt"
        self.policies = policies
        self._vocab_size = grammar.vocab_size
        self._seen_V: Tensor | None = None

    @property
    def is_done(self) -> bool:
        return self.is_paused or self.automaton.is_done

    @property
    def said_ids(self) -> list[int]:
        """All ids of the answer so far, with those that it began with."""
        return [*self.prompt_ids[len(self.prompt_ids) - self._begun :], *self.ids]

    @property
    def policy(self) -> Policy:
        """That of the next id."""
        return self.policies[self.automaton.modality]

    @property
    def guidance_scale(self) -> float:
        """For the next id; text isn't guided."""
        return 1.0 if self.automaton.modality == "text" else self.policy.guidance_scale

    def seen(self, device: torch.device) -> Tensor:
        """Which ids occurred in prompt or answer, bool [V]."""
        if self._seen_V is None:
            self._seen_V = torch.zeros(self._vocab_size, dtype=torch.bool, device=device)
            self._seen_V[torch.tensor([*self.prompt_ids, *self.ids], device=device)] = True
        return self._seen_V

    def carried_on(self, more: Sequence[int] = ()) -> "Answer":
        """An answer that goes on from this one's ids, and `more` behind them, where it may pause; this one is not to be
        used again."""
        prompt_ids = [*self.prompt_ids, *self.ids, *more]
        begun = self._begun + len(self.ids) + len(more)
        rules = {**self._rules, "generator": self.generator, "pauses_at": self._pauses_at}
        answer = Answer(prompt_ids, request=self._request, begun=begun, **rules)
        answer.is_paused = bool(more) and answer._pauses_behind(more[-1])
        return answer

    def opening(self, text: Policy, generator: torch.Generator) -> "Answer":
        """The same answer, not begun, up to its first span's start tag, its text drawn under another policy."""
        rules = {**self._rules, "policies": {**self.policies, "text": text}, "pauses_at": lambda _: True}
        return Answer(self.prompt_ids, request=self._request, generator=generator, **rules)

    def open_span(self, generator: torch.Generator) -> "Answer":
        """An answer that is nothing but the span that this one has just begun, start tag included."""
        rules = {**self._rules, "context": self._rules["context"] - self.automaton.reserved}
        before = [*self.prompt_ids, *self.ids[:-1]]
        return Answer(before, request=Request.only(self.automaton.modality), generator=generator, **rules)

    def push(self, index: int) -> None:
        """Take the id that was drawn."""
        if self._seen_V is not None:
            self._seen_V[index] = True
        self.automaton.push(index)
        self.ids.append(index)
        self.is_paused = self._pauses_behind(index)

    def _pauses_behind(self, index: int) -> bool:
        return self._pauses_at is not None and self.automaton.opens_with(index) and self._pauses_at(self.policy)


Logits = Callable[[list[int], Sequence[range]], Tensor]
"""From the numbers of some answers and the ids that may come in all of them to float32 logits [answers, ids]."""


def draw(answers: Sequence[Answer], logits: Logits) -> list[int]:
    """Draw the next id of each answer and push it; logits are asked for together where policy and ids are alike."""
    alike: dict[tuple[Policy, tuple[range, ...]], list[int]] = {}
    for number, answer in enumerate(answers):
        alike.setdefault((answer.policy, tuple(answer.automaton.allowed())), []).append(number)
    drawn = [0] * len(answers)
    for (policy, allowed), numbers in alike.items():
        logits_RN = logits(numbers, allowed)
        seen_RN = None
        if policy.repetition_penalty != 1.0:
            seen_RN = pick(torch.stack([answers[number].seen(logits_RN.device) for number in numbers]), allowed)
        generators = [answers[number].generator for number in numbers]
        places = sample(logits_RN, policy, seen_RN=seen_RN, generators=generators)
        for number, place in zip(numbers, places, strict=True):
            drawn[number] = index = id_at(allowed, place)
            answers[number].push(index)
    return drawn


def prefill(decoder: LlamaDecoder, ids: Sequence[int], cache: StaticCache) -> Tensor:
    """Append many ids to the sequence in `cache`; returns what `LlamaDecoder.logits` takes, [1, D]."""
    return decoder.append(ids, cache)


def step(decoder: LlamaDecoder, index: int, cache: StaticCache) -> Tensor:
    """Append one id to the sequence in `cache`; returns what `LlamaDecoder.logits` takes, [1, D]."""
    return decoder.append([index], cache)


def generate(
    decoder: LlamaDecoder,
    prompt_ids: Sequence[int],
    *,
    grammar: Grammar,
    request: Request,
    policies: Mapping[str, Policy],
    generator: torch.Generator | None = None,
    cache: StaticCache | None = None,
    unconditional_ids: Sequence[int] | None = None,
) -> Iterator[int]:
    """Yield the ids of one answer, tags and the end of the turn included, forced ids first.

    `cache` is one kept from before: as much of the prompt as it begins with isn't computed again, and the rest of
    what it holds is forgotten. The last id yielded doesn't get into it. Policies switch with the modality. An answer
    that is guided (`unconditional_ids`, see `Answer`) takes no cache. Raises AnyGPTError, before `cache` is touched,
    when prompt and shortest answer exceed the context.
    """
    answer = Answer(
        prompt_ids,
        grammar=grammar,
        request=request,
        policies=policies,
        context=cache.capacity if cache is not None else decoder.shape.context,
        generator=generator,
        unconditional_ids=unconditional_ids,
    )
    if unconditional_ids is not None:
        assert cache is None, "a guided answer has two caches of its own"
        return (index for _, index in decode(decoder, [answer], batch_size=1))
    if cache is None:
        longest = grammar.longest_answer(request, policies)
        cache = decoder.new_cache(None if longest is None else len(prompt_ids) + longest)
    return make(decoder, answer, cache)


def make(decoder: LlamaDecoder, answer: Answer, cache: StaticCache) -> Iterator[int]:
    """As `generate`, for an answer that isn't guided and fits into the cache."""
    cache.keep_beginning(answer.prompt_ids[:-1])  # the logits of what follows come from the last id
    return _generate(decoder, answer, cache)


def _generate(decoder: LlamaDecoder, answer: Answer, cache: StaticCache) -> Iterator[int]:
    yield from answer.ids
    new = [*answer.prompt_ids, *answer.ids][cache.length :]
    while not answer.is_done:
        with torch.inference_mode():
            hidden_1D = step(decoder, new[0], cache) if len(new) == 1 else prefill(decoder, new, cache)
            new = draw([answer], _logits(decoder, hidden_1D))
        yield new[0]


def _logits(decoder: LlamaDecoder, hidden_RD: Tensor) -> Logits:
    """Those of all rows."""
    return lambda _, allowed: decoder.logits(hidden_RD, allowed)


def generate_slow(
    model: "LlamaForCausalLM",
    prompt_ids: Sequence[int],
    *,
    grammar: Grammar,
    request: Request,
    policies: Mapping[str, Policy],
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """The plain twin of `generate`: Hugging Face's model over the whole sequence for every id, no cache."""
    context = model.config.max_position_embeddings
    answer = Answer(
        prompt_ids, grammar=grammar, request=request, policies=policies, context=context, generator=generator
    )
    yield from answer.ids
    while not answer.is_done:
        with torch.inference_mode():
            ids = torch.tensor([[*answer.prompt_ids, *answer.ids]], device=model.device)
            logits_1V = model(ids).logits[:, -1].float()
            drawn = draw([answer], _picked(logits_1V))
        yield from drawn


def _picked(logits_RV: Tensor) -> Logits:
    return lambda _, allowed: pick(logits_RV, allowed)


def decode(
    decoder: LlamaDecoder, answers: Iterable[Answer], *, batch_size: int, known: StaticCache | None = None
) -> Iterator[tuple[Answer, int]]:
    """Make answers, `batch_size` at a time in one pass; yield every id with its answer, forced ids first.

    Where an answer is done the next one takes its place, so `answers` is read as places become free. What a prompt
    has in common at its beginning with one that is still in a cache is copied, not computed: several answers of one
    prompt, one after the other, cost one prefill. So is what it has in common with `known`, computed elsewhere. A
    guided answer has a second row.
    """
    waiting = iter(answers)
    batch = Batch(decoder, known)
    while True:
        while batch.size < batch_size and (answer := next(waiting, None)) is not None:
            batch.add(answer)
            for index in answer.ids:
                yield answer, index
        if not batch.size:
            return
        yield from batch.step()


@dataclass(eq=False)
class _Row:
    """A sequence in a batch, the one at its own place in the cache: a prompt and the answer to it so far."""

    answer: Answer
    prompt_ids: list[int]
    """With the ids that are given of the answer."""
    is_unconditional: bool = False


class Batch:
    """Answers that are made together: `add` some, `step` all, in one thread.

    The rows in use are the first of the cache: the last fills a gap. New ones stand behind the others.
    """

    def __init__(self, decoder: LlamaDecoder, known: StaticCache | None = None) -> None:
        """What prompts begin with is copied from `known` (which stays as it is), as far as that holds it."""
        self._decoder = decoder
        self._cache = BatchCache(lambda: decoder.new_cache(slots=FIRST_SLOTS))
        if known is not None:
            self._cache.take(known)
        self._rows: list[_Row] = []
        self._read_rows = 0
        """Rows whose prompts have been read."""
        self._last: tuple[list[int], Tensor] | None = None
        """The prompt that was read last, and what the logits behind it come from, [1, E]."""

    @property
    def size(self) -> int:
        """Answers, each counted once."""
        return sum(not row.is_unconditional for row in self._rows)

    def add(self, answer: Answer) -> None:
        """Take on an answer; its prompt, and the one that guides it, are read with the next step."""
        self._rows.append(_Row(answer, [*answer.prompt_ids, *answer.ids]))
        if answer.unconditional_ids is not None:
            self._rows.append(_Row(answer, [*answer.unconditional_ids, *answer.ids], is_unconditional=True))

    @torch.inference_mode()
    def step(self) -> list[tuple[Answer, int]]:
        """One more id for every answer; those that are done with it leave."""
        parts: list[Tensor] = []
        while (first := sum(map(len, parts))) < len(self._rows):
            parts.append(self._pass(first))
        hidden_RE = parts[0] if len(parts) == 1 else torch.cat(parts)
        answers = [row.answer for row in self._rows if not row.is_unconditional]
        drawn = draw(answers, self._logits(hidden_RE))
        for number in reversed(range(len(self._rows))):
            if self._rows[number].answer.is_done:
                self._remove(number)
        return list(zip(answers, drawn, strict=True))

    @torch.inference_mode()
    def cancel(self, answer: Answer) -> None:
        """Take an answer out before it is done; after `step`, and before others are added."""
        assert self._read_rows == len(self._rows), "rows that are new have to stay behind the others"
        for number in reversed(range(len(self._rows))):
            if self._rows[number].answer is answer:
                self._remove(number)

    def _pass(self, first: int) -> Tensor:
        """Append what they lack to as many rows as can go together, from row `first` on: the id that was drawn last,
        or a prompt without what can be copied. What the logits come from, of each of these rows, [R, E]."""
        new = [[row.answer.ids[-1]] for row in self._rows[first : self._read_rows]]
        for number in range(first + len(new), len(self._rows)):
            ids = self._rows[number].prompt_ids
            self._cache.reserve(len(self._rows), len(ids))
            commons = [_common_length(row.ids, ids) for row in self._cache.rows]
            source = commons.index(max(commons))
            if self._last is not None and self._last[0] == ids and commons[source] == len(ids):
                if new:
                    break
                self._cache.copy(source, number, len(ids))
                self._read_rows = number + 1
                return self._last[1]
            kept = min(commons[source], len(ids) - 1)
            others = (row.prompt_ids for row in self._rows[max(first, self._read_rows) : number])
            is_early = any(ids == other or _common_length(other, ids) >= kept + WORTH_A_PASS for other in others)
            if is_early or (new and sum(map(len, new)) + len(ids) - kept > PREFILL_CHUNK):
                break
            self._cache.copy(source, number, kept)
            new.append(ids[kept:])
        if len(new) == 1:
            self._cache.reserve(len(self._rows), self._cache.rows[first].length + len(new[0]))
            hidden_RE = self._decoder.append(new[0], self._cache.rows[first])
        else:
            hidden_RE = self._decoder.append_rows(new, self._cache, first=first)
        if first + len(new) > self._read_rows:
            self._read_rows = first + len(new)
            self._last = self._rows[self._read_rows - 1].prompt_ids, hidden_RE[-1:]
        return hidden_RE

    def _logits(self, hidden_RD: Tensor) -> Logits:
        """Those of some answers: where one is guided, those without its input and so many times the difference
        (classifier-free guidance, Ho and Salimans 2022; for tokens, Gafni et al. 2022, section 3.4)."""
        own = [number for number, row in enumerate(self._rows) if not row.is_unconditional]
        twins = {id(row.answer): number for number, row in enumerate(self._rows) if row.is_unconditional}

        def logits(numbers: list[int], allowed: Sequence[range]) -> Tensor:
            rows = [own[number] for number in numbers]
            logits_RN = self._decoder.logits(_rows(hidden_RD, rows), allowed)
            others = [twins.get(id(self._rows[row].answer), row) for row in rows]
            if others == rows:
                return logits_RN
            scales = [[self._rows[row].answer.guidance_scale] for row in rows]
            scale_R1 = torch.tensor(scales, dtype=logits_RN.dtype, device=logits_RN.device)
            return self._decoder.logits(hidden_RD[others], allowed).lerp(logits_RN, scale_R1)

        return logits

    def _remove(self, number: int) -> None:
        last = self._rows.pop()
        self._read_rows -= 1
        if number < len(self._rows):
            self._cache.copy(len(self._rows), number, self._cache.rows[len(self._rows)].length)
            self._rows[number] = last


def _rows(values_RD: Tensor, numbers: list[int]) -> Tensor:
    return values_RD if len(numbers) == len(values_RD) else values_RD[numbers]


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """By halving, which compares slices and not ids one by one."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low
