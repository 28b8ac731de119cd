"""Longer conversations: a few short ones after another, and a question about what came before."""

from collections.abc import Callable, Mapping, Sequence

from anygpt.data.dialogue import MediaRef
from anygpt.world import images
from anygpt.world.dialogues.pictures import remember
from anygpt.world.dialogues.talk import Again, Talk

MOST_IDS = 1700
"""By a rough count; the small model has a context of 2048."""
_TRIES = 4000


def follow(talk: Talk, parts: Mapping[Callable[[Talk], object], Sequence[str]], count: int) -> None:
    """Write `count` of `parts` (scenario -> its topics) one after another, then perhaps a question about a picture."""
    for build in talk.rng.sample(tuple(parts), count):
        _add(talk, build, talk.one(*parts[build]))
    refs = [ref for message in talk.messages for ref in message.media if ref.modality == "image"]
    if len(refs) > 1 and talk.chance(0.5):
        which, ref = talk.one(("the first picture", refs[0]), ("the last picture", refs[-1]))
        scene = images.parse_caption(ref.caption)
        assert scene is not None, ref
        remember(talk, scene, which)
    if sum(map(_ids, talk.parts())) > MOST_IDS or talk.is_new != talk.is_heldout:
        raise Again


def _add(talk: Talk, build: Callable[[Talk], object], topic: str) -> None:
    """One part, drawn again on its own where need be."""
    messages, is_new = list(talk.messages), talk.is_new
    talk.topic = topic
    for _ in range(_TRIES):
        try:
            build(talk)
            return
        except Again:
            talk.messages, talk.is_new = list(messages), is_new
    raise Again


def _ids(part: str | MediaRef) -> float:
    """About how many ids a part takes."""
    if isinstance(part, str):
        return 4 + len(part) / 2.5
    return {"image": 34, "music": 602}.get(part.modality, 3.7 * len(part.caption) + 10)
