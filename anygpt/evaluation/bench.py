"""What a task works with: a model, tokenizers and judges, and the held-out cases."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from anygpt.errors import AnyGPTError
from anygpt.evaluation.judges import ImageJudge, MusicJudge, VoiceJudge
from anygpt.media import Audio
from anygpt.tokenizers.base import ModalityTokenizer

WORLD_SEED = 4242
"""Added to the seed of the held-out worlds, so that no case is one that a training run validated on."""


class Answer(Protocol):
    """What a model gives back (`anygpt.engine.Result`)."""

    @property
    def text(self) -> str | None: ...

    @property
    def media(self) -> Image.Image | Audio | None: ...


class Model(Protocol):
    """What is evaluated (`anygpt.AnyGPT`)."""

    def ask(self, source: str, target: str, content: Any, *, seed: int | None = None, **settings: Any) -> Answer:
        """Answer `content` of modality `source` in modality `target`."""
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
    cache: dict[str, Any] = field(default_factory=dict)
    """What tasks keep from case to case."""

    @cached_property
    def image_judge(self) -> ImageJudge:
        return ImageJudge.load(self.judges, self.device)

    @cached_property
    def music_judge(self) -> MusicJudge:
        return MusicJudge.load(self.judges, self.device)

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
