"""Choices in conversations: what an answer says of the media that it is given, and the pictures and sounds it makes.

Both go by the words of the checkpoint's template: what was perceived (`perceives`) and what follows (`announces`).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from anygpt.candidates import best_fit, candidate_seed, text_fits
from anygpt.forms import TEXT
from anygpt.generation.loop import Answer
from anygpt.generation.policies import Policy
from anygpt.prompts.segments import Media, text_of
from anygpt.prompts.templates import get_template, load_templates
from anygpt.vocabulary import Span

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT


def wants_choice(policy: Policy) -> bool:
    """Where an answer pauses, for `span_choice`."""
    return policy.has_choice


# ---- what is made ----


@dataclass(frozen=True, eq=False)
class SpanChoice:
    """A picture or sound that is to be chosen among several, for the words that stand before it."""

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
    generators = [_generator(model, candidate_seed(first, number)) for number in range(answer.policy.best_of)]
    return SpanChoice(answer.automaton.modality, text, [answer.open_span(each) for each in generators])


def _words_before_span(model: "AnyGPT", answer: Answer) -> str:
    """What the answer says, since its last picture or sound, that the next one is."""
    is_text = model.vocabulary.is_text
    ids = answer.said_ids
    first = len(ids) - 1
    while first and is_text(ids[first - 1]):
        first -= 1
    return get_template(model.vocabulary.template).announced(text_of(model.vocabulary.decode_ids(ids[first:-1])))


# ---- what is perceived ----


@dataclass(frozen=True, eq=False)
class OpeningChoice:
    """How an answer begins that says what it sees or hears: chosen among several, for the media it was given."""

    media: dict[str, Media]
    candidates: list[Answer]
    """Each up to the first span; to be made."""

    def chosen(self, model: "AnyGPT") -> list[int]:
        """The ids up to the end of what the best of them says of the media; all of the first one's, if that doesn't."""
        found = [_perceived(model, candidate.ids, self.media) for candidate in self.candidates]
        names = list(found[0])
        if not names:
            return self.candidates[0].ids
        same = [n for n, said in enumerate(found) if said.keys() == found[0].keys()]
        fits = dict.fromkeys(same, 0.0)
        for name in names:
            texts = list(dict.fromkeys(found[n][name][0] for n in same))
            fit_of = dict(zip(texts, text_fits(model, self.media[name], texts), strict=True))
            for n in same:
                fits[n] += fit_of[found[n][name][0]]
        best = max(same, key=lambda n: fits[n])
        return self.candidates[best].ids[: max(end for _, end in found[best].values())]


def opening_choice(model: "AnyGPT", answer: Answer, media: Sequence[Media], *, seed: int) -> OpeningChoice | None:
    """What there is to choose for the beginning of an answer to a message with these media; None where the model's
    settings (`AnyGPT.reading`) want no choice for any of them, and where several are of one modality. `seed` is that of
    the answer."""
    counts = Counter(each.modality for each in media)
    policy = answer.policies[TEXT]
    policies = {name: policy.override(model.reading.get(name, {})) for name, count in counts.items() if count == 1}
    if policy.is_greedy or not any(each.best_of > 1 for each in policies.values()):
        return None
    others = max(policies.values(), key=lambda each: each.best_of)
    first = candidate_seed(seed, len(answer.prompt_ids))
    generators = [_generator(model, candidate_seed(first, number)) for number in range(others.best_of)]
    candidates = [
        answer.opening(others.of_others if number else policy, each) for number, each in enumerate(generators)
    ]
    return OpeningChoice({each.modality: each for each in media if each.modality in policies}, candidates)


def _perceived(model: "AnyGPT", ids: Sequence[int], media: dict[str, Media]) -> dict[str, tuple[str, int]]:
    """What ids say of media: modality -> text, and how many ids there are up to its end."""
    vocabulary, template = model.vocabulary, get_template(model.vocabulary.template)
    heard = model.chat_grammar.heard_ids
    spoken = [name for name in media if name in load_templates().message.requests]
    found: dict[str, tuple[str, int]] = {}
    start = 0
    for number, index in enumerate(ids):
        if vocabulary.is_text(index):
            text = vocabulary.text.decode(ids[start : number + 1])
            for name, pattern in template.perceives.items():
                if name in media and name not in found and (match := re.search(pattern, text)) is not None:
                    found[name] = match.group(1), number + 1
            continue
        if heard is not None and index == heard[1] and spoken:
            found[spoken[0]] = vocabulary.text.decode(ids[start:number]).strip(), number + 1
        start = number + 1
    return {name: each for name, each in found.items() if each[0]}


def _generator(model: "AnyGPT", seed: int) -> torch.Generator:
    return torch.Generator(model.decoder.device).manual_seed(seed)
