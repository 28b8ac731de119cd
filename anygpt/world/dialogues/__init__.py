"""Conversations in the synthetic world: from a topic to a scenario to messages whose media the world can make.

A scenario writes a conversation into a `Talk`; its module says what kinds there are. All wordings are plain, replies
have a small set of shapes, and whatever a reply shows or plays is named in words just before: a small model can learn
this, and a judge can check it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from anygpt.data.dialogue import Dialogue
from anygpt.errors import AnyGPTError, nearest
from anygpt.world.dialogues import mixed, noises, pictures, pointing, texts, tunes
from anygpt.world.dialogues.facts import OBJECTS_OF
from anygpt.world.dialogues.talk import Again, Talk

SPLITS = ("train", "heldout")
PICTURES = tuple(OBJECTS_OF)
FACTS = tuple(texts.FACTS)
_REDRAWS = 20_000


def _mixed(talk: Talk) -> None:
    scenarios = [row for row in SCENARIOS.values() if not (row.stands_alone or row.on_request)]
    parts = {scenario.build: scenario.topics for scenario in scenarios}
    mixed.follow(talk, parts, talk.one(2, 3, 4))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How a conversation is built, how often, and what it may be about."""

    build: Callable[[Talk], object]
    weight: float
    topics: Sequence[str]
    is_closed: bool = False
    """All of its conversations are known: there is nothing to hold out."""
    stands_alone: bool = False
    """It speaks of its own first picture or question, so it can't follow on others in a longer conversation."""
    on_request: bool = False
    """Written only where it is asked for by name: practice in a part of another scenario, or what the shipped models
    lack, a modality or boxes."""


SCENARIOS: dict[str, Scenario] = {
    # words
    "facts": Scenario(build=texts.facts, weight=7, topics=FACTS),
    "small-talk": Scenario(build=texts.small_talk, weight=3, topics=("small talk",), is_closed=True),
    "remember-me": Scenario(build=texts.remember_me, weight=6, topics=("people",)),
    "what-did-i-ask": Scenario(build=texts.what_did_i_ask, weight=3, topics=FACTS, stands_alone=True),
    # pictures
    "draw": Scenario(build=pictures.draw, weight=6, topics=PICTURES),
    "draw-and-change": Scenario(build=pictures.draw_and_change, weight=12, topics=PICTURES),
    "draw-and-remember": Scenario(build=pictures.draw_and_remember, weight=5, topics=PICTURES, stands_alone=True),
    "change-a-picture": Scenario(build=pictures.change_given, weight=8, topics=PICTURES),
    "rearrange-a-picture": Scenario(build=pictures.rearrange, weight=4, topics=PICTURES, on_request=True),
    "describe-a-picture": Scenario(build=pictures.describe, weight=6, topics=PICTURES),
    "questions-about-a-picture": Scenario(build=pictures.questions, weight=5, topics=PICTURES),
    "two-pictures": Scenario(build=pictures.two_pictures, weight=5, topics=PICTURES, stands_alone=True),
    "put-together": Scenario(build=pictures.put_together, weight=2, topics=PICTURES),
    # speech
    "say": Scenario(build=texts.say, weight=5, topics=("sentences",)),
    "answer-aloud": Scenario(build=texts.answer_aloud, weight=3, topics=FACTS),
    "say-what-you-see": Scenario(build=pictures.say_what_you_see, weight=3, topics=PICTURES),
    "write-down": Scenario(build=texts.write_down, weight=3, topics=("sentences",)),
    "spoken-facts": Scenario(build=texts.spoken_facts, weight=5, topics=FACTS),
    "spoken-small-talk": Scenario(build=texts.spoken_small_talk, weight=1, topics=("small talk",), is_closed=True),
    "spoken-memory": Scenario(build=texts.spoken_memory, weight=3, topics=("people",)),
    "spoken-draw": Scenario(build=pictures.spoken_draw, weight=7, topics=PICTURES),
    "spoken-change": Scenario(build=pictures.spoken_change, weight=4, topics=PICTURES),
    "spoken-question": Scenario(build=pictures.spoken_question, weight=4, topics=PICTURES),
    # music
    "play": Scenario(build=tunes.play, weight=2, topics=("music",)),
    "play-and-change": Scenario(build=tunes.play_and_change, weight=2, topics=("music",)),
    "change-a-clip": Scenario(build=tunes.change_given, weight=2, topics=("music",)),
    "describe-a-clip": Scenario(build=tunes.describe, weight=3, topics=("music",)),
    "spoken-play": Scenario(build=tunes.spoken_play, weight=2, topics=("music",)),
    "say-what-plays": Scenario(build=tunes.say_what_plays, weight=1.5, topics=("music",)),
    "draw-what-plays": Scenario(build=tunes.draw_what_plays, weight=1.5, topics=("instruments",)),
    "play-the-picture": Scenario(build=tunes.play_the_picture, weight=1.5, topics=("instruments",)),
    "play-the-background": Scenario(build=tunes.play_the_background, weight=1.5, topics=PICTURES),
    "picture-and-music": Scenario(build=tunes.picture_and_music, weight=2, topics=PICTURES),
    "picture-and-speech": Scenario(build=tunes.picture_and_speech, weight=2, topics=PICTURES),
    # sound effects
    "make-a-sound": Scenario(build=noises.make, weight=4, topics=("sounds",), on_request=True),
    "describe-a-sound": Scenario(build=noises.describe, weight=4, topics=("sounds",), on_request=True),
    "sound-of-the-picture": Scenario(build=noises.of_the_picture, weight=2, topics=("sounds",), on_request=True),
    # pointing
    "refer": Scenario(build=pointing.refer, weight=4, topics=PICTURES, stands_alone=True, on_request=True),
    "identify": Scenario(build=pointing.identify, weight=3, topics=PICTURES, stands_alone=True, on_request=True),
    "detection": Scenario(build=pointing.detection, weight=2, topics=PICTURES, stands_alone=True, on_request=True),
    "grounding": Scenario(build=pointing.grounding, weight=3, topics=PICTURES, stands_alone=True, on_request=True),
    "tagged-caption": Scenario(build=pointing.caption, weight=1, topics=PICTURES, stands_alone=True, on_request=True),
    "tagged-vqa": Scenario(build=pointing.vqa, weight=2, topics=PICTURES, stands_alone=True, on_request=True),
    # all of it
    "mixed": Scenario(build=_mixed, weight=12, topics=("mixed",), stands_alone=True),
}
"""Scenarios by name; between those without `on_request` every modality is answered with every other and with itself."""


POINTING = ("refer", "identify", "detection", "grounding", "tagged-caption", "tagged-vqa")
"""The scenarios with MiniGPT-v2's tags."""


class DialogueWorld:
    """An endless, indexable stream of conversations: `dialogue(i)` depends on (seed, split, scenarios, i) alone.

    In `train` nothing is held out. In `heldout` every conversation has a picture, a clip or words that training never
    has: all pictures, all clips but those that a change starts from, and all spoken wishes that are more than a set
    phrase; scenarios without anything to hold out are left out. `scenarios` limits what is written; empty means
    all but those `on_request`.
    Raises AnyGPTError for an unknown split or scenario.
    """

    def __init__(self, split: str = "train", seed: int = 0, *, scenarios: Sequence[str] = ()) -> None:
        if split not in SPLITS:
            raise AnyGPTError(f"dialogue world: unknown split '{split}', expected one of {', '.join(SPLITS)}")
        for name in scenarios:
            if name not in SCENARIOS:
                raise AnyGPTError(f"unknown scenario '{name}'{nearest(name, SCENARIOS)}; known: {', '.join(SCENARIOS)}")
        self.split, self.seed = split, seed
        self.scenarios = {
            name: scenario
            for name, scenario in SCENARIOS.items()
            if (name in scenarios if scenarios else not scenario.on_request)
            and not (scenario.is_closed and split == "heldout")
        }
        if not self.scenarios:
            raise AnyGPTError(f"scenarios {', '.join(scenarios)}: hold nothing out; leave them out with split heldout")

    def dialogue(self, index: int) -> Dialogue:
        """Conversation `index`."""
        rng = random.Random(f"dialogue/{self.split}/{self.seed}/{index}")
        weights = [scenario.weight for scenario in self.scenarios.values()]
        (name,) = rng.choices(tuple(self.scenarios), weights)
        scenario = self.scenarios[name]
        (topic,) = rng.choices(
            scenario.topics, [len(OBJECTS_OF.get(topic, ())) ** 0.5 or 1 for topic in scenario.topics]
        )
        for _ in range(_REDRAWS):
            talk = Talk(self.split, topic, rng)
            try:
                scenario.build(talk)
            except Again:
                continue
            assert talk.is_new == talk.is_heldout, (name, talk.messages)
            return Dialogue(topic=topic, scenario=name, messages=tuple(talk.messages))
        raise AssertionError(f"{name}: nothing to draw in {self.split} about {topic}")

    def __iter__(self) -> Iterator[Dialogue]:
        index = 0
        while True:
            yield self.dialogue(index)
            index += 1
