"""Pictures and questions at volume: captions, answers, and how likely given answers are; the methods of `AnyGPT`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from anygpt.batches import prepare_and_run
from anygpt.engine import Task, task_or_error
from anygpt.errors import AnyGPTError
from anygpt.forms import INSTRUCTION, TEXT, parse_form, quoted
from anygpt.generation.scoring import log_likelihoods
from anygpt.prompts.render import Rendered, render, render_answered
from anygpt.prompts.segments import Media, Turn
from anygpt.prompts.tags import box_form
from anygpt.prompts.templates import load_templates
from anygpt.vocabulary import Text

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT, Result
    from anygpt.session import Given

IMAGE = "image"
Picture = str | Path | Image.Image | Tensor
"""A file, a picture, or codes [1, 32]."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a candidate is as the whole answer."""

    candidate: str
    log_likelihood: float
    """Natural logarithm; the end of the answer included, so that a text and its beginning can be compared."""
    count: int
    """Ids of the answer, its end included."""

    @property
    def mean(self) -> float:
        """Of an id: to rank candidates of very unlike lengths."""
        return self.log_likelihood / self.count


def caption(
    model: "AnyGPT",
    images: Iterable[Picture],
    instruction: str | None,
    *,
    batch_size: int,
    seed: int,
    settings: Mapping[str, Any],
) -> "Iterator[Result]":
    """See `AnyGPT.caption`; caption i has `seed` + i."""
    if isinstance(images, Picture):
        raise AnyGPTError("images is one picture, expected a list of them")
    if instruction is not None:
        return answer(
            model, ((image, instruction) for image in images), batch_size=batch_size, seed=seed, settings=settings
        )
    model.policies[TEXT].override(settings)

    def make(image: Picture, seed: int) -> Task:
        return model.prepare(IMAGE, TEXT, image, seed, settings)

    return _run(model, ((_named(image), image) for image in images), make, batch_size=batch_size, seed=seed)


def answer(
    model: "AnyGPT",
    questions: Iterable[tuple[Picture | None, str]],
    *,
    batch_size: int,
    seed: int,
    settings: Mapping[str, Any],
) -> "Iterator[Result]":
    """See `AnyGPT.answer_batch`; answer i has `seed` + i."""
    policies = {**model.chat_policies, TEXT: model.chat_policies[TEXT].override(settings)}
    session = model.session(seed=seed)

    def make(asked: tuple[Picture | None, str], seed: int) -> Task:
        image, question = asked
        turn = session.message(question, [] if image is None else [(IMAGE, image)])
        return Task(
            prompt=question,
            target=TEXT,
            ids=session.prompt_ids(turn),
            unconditional_ids=None,
            policies=policies,
            decoder_settings={},
            seed=seed,
            grammar=model.chat_grammar,
            boxes=box_form(question),
            picture=None if isinstance(image, Tensor) else image,
        )

    return _run(model, ((asked[1], asked) for asked in questions), make, batch_size=batch_size, seed=seed)


def score(model: "AnyGPT", prompt: str, candidates: Sequence[str], media: "Sequence[Given] | None") -> list[Score]:
    """See `AnyGPT.score`."""
    if isinstance(candidates, str) or not candidates:
        raise AnyGPTError(f"candidates are {candidates!r}, expected a list of one text or more")
    for candidate in candidates:
        if not isinstance(candidate, str) or not candidate.strip():
            raise AnyGPTError(f"a candidate is {candidate!r}, expected a text")
    answered = _answered_prompt(model, prompt) if media is None else _answered_message(model, prompt, media)
    rendered = [answered(candidate.strip()) for candidate in candidates]
    context = model.decoder.shape.context
    for candidate, (ids, _) in zip(candidates, rendered, strict=True):
        if len(ids) > context:
            raise AnyGPTError(
                f"the prompt and the candidate {quoted(candidate)} are {len(ids)} ids long, "
                f"more than the model's context of {context}"
            )
    # An id may hold the last characters of a prompt and the first of an answer: then it counts for all answers.
    start = min(mask.index(True) for _, mask in rendered)
    found = log_likelihoods(model.decoder, rendered[0].ids[:start], [ids[start:] for ids, _ in rendered])
    return [
        Score(candidate=candidate, log_likelihood=float(logs_T.double().sum()), count=len(logs_T))
        for candidate, logs_T in zip(candidates, found, strict=True)
    ]


def _answered_prompt(model: "AnyGPT", prompt: str) -> Callable[[str], Rendered]:
    """Gives a one-line prompt with an answer, as a model is trained on them."""
    form = parse_form(prompt, model.specs.values())
    if form.target != TEXT:
        raise AnyGPTError(f"{form.source}|{form.target}: candidates are texts; expected a prompt such as image|text|…")
    media = Media(form.source, model.encode(form.source, form.content))
    instruction = form.fields.get(INSTRUCTION) or model.task_prompts.canonical(form.source, "x2text")
    return lambda text: render_answered("x2text", instruction, text, media, model.vocabulary)


def _answered_message(model: "AnyGPT", text: str, media: "Sequence[Given]") -> Callable[[str], Rendered]:
    """Gives a message with an answer, as a chat model is trained on them."""
    question = model.session().message(text, media)
    spoken = load_templates().message.requests
    for item in question.media:
        if item.modality in spoken:
            raise AnyGPTError(f"{item.modality} is an instruction itself, and answers to it begin with what was heard")

    def rendered(text: str) -> Rendered:
        turns = [question, Turn("assistant", [Text(text)])]
        return render(turns, model.vocabulary.template, model.vocabulary)

    return rendered


def _run(
    model: "AnyGPT",
    items: Iterable[tuple[str, Any]],
    make: Callable[[Any, int], Task],
    *,
    batch_size: int,
    seed: int,
) -> "Iterator[Result]":
    """The results of what `make` makes of items, which are given with what their prompts are called."""
    if batch_size < 1:
        raise AnyGPTError(f"batch_size is {batch_size}, expected at least 1")

    def makes() -> "Iterator[Callable[[], Task | Result]]":
        for number, (prompt, item) in enumerate(items):
            own = (seed + number) % 2**63
            yield partial(task_or_error, partial(make, item, own), prompt, own)

    return prepare_and_run(model, makes(), batch_size=batch_size)


def _named(image: Picture) -> str:
    return str(image) if isinstance(image, str | Path) else f"<{type(image).__name__}>"
