"""Decoding settings: one file per modality of the answer, in the names that Hugging Face uses."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anygpt.config import from_dict, load_config, read_mapping
from anygpt.errors import ConfigError
from anygpt.modality import ModalitySpec


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the ids of one modality are drawn. The file is `config/<modality>_generate_config.json`.

    Raises ConfigError, naming the field, for values out of range.
    """

    do_sample: bool = True
    """False takes the most likely id each time; `temperature`, `top_k` and `top_p` then have no effect."""
    temperature: float = 1.0
    """0 is the same as `do_sample: false`."""
    top_k: int = 0
    """Draw among so many most likely ids; 0 for all."""
    top_p: float = 1.0
    """Draw among the most likely ids that reach this probability together."""
    repetition_penalty: float = 1.0
    """Logits of ids that occurred before, in prompt or answer, are divided (negative ones multiplied) by it."""
    max_new_tokens: int = 500
    """Codes in a span, or ids of text, tags not counted. A span is closed at the last whole frame within it."""
    min_new_tokens: int = 1
    num_beams: int = 1
    guidance_scale: float = 1.0
    """Media: how far the logits go from those without the prompt's input to those with it, and beyond
    (classifier-free guidance); 1 is without guidance and its second pass."""
    best_of: int = 1
    """Answers made at once, of which one is kept (`anygpt.candidates`): of media the one that the model itself reads
    the prompt from most surely, in conversations its own words before it; of texts about media the one that fits these
    best. Not in streams, which have begun before there is a choice."""
    choice_temperature: float = 1.0
    """Text: at which temperature all candidates but the first are drawn."""
    vc_steps: int | None = None
    """Speech: iterations of SoundStorm over the first level it fills in."""

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature >= 0 and math.isfinite(self.temperature), "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0 (0: no limit)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 (1: none)"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "from 0 to max_new_tokens"),
            "num_beams": (self.num_beams == 1, "1: beam search is not supported, answers are sampled or greedy"),
            "guidance_scale": (0 <= self.guidance_scale < math.inf, "at least 0 (1: no guidance)"),
            "best_of": (self.best_of >= 1, "at least 1"),
            "choice_temperature": (0 < self.choice_temperature < math.inf, "above 0"),
            "vc_steps": (self.vc_steps is None or self.vc_steps >= 1, "at least 1"),
        }
        for field, (is_valid, expected) in rules.items():
            if not is_valid:
                raise ConfigError(f"'{field}' is {getattr(self, field)}, expected {expected}")

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0

    @property
    def has_choice(self) -> bool:
        """Whether what is made under it is chosen among candidates."""
        return self.best_of > 1 and not self.is_greedy

    @property
    def of_others(self) -> "Policy":
        """That of the candidates for a text beside the first."""
        free: dict[str, Any] = {"do_sample": True, "temperature": self.choice_temperature, "top_k": 0, "top_p": 1.0}
        return dataclasses.replace(self, **free)

    @property
    def decoder_settings(self) -> dict[str, int]:
        """Those that go to the tokenizer's `decode`."""
        return {} if self.vc_steps is None else {"vc_steps": self.vc_steps}

    def override(self, settings: Mapping[str, Any]) -> "Policy":
        """The same policy with some settings replaced. Raises ConfigError that names the nearest known setting."""
        return from_dict(Policy, dataclasses.asdict(self) | dict(settings), source="generation settings")


CONVERSATION = {"guidance_scale": 1.0}
"""What holds for all media that are made in a conversation."""


def load_policies(
    folder: Path | str,
    modalities: Iterable[ModalitySpec],
    *,
    text: str = "text",
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Policy]:
    """Read `<folder>/<name>_generate_config.json` of every modality, and that of `text` under the key "text".

    `text` is "text" for single answers; chat reads `generate_config.json` (`text=""`). `defaults`, by modality, are a
    model's own settings, for what a file leaves out. Raises ConfigError naming the file for unknown keys, bad values,
    and limits that no span of the modality fits.
    """
    folder = Path(folder)
    policies = {"text": load_config(Policy, folder / f"{text}_generate_config.json".lstrip("_"))}
    for spec in modalities:
        path = folder / f"{spec.name}_generate_config.json"
        own = (defaults or {}).get(spec.name, {})
        from_dict(Policy, own, source=f"the model's settings for {spec.name}")
        policies[spec.name] = policy = from_dict(Policy, {**own, **read_mapping(path)}, source=str(path))
        check_limits(policy, spec, str(path))
    return policies


def check_limits(policy: Policy, spec: ModalitySpec, source: str) -> None:
    """Raise ConfigError when `max_new_tokens` is below the shortest whole span of the modality."""
    shortest = (spec.frames or 1) * spec.num_codebooks
    if policy.max_new_tokens < shortest:
        raise ConfigError(
            f"{source}: 'max_new_tokens' is {policy.max_new_tokens}, expected at least {shortest} for {spec.name}"
        )
