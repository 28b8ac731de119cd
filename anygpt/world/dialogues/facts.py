"""What the world knows: kinds and colours of its objects, opposites, days and months, and which music fits what."""

from anygpt.world import music
from anygpt.world.emoji import OBJECTS, with_article
from anygpt.world.sentences import LEXICON


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in text.split())


TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "animals": {
        "animal": _names(
            "dog cat mouse rabbit fox bear panda tiger lion cow pig frog monkey chicken penguin bird duck owl wolf "
            "horse bee butterfly snail ladybug turtle snake octopus crab fish tropical_fish dolphin whale crocodile "
            "elephant camel sheep hedgehog koala"
        ),
    },
    "food": {
        "fruit": _names(
            "red_apple green_apple pear orange lemon banana watermelon grapes strawberry cherries peach pineapple "
            "coconut"
        ),
        "vegetable": _names("tomato eggplant carrot corn mushroom pumpkin"),
        "dish": _names("bread cheese egg hamburger pizza hot_dog"),
        "sweet": _names("ice_cream doughnut cookie cake lollipop"),
        "drink": _names("coffee"),
    },
    "vehicles": {
        "vehicle": _names(
            "car taxi bus police_car ambulance fire_engine truck tractor bicycle train airplane helicopter rocket ship "
            "sailboat"
        ),
    },
    "places": {"building": _names("house castle"), "place": _names("tent")},
    "sports": {"ball": _names("soccer_ball basketball football"), "thing": _names("tennis_racket trophy")},
    "instruments": {"instrument": _names("guitar trumpet violin drum piano")},
    "clothes": {"piece of clothing": _names("hat shirt dress shoe"), "jewel": _names("crown ring")},
    "things": {
        "tool": _names("pencil scissors key lock hammer magnet"),
        "machine": _names("clock camera telephone computer"),
        "light": _names("light_bulb candle"),
        "thing": _names("book balloon gift umbrella bomb bell anchor fire red_heart blue_heart"),
    },
    "nature": {
        "plant": _names("tree pine_tree palm_tree cactus"),
        "flower": _names("rose sunflower tulip"),
        "part of the sky": _names("sun moon star cloud rainbow"),
    },
    "characters": {
        "face": _names("smiling_face angry_face crying_face"),
        "figure": _names("snowman unicorn ghost robot alien skull"),
    },
}
"""Topic -> kind -> objects of the image world; every object has one place here."""
OBJECTS_OF: dict[str, tuple[str, ...]] = {
    topic: tuple(name for names in kinds.values() for name in names) for topic, kinds in TOPICS.items()
}
KIND_OF: dict[str, str] = {name: kind for kinds in TOPICS.values() for kind, names in kinds.items() for name in names}
PLURAL = frozenset({"grapes", "cherries", "scissors"})

COLOURS: dict[str, tuple[str, ...]] = {
    "yellow": _names("lemon banana sun star moon sunflower taxi corn cheese pineapple bee"),
    "red": _names("strawberry tomato cherries rose fire_engine crab ladybug"),
    "green": _names("frog crocodile turtle cactus tree pine_tree palm_tree pear watermelon snake"),
    "orange": _names("carrot pumpkin fox tiger basketball"),
    "pink": _names("pig peach octopus"),
    "gray": _names("elephant koala wolf mouse"),
    "brown": _names("bear monkey horse bread coffee coconut"),
    "white": _names("snowman ghost cloud sheep skull egg"),
    "blue": _names("whale dolphin"),
    "purple": _names("eggplant grapes"),
}
"""Colour -> objects that have it."""

OPPOSITES: dict[str, str] = {
    one: other
    for pair in _names(
        "big/small old/new long/short clean/dirty heavy/light hot/cold happy/sad rich/poor wet/dry hard/soft "
        "full/empty fast/slow cheap/expensive early/late left/right above/below day/night summer/winter"
    )
    for one, other in (pair.split("/"), pair.split("/")[::-1])
}
NUMBERS = _names("zero one two three four five six seven eight nine ten eleven twelve")
DAYS, MONTHS = LEXICON["day"], LEXICON["month"]

INSTRUMENT_OBJECTS = tuple(name for name in music.INSTRUMENTS if name in OBJECTS)
"""Instruments that can be seen and heard."""
BACKGROUND_MUSIC: dict[str, tuple[str, str]] = {
    "white": ("medium", "major"), "black": ("slow", "minor"), "gray": ("medium", "minor"), "pink": ("fast", "major"),
    "yellow": ("very fast", "major"), "green": ("medium", "major"), "blue": ("slow", "major"),
    "purple": ("fast", "minor"), "sunset": ("slow", "major"), "sea": ("slow", "minor"),
}  # fmt: skip
"""Background -> tempo and mode of the music that fits it, by our own rule."""


def is_or_are(name: str) -> str:
    """The verb that goes with an object."""
    return "are" if name in PLURAL else "is"


def it_or_them(name: str) -> str:
    """The pronoun that stands for an object."""
    return "them" if name in PLURAL else "it"


def a_kind(name: str) -> str:
    """What an object is, such as `a fruit`."""
    return with_article(KIND_OF[name])


def listed(names: tuple[str, ...]) -> str:
    """`a cat`, `a cat and a dog`."""
    return " and ".join(with_article(name) for name in names)
