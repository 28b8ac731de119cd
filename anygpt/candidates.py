"""Choosing among several answers to a prompt: the model reads them, and the one that says the prompt best is kept.

Released systems choose among samples by another network, such as CLIP (Ramesh et al. 2021, section 2.6). A model of
both directions is a judge itself: of candidates for a text it takes that for which the text is likeliest.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anygpt.generation.loop import Answer
from anygpt.generation.scoring import log_likelihoods_behind
from anygpt.prompts.render import render_reading
from anygpt.prompts.segments import Media, Text
from anygpt.prompts.templates import get_template
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
    text = "".join(item.text for item in items if isinstance(item, Text)).strip()
    return get_template(model.vocabulary.template).announced(text)


def candidate_seed(seed: int, number: int) -> int:
    """The seed of candidate `number` (from 0, which has that of the answer)."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:7], "big")


def best_fit(model: "AnyGPT", modality: str, text: str, candidates: Sequence[Tensor]) -> int:
    """Which of the candidates, codes int64 [K, T] of a modality, says `text` best to the model; the first of equals."""
    instruction = model.task_prompts.canonical(modality, "x2text")
    media = [Media(modality, codes_KT) for codes_KT in candidates]
    rendered = [render_reading(instruction, text, each, model.vocabulary) for each in media]
    prompts = [ids[: mask.index(True)] for ids, mask in rendered]
    answer = rendered[0].ids[len(prompts[0]) :]
    # What is too long to be read back comes last.
    fitting = [n for n, prompt in enumerate(prompts) if len(prompt) + len(answer) <= model.decoder.shape.context]
    found = log_likelihoods_behind(model.decoder, [prompts[n] for n in fitting], answer)
    fits = [float(logs_T.double().sum()) for logs_T in found]
    return fitting[fits.index(max(fits))] if fitting else 0
