"""What a task works with: a model, tokenizers and judges, and the held-out cases."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from anygpt.errors import AnyGPTError
from anygpt.evaluation.effect_judge import EffectJudge
from anygpt.evaluation.judges import ImageJudge, MusicJudge, VoiceJudge
from anygpt.generation.scoring import log_likelihoods
from anygpt.media import Audio
from anygpt.prompts.render import render_pretrain
from anygpt.prompts.segments import Media
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.video import Video

WORLD_SEED = 4242
"""Added to the seed of the held-out worlds, so that no case is one that a training run validated on."""


BATCH_SIZE = 16


class Answer(Protocol):
    """What a model gives back (`anygpt.engine.Result`)."""

    @property
    def text(self) -> str | None: ...

    @property
    def media(self) -> Image.Image | Audio | Video | None: ...

    @property
    def error(self) -> AnyGPTError | None: ...


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a model is asked at once: `content` of modality `source` in, an answer in modality `target` out."""

    source: str
    target: str
    content: Any
    """Text, or a file, a picture or sound, or a function that gives one and may raise MediaError."""
    words: str | None = None
    """A question in words about `content`; None: what the form of prompt says of itself (describe this)."""
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


class Model(Protocol):
    """What is evaluated (`anygpt.AnyGPT`)."""

    vocabulary: Any
    decoder: Any

    @property
    def chat_policies(self) -> Any: ...

    @property
    def chat_grammar(self) -> Any: ...

    def encode(self, name: str, media: Any) -> Any:
        """Codes int64 [K, T] of a file, picture or sound."""
        ...

    def prepare(self, source: str, target: str, content: Any, seed: int, settings: Mapping[str, Any]) -> Any:
        """The prompt of `ask` and all that decides its answer (`anygpt.engine.Task`)."""
        ...

    def run_tasks(self, tasks: Iterable[Any], *, batch_size: int) -> Iterator[Answer]:
        """The answers to what `prepare` gives, in order."""
        ...

    def ask(self, source: str, target: str, content: Any, *, seed: int | None = None, **settings: Any) -> Answer:
        """Answer `content` of modality `source` in modality `target`."""
        ...

    def score(self, prompt: str, candidates: Sequence[str], *, media: Any = None) -> Sequence[Any]:
        """How likely texts are as answers to a message (`anygpt.questions.Score`)."""
        ...

    def session(self, *, seed: int | None = None) -> Any:
        """A new conversation (`anygpt.session.Session`)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """One held-out item: `media` of the task's modality with its canonical `text`, or a question of a conversation
    (`anygpt.evaluation.chat.Question`)."""

    index: int
    seed: int
    """Of everything random in this case."""
    media: Any
    text: str = ""
    truth: dict[str, str] = field(default_factory=dict)
    """The attributes that `text` names."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Given to the model and to the tokenizer's decoder, such as the voice prompt."""
    others: tuple[Any, ...] = ()
    """Real media to compare with."""
    references: tuple[str, ...] = ()
    """Texts that people gave for this case: captions, answers, choices."""


@dataclass(kw_only=True)
class Bench:
    """The things that are shared by all cases, loaded when first needed."""

    tokenizer: Callable[[str], ModalityTokenizer]
    """Modality -> tokenizer; raises AnyGPTError where there is none."""
    judges: Path
    model: Model | None = None
    """None: only tokenizers are judged."""
    seed: int = 0
    device: torch.device | str = "cpu"
    batch_size: int = BATCH_SIZE
    """Questions that are answered at once."""
    is_chat: bool = False
    """Whether questions in words are messages of a conversation, instead of a base model's single prompts."""
    data: Path | None = None
    """Folder of the public sets."""
    scorers: Mapping[str, Path] = field(default_factory=dict)
    """Kind of scorer (`anygpt.evaluation.scorers.SCORERS`) -> folder of its weights."""
    cache: dict[str, Any] = field(default_factory=dict)
    """What tasks keep from case to case."""

    @cached_property
    def image_judge(self) -> ImageJudge:
        return ImageJudge.load(self.judges, self.device)

    @cached_property
    def music_judge(self) -> MusicJudge:
        return MusicJudge.load(self.judges, self.device)

    @cached_property
    def audio_judge(self) -> EffectJudge:
        return EffectJudge.load(self.judges, self.device)

    @cached_property
    def voice_judge(self) -> VoiceJudge:
        return VoiceJudge.load(self.judges, self.device)

    @property
    def world_seed(self) -> int:
        return WORLD_SEED + self.seed

    def case_seed(self, index: int) -> int:
        """The seed of case `index`."""
        return self.seed * 1_000_003 + index

    def tell(self, modality: str, case: Case, media: Any) -> str:
        """The model's words for `media`."""
        return self._model.ask(modality, "text", media, seed=case.seed).text or ""

    def make(self, modality: str, case: Case) -> Any:
        """What the model makes of the case's text."""
        return self._model.ask("text", modality, case.text, seed=case.seed, **case.settings).media

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer | AnyGPTError]:
        """Answer questions in order, `batch_size` at a time; what can't be answered gives its error."""
        failed: dict[int, AnyGPTError] = {}
        asked = 0

        def tasks() -> Iterator[Any]:
            nonlocal asked
            for number, question in enumerate(questions):
                asked = number + 1
                try:
                    yield self._prepare(question)
                except AnyGPTError as error:
                    failed[number] = error

        due = 0
        for answer in self._model.run_tasks(tasks(), batch_size=self.batch_size):
            while due in failed:
                yield failed.pop(due)
                due += 1
            yield answer.error or answer
            due += 1
        yield from (failed.pop(number) for number in range(due, asked))

    def _prepare(self, question: Question) -> Any:
        """The model's task for a question. Raises AnyGPTError where it can't be asked."""
        model, source = self._model, question.source
        content = question.content() if callable(question.content) else question.content
        if question.words is None:
            return model.prepare(source, question.target, content, question.seed, question.settings)
        media = Media(source, model.encode(source, content))
        settings = {**question.settings, "instruction": question.words}
        task = model.prepare(source, question.target, media.codes_KT, question.seed, settings)
        if not self.is_chat:
            return task
        session = model.session(seed=question.seed)
        return replace(
            task,
            ids=session.prompt_ids(session.message(question.words, [media])),
            grammar=model.chat_grammar,
            policies={**model.chat_policies, question.target: task.policies[question.target]},
        )

    def log_likelihoods(self, question: Question, candidates: Sequence[str]) -> list[float]:
        """The natural logarithm of how likely each text is as the whole answer to a question in words."""
        model, source, words = self._model, question.source, question.words
        assert words is not None, question
        content = question.content() if callable(question.content) else question.content
        media = Media(source, model.encode(source, content))
        if self.is_chat:
            return [float(score.log_likelihood) for score in model.score(words, candidates, media=[media])]
        # Without the end of a training example, which follows that of the answer.
        rendered = [
            render_pretrain("x2text", words, text, media, model.vocabulary, train_question=False) for text in candidates
        ]
        start = min(mask.index(True) for _, mask in rendered)
        answers = [ids[start:-1] for ids, _ in rendered]
        context = model.decoder.shape.context
        if (longest := start + max(map(len, answers))) > context:
            raise AnyGPTError(f"question and answer are {longest} ids long, more than the model's context of {context}")
        found = log_likelihoods(model.decoder, rendered[0].ids[:start], answers)
        return [float(logs_T.double().sum()) for logs_T in found]

    def scorer(self, kind: str) -> Any:
        """A scorer of that kind, loaded when first needed. Raises AnyGPTError where no folder is given for it."""
        from anygpt.evaluation.scorers import load_scorer

        if kind not in self.cache:
            self.cache[kind] = load_scorer(kind, self.scorers.get(kind), self.device)
        return self.cache[kind]

    def session(self, case: Case) -> Any:
        """A new conversation with the model."""
        return self._model.session(seed=case.seed)

    def rebuild(self, modality: str, media: Any, case: Case) -> Any:
        """Media after the tokenizer: what their codes for the language model keep."""
        tokenizer = self.tokenizer(modality)
        generator = torch.Generator().manual_seed(case.seed)
        return tokenizer.decode(tokenizer.encode([media])[0], generator=generator, **case.settings)

    @property
    def _model(self) -> Model:
        if self.model is None:
            raise AnyGPTError("no model is loaded; this part of the evaluation needs one")
        return self.model


def captioned(
    bench: Bench, world: Any, *, media: Callable[[Any], Any], truth: Callable[[Any], dict[str, str]]
) -> Callable[[int], Case]:
    """The samples of a world as cases, with their canonical captions."""

    def case(index: int) -> Case:
        sample = world.sample(index)
        return Case(
            index=index,
            seed=bench.case_seed(index),
            media=media(sample),
            text=sample.caption,
            truth=truth(sample),
        )

    return case
