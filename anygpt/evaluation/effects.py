"""Sound effects as cases: held-out clips, and what is right of a clip or of a caption."""

from collections.abc import Callable, Mapping, Sequence

from anygpt.evaluation.bench import Bench, Case, captioned
from anygpt.evaluation.metrics import Scores, compare
from anygpt.media import Audio
from anygpt.world import effects
from anygpt.world.effects import NONE

EFFECT_MEASURES: Mapping[str, Sequence[str]] = {
    "effects": ("first", "second"),
    "manner": ("manner",),
    "distance": ("distance",),
    "all": tuple(effects.ATTRIBUTES),
}
"""Measure -> attributes that must all be right."""


def effect_cases(bench: Bench) -> Callable[[int], Case]:
    """Clips of held-out combinations with canonical captions."""
    world = effects.EffectWorld("heldout", seed=bench.world_seed)
    return captioned(
        bench,
        world,
        media=lambda sample: Audio(sample.wave[None], effects.RATE_HZ),
        truth=lambda sample: effects.facts(sample.attributes),
    )


def effect_scores(bench: Bench, case: Case, clip: Audio | None) -> Scores:
    """What the judge hears in a clip, against the case's attributes."""
    return _compared(None if clip is None else bench.audio_judge.read([clip])[0], case)


def effect_caption_scores(bench: Bench, case: Case, text: str | None) -> Scores:
    """What a caption says."""
    found = effects.parse_caption(text or "")
    return _compared(None if found is None else effects.facts(found), case)


def _compared(read: Mapping[str, str] | None, case: Case) -> Scores:
    """Manner and distance only where the clip has them, which pairs of sounds don't."""
    measures = {name: keys for name, keys in EFFECT_MEASURES.items() if case.truth.get(name) != NONE}
    return compare(read, case.truth, measures)
