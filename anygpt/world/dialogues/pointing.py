"""Scenarios about where things are in a picture, with MiniGPT-v2's tags (`anygpt.prompts.tags`): boxes asked for or
given, and descriptions and questions with tags of their own."""

from collections.abc import Callable

from anygpt.boxes import Box, format_phrase
from anygpt.data.dialogue import MediaRef, Message
from anygpt.prompts.tags import tagged
from anygpt.world import images
from anygpt.world.dialogues.facts import KIND_OF
from anygpt.world.dialogues.pictures import question, where
from anygpt.world.dialogues.talk import Talk
from anygpt.world.emoji import with_article
from anygpt.world.images import Scene
from anygpt.world.sentences import typed_variant

_REFER = ("{}", "{}", "give me the location of {}", "where is {}?", "find {}", "show me {}")
_IDENTIFY = ("{}", "{}", "what is at {}?", "what is this {}", "name the thing at {}")
_DETECTION = ("{}", "{}", "find every {}", "where do you see {}?")
_DESCRIBE = ("", "describe this picture", "what is in this picture?", "what do you see?")
_AGAIN = 0.3
"""Share of conversations with a second round about the picture."""

Round = Callable[[Talk, Scene], tuple[str, str]]
"""Draws what is asked, without its tag, and what is answered."""


def _rounds(tag: str, draw: Round) -> Callable[[Talk], None]:
    def build(talk: Talk) -> None:
        scene = talk.scene()
        media: tuple[MediaRef, ...] = (talk.picture(scene),)
        for _ in range(1 + talk.chance(_AGAIN)):
            words, answer = draw(talk, scene)
            asked = tagged(tag, typed_variant(words, talk.rng) if words else "")
            talk.messages.append(Message(role="user", parts=(*media, asked)))
            talk.reply(answer, answer)
            media = ()

    return build


def _refer(talk: Talk, scene: Scene) -> tuple[str, str]:
    """A phrase for one of the things, and its box."""
    number = talk.rng.randrange(len(scene.objects))
    name = scene.objects[number]
    phrases = [f"the {name}", with_article(name), images.phrases(scene)[number]]
    if scene.relation is not None:
        phrases += [f"the {name} {where(scene, number)}", f"the thing {where(scene, number)}"]
    return talk.one(*_REFER).format(talk.one(*phrases)), str(images.boxes(scene)[number])


def _identify(talk: Talk, scene: Scene) -> tuple[str, str]:
    """A box, and what is there."""
    box = talk.one(*images.boxes(scene))
    return talk.one(*_IDENTIFY).format(box), box.phrase


def _detection(talk: Talk, scene: Scene) -> tuple[str, str]:
    """The name of a thing, or of a kind of things, and the boxes of all of them."""
    name = talk.one(*scene.objects)
    asked = talk.one(name, KIND_OF[name])
    named = zip(images.boxes(scene), scene.objects, strict=True)
    found = [box for box, other in named if asked in (other, KIND_OF[other])]
    return talk.one(*_DETECTION).format(asked), format_phrase(asked, found)


def _grounding(talk: Talk, scene: Scene) -> tuple[str, str]:
    return talk.one(*_DESCRIBE), grounded_caption(scene)


def grounded_caption(scene: Scene) -> str:
    """The caption with a box behind each thing."""
    return images.caption(scene, [_with_box(box) for box in images.boxes(scene)])


def _with_box(box: Box) -> str:
    return format_phrase(box.phrase, [box])


def _caption(talk: Talk, scene: Scene) -> tuple[str, str]:
    return talk.one(*_DESCRIBE), images.caption(scene)


def _vqa(talk: Talk, scene: Scene) -> tuple[str, str]:
    """A question, and the bare answer to it."""
    asked, _, answer = question(talk, scene)
    return asked, answer


refer = _rounds("refer", _refer)
identify = _rounds("identify", _identify)
detection = _rounds("detection", _detection)
grounding = _rounds("grounding", _grounding)
caption = _rounds("caption", _caption)
vqa = _rounds("vqa", _vqa)
