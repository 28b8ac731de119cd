"""Choosing among several answers to a prompt: the model reads them, and the one that says the prompt best is kept.

Released systems choose among samples by another network, such as CLIP (Ramesh et al. 2021, section 2.6). A model of
both directions is a judge itself: of candidates for a text it takes that for which the text is likeliest. Of texts
about a medium it takes the one that is likeliest together with the medium made from it, as a noisy channel has it (Yee
et al. 2019, equation 3, both weights 1).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anygpt.generation.loop import Answer
from anygpt.generation.scoring import log_likelihoods, log_likelihoods_behind
from anygpt.prompts.render import render_answered
from anygpt.prompts.segments import Media, text_of
from anygpt.prompts.templates import Direction, get_template
from anygpt.vocabulary import Span

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT


@dataclass(frozen=True, eq=False)
class SpanChoice:
    """A picture or sound in a conversation that is to be chosen among several, for the words that stand before it."""

    modality: str
    text: str
    candidates: list[Answer]
    """Each the span alone; to be made."""

    def chosen(self, model: "AnyGPT") -> list[int]:
        """The ids of the one that says the words best, when all are made; what comes after the start tag."""
        spans = [model.vocabulary.decode_ids(candidate.ids)[0] for candidate in self.candidates]
        codes = [span.codes_KT for span in spans if isinstance(span, Span)]
        return self.candidates[best_fit(model, self.modality, self.text, codes)].ids[1:]


def span_choice(model: "AnyGPT", answer: Answer, *, seed: int) -> SpanChoice | None:
    """What there is to choose for the span that a paused answer has begun; None where no words of its own stand right
    before it. `seed` is that of the answer."""
    text = _words_before_span(model, answer)
    if not text:
        return None
    first = candidate_seed(seed, len(answer.prompt_ids) + len(answer.ids))
    seeds = [candidate_seed(first, number) for number in range(answer.policy.best_of)]
    device = model.decoder.device
    candidates = [answer.open_span(torch.Generator(device).manual_seed(each)) for each in seeds]
    return SpanChoice(answer.automaton.modality, text, candidates)


def _words_before_span(model: "AnyGPT", answer: Answer) -> str:
    """What the answer says, since its last picture or sound, that the next one is."""
    is_text = model.vocabulary.is_text
    first = len(answer.ids) - 1
    while first and is_text(answer.ids[first - 1]):
        first -= 1
    items = model.vocabulary.decode_ids(answer.ids[first:-1])
    return get_template(model.vocabulary.template).announced(text_of(items))


def candidate_seed(seed: int, number: int) -> int:
    """The seed of candidate `number` (from 0, which has that of the answer)."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:7], "big")


def best_fit(model: "AnyGPT", modality: str, text: str, candidates: Sequence[Tensor]) -> int:
    """Which of the candidates, codes int64 [K, T] of a modality, says `text` best to the model; the first of equals."""
    fits = _fits(model, "x2text", [(text, Media(modality, codes_KT)) for codes_KT in candidates])
    return fits.index(max(fits))


def best_text(model: "AnyGPT", media: Media, prompt_ids: Sequence[int], candidates: Sequence[Answer]) -> int:
    """Which of the candidates, answers in text to a prompt that is `media`, fits these best; the first of equals."""
    known: dict[str, int] = {}
    for number, each in enumerate(candidates):
        if text := text_of(model.vocabulary.decode_ids(each.ids)):
            known.setdefault(text, number)
    if len(known) < 2:
        return next(iter(known.values()), 0)
    ways = log_likelihoods(model.decoder, prompt_ids, [candidates[number].ids for number in known.values()])
    back = _fits(model, "text2x", [(text, media) for text in known])
    fits = [float(logs_T.double().sum()) + fit for logs_T, fit in zip(ways, back, strict=True)]
    return list(known.values())[fits.index(max(fits))]


def _fits(model: "AnyGPT", direction: Direction, pairs: Sequence[tuple[str, Media]]) -> list[float]:
    """The logarithms of how likely the answers are, which all are the same, to prompts for these pairs; minus infinity
    for those that exceed the context."""
    instruction = model.task_prompts.canonical(pairs[0][1].modality, direction)
    rendered = [render_answered(direction, instruction, *pair, model.vocabulary) for pair in pairs]
    prompts = [ids[: mask.index(True)] for ids, mask in rendered]
    answer = rendered[0].ids[len(prompts[0]) :]
    fits = [-math.inf] * len(pairs)
    fitting = [n for n, prompt in enumerate(prompts) if len(prompt) + len(answer) <= model.decoder.shape.context]
    found = log_likelihoods_behind(model.decoder, [prompts[n] for n in fitting], answer)
    for number, logs_T in zip(fitting, found, strict=True):
        fits[number] = float(logs_T.double().sum())
    return fits
