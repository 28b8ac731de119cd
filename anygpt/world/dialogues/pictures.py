"""Scenarios about pictures: drawing, changing, describing, and remembering them.

Before every picture stands its caption, and before that, where a picture is to be changed that was just shown, what it
shows: whoever can describe and draw then only has to change the words in between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anygpt.data.dialogue import Check, MediaRef
from anygpt.world import images
from anygpt.world.dialogues.facts import PLURAL, is_or_are, it_or_them, listed
from anygpt.world.dialogues.talk import Again, Talk, perceived
from anygpt.world.emoji import with_article
from anygpt.world.images import BACKGROUNDS, INVERSE, PLACE_WORDS, SIZES, Scene

MIDDLE = "in the middle"
EDIT_KINDS = {"background": 4, "size": 3, "place": 3, "replace": 2, "swap": 2, "add": 1.5, "remove": 1.5}
"""Kind of change -> how often it is asked for, where it is possible."""
REARRANGING = ("size", "swap", "replace")
"""Those which have to tell one of two things from the other."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change of a picture, in a few wordings; `spoken` says it in few and short words."""

    kind: str
    scene: Scene
    wordings: tuple[str, ...]
    spoken: str


# ---- what is said of pictures ----


def shown(talk: Talk, scene: Scene, *seen: MediaRef) -> tuple[str, MediaRef]:
    """A picture as the assistant gives it, with the words before it: what was `seen` that it was made from, if any."""
    ref = talk.picture(scene)
    verb = "are" if scene.relation is None and scene.objects[0] in PLURAL else "is"
    return f"{perceived(*seen)}Here {verb} {ref.caption}.", ref


def request(talk: Talk, scene: Scene, *, brief: bool = False) -> tuple[str, dict[str, str]]:
    """Words for a scene as a user wants it, sometimes without a background, and the facts that they name.

    `brief` leaves the background out of pairs and of every other single object.
    """
    facts = images.attributes(scene)
    words = images.caption(scene)
    if talk.chance(0.5 if brief else 0.2) or (brief and scene.relation):
        words = words.rpartition(" on a ")[0]
        del facts["background"]
    elif scene.relation and talk.chance(0.3):
        first, second = (
            with_article(name, "" if size == "medium" else size)
            for name, size in zip(scene.objects, scene.sizes, strict=True)
        )
        words = f"{second} {INVERSE[scene.relation]} {first} on a {scene.background} background"
    return words, facts


def where(scene: Scene, number: int) -> str:
    """Where an object of a scene is, as in `on the left`, `left of the dog`."""
    if scene.relation is None:
        return PLACE_WORDS[scene.place] or MIDDLE
    relation = scene.relation if number == 0 else INVERSE[scene.relation]
    return f"{relation} the {scene.objects[1 - number]}"


def question(talk: Talk, scene: Scene) -> tuple[str, str, str]:
    """A question about a picture, its reply, and the words that must occur in it."""
    number = talk.rng.randrange(len(scene.objects))
    name, size = scene.objects[number], scene.sizes[number]
    be = is_or_are(name)
    kind = talk.one("what", "background", "size", "where", "is there", "how many")
    if kind == "what":
        names = listed(scene.objects)
        return talk.one("what can you see?", "which things do you see?"), f"I see {names}.", names
    if kind == "background":
        asked = talk.one("what colour is the background?", "which background is there?", "what is the background?")
        return asked, f"The background is {scene.background}.", scene.background
    if kind == "size":
        return talk.one(f"how big {be} the {name}?", f"what size {be} the {name}?"), f"The {name} {be} {size}.", size
    if kind == "where":
        place = where(scene, number)
        return f"where {be} the {name}?", f"The {name} {be} {place}.", place
    if kind == "how many":
        count = ("one", "two")[len(scene.objects) - 1]
        things = "one thing" if count == "one" else "two things"
        return talk.one("how many things are there?", "how many things do you see?"), f"I see {things}.", count
    if talk.chance(0.5):
        return _is_there(name), f"Yes, there {be} {with_article(name)}.", "yes"
    other = talk.object(*scene.objects)
    return _is_there(other), f"No, there {is_or_are(other)} no {other}.", "no"


def _is_there(name: str) -> str:
    return f"{is_or_are(name)} there {with_article(name)}?"


# ---- changes ----


def edits(talk: Talk, scene: Scene) -> Iterator[Edit]:
    """Changes that a scene allows, whether or not they lead out of the split."""
    yield from _background_edits(talk, scene)
    yield from _size_edits(talk, scene)
    if scene.relation is None:
        yield from _single_edits(talk, scene)
    else:
        yield from _pair_edits(scene)
    for number, name in enumerate(scene.objects):
        new = talk.object(*scene.objects)
        objects = tuple(new if i == number else other for i, other in enumerate(scene.objects))
        yield Edit(
            kind="replace",
            scene=replace(scene, objects=objects),
            wordings=(
                f"replace the {name} by {with_article(new)}",
                f"i want {with_article(new)} and not the {name}",
                f"put {with_article(new)} there and not the {name}",
            ),
            spoken=f"i want {with_article(new)}",
        )


def _background_edits(talk: Talk, scene: Scene) -> Iterator[Edit]:
    for name in BACKGROUNDS:
        if name != scene.background:
            yield Edit(
                kind="background",
                scene=replace(scene, background=name),
                wordings=(
                    f"make the background {name}",
                    f"make it {name}",
                    f"put {'them' if scene.relation else it_or_them(scene.objects[0])} on a {name} background",
                    f"the same on a {name} background",
                ),
                spoken=talk.one(f"make it {name}", f"put it on a {name} background"),
            )


def _size_edits(talk: Talk, scene: Scene) -> Iterator[Edit]:
    for number, name in enumerate(scene.objects):
        old = SIZES.index(scene.sizes[number])
        pronoun = it_or_them(name) if scene.relation is None else f"the {name}"
        for new, word in ((old + 1, "bigger"), (old - 1, "smaller"), (2, "large"), (0, "small")):
            if new == old or new not in range(len(SIZES)):
                continue
            sizes = tuple(SIZES[new] if i == number else size for i, size in enumerate(scene.sizes))
            yield Edit(
                kind="size",
                scene=replace(scene, sizes=sizes),
                wordings=(f"make the {name} {word}", f"make {pronoun} {word}"),
                spoken=f"make {pronoun} {word}",
            )


def _single_edits(talk: Talk, scene: Scene) -> Iterator[Edit]:
    name = scene.objects[0]
    pronoun = it_or_them(name)
    for place, words in PLACE_WORDS.items():
        if place != scene.place:
            words = words or MIDDLE
            yield Edit(
                kind="place",
                scene=replace(scene, place=place),
                wordings=(f"put {pronoun} {words}", f"put the {name} {words}", f"move the {name}, i want it {words}"),
                spoken=f"put {pronoun} {words}",
            )
    for relation in images.RELATIONS:
        new = talk.object(name)
        objects, sizes = (new, name), ("medium", scene.sizes[0])
        shown = relation
        if relation not in images.CANONICAL_RELATIONS:
            objects, sizes, shown = objects[::-1], sizes[::-1], INVERSE[relation]
        words = f"{with_article(new)} {relation} the {name}"
        yield Edit(
            kind="add",
            scene=Scene(objects=objects, sizes=sizes, background=scene.background, relation=shown),
            wordings=(f"add {words}", f"put {words}", f"i also want {words}"),
            spoken=f"put {words}",
        )


def _pair_edits(scene: Scene) -> Iterator[Edit]:
    first, second = scene.objects
    yield Edit(
        kind="swap",
        scene=replace(scene, objects=(second, first), sizes=scene.sizes[::-1]),
        wordings=("swap them", f"swap the {first} and the {second}", f"put the {second} where the {first} is"),
        spoken="swap them",
    )
    for gone, name, size in ((second, first, scene.sizes[0]), (first, second, scene.sizes[1])):
        yield Edit(
            kind="remove",
            scene=Scene(objects=(name,), sizes=(size,), background=scene.background),
            wordings=(f"remove the {gone}", f"take the {gone} away", f"only the {name}, please"),
            spoken=f"only the {name} please",
        )


def change(
    talk: Talk, scene: Scene, *media: MediaRef, spoken: bool = False, kinds: Sequence[str] = tuple(EDIT_KINDS)
) -> Scene:
    """A round in which a picture is changed: the one in `media`, or else the last one. Returns what it then shows."""
    by_kind: dict[str, list[Edit]] = {}
    for edit in edits(talk, scene):
        if edit.kind in kinds and talk.fits(edit.scene):
            by_kind.setdefault(edit.kind, []).append(edit)
    if not by_kind:
        raise Again
    kind = talk.rng.choices(tuple(by_kind), [EDIT_KINDS[kind] for kind in by_kind])[0]
    edit = talk.one(*by_kind[kind])
    before, after = images.attributes(scene), images.attributes(edit.scene)
    check = Check(
        kind="image",
        expected=after,
        kept=tuple(name for name in after if after[name] == before[name] != "none"),
        changed=tuple(name for name in after if after[name] != before[name]),
    )
    talk.ask(edit.spoken if spoken else talk.one(*edit.wordings), *media, spoken=spoken)
    talk.answer(*shown(talk, edit.scene, *media), check=check)
    return edit.scene


# ---- scenarios ----


def draw(talk: Talk, *, spoken: bool = False, pair: bool | None = None) -> Scene:
    """A round in which a picture is drawn; also a scenario."""
    scene = talk.scene(pair=False if spoken and talk.chance(0.6) else pair)
    words, facts = request(talk, scene, brief=spoken)
    if spoken:
        asked = talk.one(f"draw {words}", f"paint {words}", f"show me {words}")
    else:
        asked = talk.one(
            f"draw {words}", f"please draw {words}", f"paint {words}", f"show me {words}", f"a picture of {words}",
            f"i want to see {words}", f"can you draw {words}?", f"draw me {words}, please",
        )  # fmt: skip
    talk.ask(asked, spoken=spoken, new=spoken)
    talk.answer(*shown(talk, scene), check=Check(kind="image", expected=facts))
    return scene


def draw_and_change(talk: Talk) -> None:
    """A picture, then one or two changes of it."""
    scene = draw(talk)
    for _ in range(talk.one(1, 1, 2)):
        scene = change(talk, scene)


def draw_and_remember(talk: Talk) -> None:
    """Two pictures, then a question about one of them."""
    scenes = [draw(talk), draw(talk)]
    number = talk.rng.randrange(2)
    remember(talk, scenes[number], f"the {('first', 'second')[number]} picture")


def remember(talk: Talk, scene: Scene, which: str) -> None:
    """A round with a question about an earlier picture."""
    if talk.chance(0.5):
        talk.ask(talk.one(f"what was in {which}?", f"what did i see in {which}?", f"what was {which} of?"))
        talk.reply(f"In {which} there was {listed(scene.objects)}.", listed(scene.objects))
    else:
        talk.ask(talk.one(f"what was the background of {which}?", f"what colour was the background of {which}?"))
        talk.reply(f"It was {scene.background}.", scene.background)


def describe(talk: Talk) -> None:
    """A picture to describe, then sometimes a question about it."""
    scene = talk.scene()
    ref = talk.picture(scene)
    asked = (
        "what is in this picture?", "what do you see?", "describe this picture", "what is this?",
        "tell me what you see", "what does this picture show?",
    )  # fmt: skip
    talk.ask(talk.one(*asked), ref)
    talk.reply(f"I see {ref.caption}.", ref.caption)
    if talk.chance(0.5):
        ask_about(talk, scene)


def ask_about(talk: Talk, scene: Scene, *media: MediaRef, spoken: bool = False) -> None:
    """A round with a question about a picture: the one in `media`, or the last one."""
    asked, text, answer = question(talk, scene)
    talk.ask(asked, *media, spoken=spoken)
    talk.reply(text, answer, aloud=spoken)


def questions(talk: Talk) -> None:
    """A picture with a question, and more questions about it."""
    scene = talk.scene()
    ask_about(talk, scene, talk.picture(scene))
    for _ in range(talk.one(0, 1, 2)):
        ask_about(talk, scene)


def spoken_question(talk: Talk) -> None:
    """A picture with a spoken question, answered in words and speech."""
    scene = talk.scene()
    ask_about(talk, scene, talk.picture(scene), spoken=True)


def change_given(talk: Talk) -> None:
    """A picture to change, sometimes twice."""
    scene = talk.scene()
    scene = change(talk, scene, talk.picture(scene))
    if talk.chance(0.35):
        change(talk, scene)


def rearrange(talk: Talk) -> None:
    """A picture of two things, shown or drawn, and a change of one of them or of their places."""
    if talk.chance(0.5):
        change(talk, draw(talk, pair=True), kinds=REARRANGING)
    else:
        scene = talk.scene(pair=True)
        change(talk, scene, talk.picture(scene), kinds=REARRANGING)


def spoken_draw(talk: Talk) -> None:
    """A picture asked for in speech, and sometimes a spoken or a typed change of it."""
    scene = draw(talk, spoken=True)
    if talk.chance(0.5):
        change(talk, scene, spoken=talk.chance(0.6))


def spoken_change(talk: Talk) -> None:
    """A picture with a spoken wish for a change."""
    scene = talk.scene()
    change(talk, scene, talk.picture(scene), spoken=True)


def two_pictures(talk: Talk) -> None:
    """Two pictures in one message, and a question about them."""
    first = talk.scene()
    second = talk.scene()
    if talk.chance(0.5):
        same = replace(second, background=first.background)
        second = same if talk.fits(same) else second
    if set(first.objects) & set(second.objects):
        raise Again
    scenes = (first, second)
    refs = [talk.picture(scene) for scene in scenes]
    _two_pictures_round(talk, scenes, *refs)
    if talk.chance(0.4):
        _two_pictures_round(talk, scenes)


def _two_pictures_round(talk: Talk, scenes: tuple[Scene, Scene], *refs: MediaRef) -> None:
    number = talk.rng.randrange(2)
    scene, word = scenes[number], ("first", "second")[number]
    kind = talk.one("which", "which", "what", "background", "same")
    if kind == "which":
        name = talk.one(*scene.objects)
        talk.ask(
            talk.one(f"which picture has {with_article(name)}?", f"in which picture {is_or_are(name)} the {name}?"),
            *refs,
        )
        talk.reply(f"The {word} picture.", word)
    elif kind == "what":
        talk.ask(talk.one(f"what is in the {word} picture?", f"what does the {word} picture show?"), *refs)
        talk.reply(f"The {word} picture has {listed(scene.objects)}.", listed(scene.objects))
    elif kind == "background":
        talk.ask(
            talk.one(f"what is the background of the {word} picture?", f"which background has the {word} picture?"),
            *refs,
        )
        talk.reply(f"The background is {scene.background}.", scene.background)
    else:
        same = scenes[0].background == scenes[1].background
        talk.ask(talk.one("do they have the same background?", "is the background the same?"), *refs)
        if same:
            talk.reply(f"Yes, both are {scene.background}.", "yes")
        else:
            talk.reply(f"No, the first is {scenes[0].background} and the second is {scenes[1].background}.", "no")


def put_together(talk: Talk) -> None:
    """Two pictures of one object each, to be put into one."""
    pair = talk.scene(pair=True, sizes=("medium", "medium"))
    singles: list[Scene] = []
    for name in pair.objects:
        places = [(size, place) for size in SIZES for place in PLACE_WORDS]
        options = [
            Scene(objects=(name,), sizes=(size,), place=place, background=background)
            for size, place in places
            for background in ((pair.background,) if not singles else BACKGROUNDS)
        ]
        singles.append(talk.one_scene(options))
    refs = [talk.picture(scene) for scene in singles]
    first, second = pair.objects
    words = f"the {first} {pair.relation} the {second}"
    talk.ask(talk.one(f"put {words}", f"draw {words}", f"one picture with {words}"), *refs)
    talk.answer(*shown(talk, pair), check=Check(kind="image", expected=images.attributes(pair)))


def say_what_you_see(talk: Talk) -> None:
    """A picture to be described in speech."""
    scene = talk.scene()
    talk.ask(
        talk.one(
            "say what you see", "tell me aloud what this is", "say what is in this picture", "read this picture to me"
        ),
        talk.picture(scene),
    )
    text = f"I see {listed(scene.objects)}."
    spoken = talk.speech(text)
    talk.answer(text, spoken, check=Check(kind="speech", expected=spoken.facts))
