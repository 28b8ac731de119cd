"""Choosing among several answers to a prompt: the model reads them, and the one that says the prompt best is kept.

Released systems choose among samples by another network, such as CLIP (Ramesh et al. 2021, section 2.6). A model of
both directions is a judge itself: of candidates for a text it takes that for which the text is likeliest. Of texts
about a medium it takes the one that is likeliest together with the medium made from it, as a noisy channel has it (Yee
et al. 2019, equation 3, both weights 1).
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from anygpt.generation.loop import Answer
from anygpt.generation.scoring import log_likelihoods, log_likelihoods_behind
from anygpt.prompts.render import render_answered
from anygpt.prompts.segments import Media, text_of
from anygpt.prompts.templates import Direction

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT


def candidate_seed(seed: int, number: int) -> int:
    """The seed of candidate `number` (from 0, which has that of the answer)."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:7], "big")


def best_fit(model: "AnyGPT", modality: str, text: str, candidates: Sequence[Tensor]) -> int:
    """Which of the candidates, codes int64 [K, T] of a modality, says `text` best to the model; the first of equals."""
    fits = _fits(model, "x2text", [(text, Media(modality, codes_KT)) for codes_KT in candidates])
    return fits.index(max(fits))


def best_text(model: "AnyGPT", media: Media, candidates: Sequence[Answer]) -> int:
    """Which of the candidates, answers in text to a prompt that is `media`, fits these best; the first of equals."""
    known: dict[str, int] = {}
    for number, each in enumerate(candidates):
        if text := text_of(model.vocabulary.decode_ids(each.ids)):
            known.setdefault(text, number)
    if len(known) < 2:
        return next(iter(known.values()), 0)
    fits = text_fits(model, media, list(known))
    return list(known.values())[fits.index(max(fits))]


def text_fits(model: "AnyGPT", media: Media, texts: Sequence[str]) -> list[float]:
    """How well each text fits media: the logarithms of how likely it is made from them, and they from it, together."""
    instruction = model.task_prompts.canonical(media.modality, "x2text")
    rendered = [render_answered("x2text", instruction, text, media, model.vocabulary) for text in texts]
    start = min(mask.index(True) for _, mask in rendered)
    ways = [-math.inf] * len(texts)
    fitting = [n for n, (ids, _) in enumerate(rendered) if len(ids) <= model.decoder.shape.context]
    found = log_likelihoods(model.decoder, rendered[0].ids[:start], [rendered[n].ids[start:] for n in fitting])
    for number, logs_T in zip(fitting, found, strict=True):
        ways[number] = float(logs_T.double().sum())
    back = _fits(model, "text2x", [(text, media) for text in texts])
    return [way + fit for way, fit in zip(ways, back, strict=True)]


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
