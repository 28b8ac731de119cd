"""The sentences of the speech world: an open grammar over everyday English, lower-case, with `?` for questions.

Words are never held out; sentences are, by the hash of their normalised form.
"""

import random
import re
from functools import lru_cache

from anygpt.world.splits import held_out

HELD_OUT_SENTENCES = 0.05


def _words(text: str) -> tuple[str, ...]:
    """Items divided by white space; `_` stands for a space inside an item."""
    return tuple(item.replace("_", " ") for item in text.split())


LEXICON: dict[str, tuple[str, ...]] = {
    "name": _words(
        "anna ben carla david emma frank grace henry isabel jack kate leo maria nick olivia paul rose sam tina victor "
        "alice bob charlie daisy eric fiona george helen ian julia kevin laura martin nora oscar peter rachel simon "
        "tom wendy"
    ),
    "person": _words(
        "mother father brother sister friend teacher doctor neighbor uncle aunt cousin grandmother grandfather baker "
        "farmer nurse driver pilot singer dancer painter student cook captain king queen boy girl man woman child "
        "baby lawyer officer soldier sailor writer manager waiter dentist"
    ),
    "animal": _words(
        "dog cat horse cow pig sheep goat chicken duck goose rabbit mouse rat fox wolf bear lion tiger elephant "
        "giraffe monkey zebra camel deer frog snake turtle fish shark whale dolphin owl eagle parrot penguin bee "
        "spider butterfly ant snail squirrel donkey kangaroo crocodile pony kitten puppy"
    ),
    "food": _words(
        "apple orange banana pear peach lemon cherry grape melon strawberry potato tomato carrot onion pepper "
        "mushroom cucumber pumpkin sandwich pizza burger pancake cookie cake pie sausage egg salad soup steak muffin "
        "biscuit omelet waffle"
    ),
    "stuff": _words(
        "bread butter cheese rice pasta honey jam sugar salt chocolate meat ham bacon corn toast cereal yogurt fruit "
        "garlic"
    ),
    "drink": _words("water milk tea coffee juice lemonade wine beer cocoa"),
    "object": _words(
        "book pen pencil key phone lamp chair table clock watch camera radio guitar piano violin drum ball bag box "
        "bottle cup plate bowl knife fork spoon mirror picture letter map ticket blanket pillow candle basket hammer "
        "ladder bucket rope umbrella computer television newspaper magazine wallet ring suitcase towel brush kite "
        "balloon puzzle present toy doll flag bell flute trumpet"
    ),
    "clothes": _words("shirt dress hat coat jacket sweater skirt scarf belt tie glove boot shoe sock suit uniform cap"),
    "vehicle": _words("car bus train bike truck boat ship plane taxi tractor van helicopter rocket"),
    "place": _words(
        "house school park garden kitchen library hospital market station beach forest river lake mountain castle "
        "church bridge farm zoo museum hotel restaurant office airport village city theater cinema bakery bank "
        "factory harbor island valley desert field street square tower store shop bedroom bathroom attic cellar "
        "garage yard"
    ),
    "country": _words("france spain italy germany japan china india canada brazil mexico egypt england greece kenya"),
    "town": _words("london paris rome berlin tokyo madrid boston chicago vienna moscow sydney dublin"),
    "colour": _words("red blue green yellow orange purple pink brown black white gray golden silver"),
    "adjective": _words(
        "big small old new tall short long clean dirty heavy light strange beautiful ugly cheap expensive broken "
        "empty full soft hard round flat little tiny huge wonderful simple lovely famous special"
    ),
    "trait": _words(
        "kind clever brave lazy quiet funny polite shy honest strong friendly careful curious patient rich poor young "
        "smart gentle proud"
    ),
    "feeling": _words(
        "happy sad tired hungry thirsty angry sick excited bored surprised worried afraid lonely nervous busy ready "
        "late sleepy sorry alone awake"
    ),
    "weather": _words("sunny rainy cloudy windy snowy foggy stormy warm cold hot cool dry wet freezing"),
    "season": _words("spring summer autumn winter"),
    "day": _words("monday tuesday wednesday thursday friday saturday sunday"),
    "month": _words("january february march april june july august september october november december"),
    "number": _words(
        "two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty forty fifty sixty "
        "seventy eighty ninety"
    ),
    "hour": _words("one two three four five six seven eight nine ten eleven twelve"),
    "when": _words(
        "today tomorrow tonight now soon later this_morning this_evening this_afternoon every_day every_morning "
        "every_night after_lunch before_dinner at_noon at_midnight on_the_weekend next_week next_year"
    ),
    "past": _words(
        "yesterday last_night last_week last_year last_month this_morning an_hour_ago a_week_ago two_days_ago "
        "a_long_time_ago"
    ),
    "often": _words("always never often sometimes usually rarely"),
    "manner": _words("slowly quickly quietly loudly carefully happily sadly well badly together alone again softly"),
    "act": _words(
        "sing dance swim run walk sleep read write cook paint play work jump laugh smile talk listen travel study "
        "climb fish hike ski skate wait help win shout whisper exercise rest camp dream"
    ),
    "acting": _words(
        "singing dancing swimming running walking sleeping reading writing cooking painting playing working jumping "
        "laughing crying talking eating drinking sitting standing waiting hiding resting shouting dreaming"
    ),
    "acted": _words(
        "sang danced swam ran walked slept played worked jumped laughed cried talked waited smiled shouted fell "
        "stopped arrived travelled disappeared"
    ),
    "moved": _words("ran walked went drove came moved returned travelled hurried"),
    "took": _words("bought found lost sold saw broke took dropped carried opened washed painted fixed stole hid kept"),
    "take": _words("buy find sell see take carry open wash paint fix bring clean hold move show keep"),
    "met": _words("saw met called visited helped heard knew thanked followed remembered"),
    "meet": _words("see meet call visit help thank follow remember invite"),
    "like": _words("like love hate want need"),
    "likes": _words("likes loves hates wants needs"),
    "on": _words("on under behind near above beside below"),
    "art": _words("music poems history science sports films stories pictures games maths art flowers"),
    "part": _words("hand foot head arm leg nose ear eye mouth finger knee back tooth neck shoulder"),
    "nature": _words("sun moon sky sea snow grass rain tree flower star cloud leaf wind fire stone sand"),
    "metal": _words("wood glass paper metal gold stone plastic cotton leather"),
}

STATEMENTS = _words(
    # people
    "{name}_is_{feeling} {name}_is_a_{person} {name}_is_{acting} {name}_and_{name}_are_{acting} "
    "my_{person}_is_{trait} my_{person}_is_{feeling}_{when} the_{person}_is_{acting}_{manner} "
    "the_{person}_is_very_{trait} her_{person}_and_his_{person}_are_{feeling} i_am_{feeling} "
    "we_are_{feeling}_{when} you_look_{feeling} they_were_{feeling}_{past} he_is_a_{trait}_{person} "
    "she_was_a_{trait}_{person} {name}_has_a_{trait}_{person} the_{trait}_{person}_{often}_helps_{name} "
    "{name}_comes_from_{country} my_{person}_lives_in_{town} my_name_is_{name} this_is_my_{person}_{name} "
    "{name}_is_{number}_years_old my_{person}_works_in_a_{place} the_{person}_speaks_{manner} "
    # doing
    "{name}_{acted}_in_the_{place} the_{person}_{acted}_{manner} {name}_{took}_a_{adjective}_{object} "
    "the_{person}_{took}_the_{object}_{past} we_{took}_{number}_{objects} i_{took}_my_{clothes}_{past} "
    "{name}_{met}_{name}_{past} the_{person}_{met}_my_{person} they_{moved}_to_the_{place} "
    "{name}_{moved}_from_{town}_to_{town} he_{took}_a_{colour}_{vehicle} she_will_{take}_the_{object}_{when} "
    "i_want_to_{act}_{when} we_like_to_{act}_in_the_{place} {name}_can_{act}_very_well "
    "my_{person}_will_{meet}_{name}_{when} i_{often}_{act}_in_{season} they_{often}_{act}_{manner} "
    "{name}_wants_to_{act}_with_{name} let_us_{act}_{when} she_{likes}_{art} i_{like}_{art} "
    "{name}_{likes}_{art}_and_{art} the_{person}_gave_{name}_a_{object} {name}_put_the_{object}_on_the_{object} "
    "i_hurt_my_{part}_{past} {name}_has_{colour}_eyes my_{part}_hurts he_drove_the_{colour}_{vehicle}_{manner} "
    # animals
    "the_{animal}_is_{acting} the_{adjective}_{animal}_{acted} a_{colour}_{animal}_{acted}_in_the_{place} "
    "the_{animal}_is_{on}_the_{object} i_saw_a_{animal}_in_the_{place} {number}_{animals}_{acted}_in_the_{place} "
    "{name}_has_{number}_{animals} the_{animal}_and_the_{animal}_are_friends the_{animal}_is_afraid_of_the_{animal} "
    "my_{animal}_is_{feeling} a_{animal}_can_{act} {animals}_{often}_{act}_at_night the_{animal}_ate_the_{food} "
    # food
    "i_would_like_a_{food} {name}_ate_{number}_{foods} the_{food}_tastes_good my_{person}_made_a_{food} "
    "we_had_{stuff}_and_{stuff}_for_breakfast i_drink_{drink}_{when} {name}_drank_a_glass_of_{drink} "
    "a_cup_of_{drink}_please would_you_like_{drink}_or_{drink}? this_{food}_is_{adjective} "
    "please_buy_some_{stuff}_and_{number}_{foods} the_{person}_{likes}_{foods}_with_{stuff} "
    "a_{colour}_{food}_is_on_the_{adjective}_plate there_is_no_{stuff}_in_the_kitchen "
    # things and places
    "the_{object}_is_{colour} the_{adjective}_{object}_is_{on}_the_{object} the_{clothes}_is_too_{adjective} "
    "my_{clothes}_is_{colour}_and_{colour} {name}_is_wearing_a_{clothes} "
    "the_{vehicle}_is_{adjective} the_{colour}_{vehicle}_stopped_at_the_{place} "
    "there_is_a_{place}_near_the_{place} there_are_{number}_{objects}_{on}_the_{object} "
    "the_{place}_is_{adjective}_and_{adjective} the_{object}_is_made_of_{metal} this_{object}_costs_{number}_dollars "
    "the_{vehicle}_to_{town}_leaves_at_{hour} the_{nature}_is_{adjective} the_{nature}_looks_{colour}_{when} "
    "i_forgot_my_{object}_in_the_{vehicle} the_door_of_the_{place}_is_{colour} {country}_is_a_{adjective}_country "
    # weather, time and number
    "it_is_{weather}_{when} it_was_{weather}_and_{weather}_{past} it_is_{weather}_in_{town} "
    "the_weather_in_{country}_is_{weather} {season}_is_{weather}_in_{country} it_will_rain_{when} it_is_{hour}_o'clock "
    "today_is_{day} the_party_is_on_{day} my_birthday_is_in_{month} we_will_meet_at_{hour}_on_{day} "
    "the_{place}_opens_at_{hour} {number}_plus_{number}_is_a_number {month}_comes_before_{season} "
    "the_lesson_starts_at_half_past_{hour}"
)
QUESTIONS_AND_REQUESTS = _words(
    # questions
    "where_is_the_{object}? where_is_my_{clothes}? who_is_that_{person}? what_is_{on}_the_{object}? "
    "what_colour_is_the_{object}? what_time_is_it? how_old_is_your_{person}? how_many_{animals}_do_you_see? "
    "how_many_{objects}_are_there? how_much_is_the_{object}? is_the_{animal}_{colour}? is_{name}_{feeling}? "
    "are_you_{feeling}_{when}? can_you_{act}? can_{name}_{act}? do_you_{like}_{foods}? do_you_{like}_{art}? "
    "did_you_see_the_{colour}_{animal}? will_{name}_come_{when}? why_is_the_{person}_{feeling}? "
    "when_does_the_{vehicle}_leave? when_will_{name}_{act}? which_{object}_is_yours? how_is_the_weather_in_{town}? "
    "have_you_been_to_{country}? what_did_{name}_{take}_{past}? who_{took}_the_{food}? "
    # requests and short phrases
    "please_{take}_the_{object} please_{take}_the_{colour}_{object} please_{act}_{manner} do_not_{take}_the_{object} "
    "give_me_the_{object}_please bring_me_a_{object} put_the_{object}_{on}_the_{object} open_the_window_please "
    "close_the_door_{manner} turn_on_the_{object} look_at_the_{adjective}_{animal} come_to_the_{place}_with_me "
    "tell_me_a_story_about_a_{animal} tell_{name}_to_{act} draw_a_{colour}_{animal} show_me_a_picture_of_a_{animal} "
    "play_some_music_for_{name} good_morning_{name} good_night_{name} thank_you_{name} hello_{name}_how_are_you? "
    "see_you_{when} yes_i_am_{feeling} no_i_do_not_{like}_{drink} happy_birthday_{name} i_am_sorry_{name} "
    "nice_to_meet_you_{name} have_a_good_time_in_{town}"
)

TEMPLATES = STATEMENTS + QUESTIONS_AND_REQUESTS
COMPOUNDS = 0.15
"""Share of sentences that join two statements."""
_JOINTS = ("and", "but", "because", "when")

_PLURALS = {
    "sheep": "sheep", "mouse": "mice", "goose": "geese", "wolf": "wolves", "deer": "deer", "fish": "fish",
    "knife": "knives", "tomato": "tomatoes", "potato": "potatoes", "radio": "radios", "piano": "pianos",
}  # fmt: skip
_SLOT = re.compile(r"{(\w+)}")
_ARTICLE = re.compile(r"\ba (?=(?:[aeio]|u(?!ni)|hour|honest))")


def plural(noun: str) -> str:
    """The plural of a noun of the lexicon."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def random_sentence(rng: random.Random) -> str:
    """Any sentence of the grammar, held out or not. No content word comes twice."""
    used: set[str] = set()

    def fill(slot: re.Match[str]) -> str:
        name = slot.group(1)
        many = name not in LEXICON
        choices = LEXICON[name.removesuffix("s") if many else name]
        word = rng.choice(choices)
        while word in used:
            word = rng.choice(choices)
        used.add(word)
        return plural(word) if many else word

    if rng.random() < COMPOUNDS:
        template = f"{rng.choice(STATEMENTS)} {rng.choice(_JOINTS)} {rng.choice(STATEMENTS)}"
    else:
        template = rng.choice(TEMPLATES)
    return _ARTICLE.sub("an ", _SLOT.sub(fill, template))


def typed_variant(text: str, rng: random.Random) -> str:
    """A sentence as a user might type it: sometimes with a capital letter, a full stop, capital names and `I`."""
    if rng.random() < 0.5:
        return text
    names = {name: name.capitalize() for kind in ("name", "day", "month", "country", "town") for name in LEXICON[kind]}
    # Also common words, which stay small.
    names = {**names, "i": "I", "rose": "rose", "march": "march", "china": "China"}
    text = re.sub(r"[a-z]+", lambda word: names.get(word.group(), word.group()), text)
    text = text[:1].upper() + text[1:]
    return text if text.endswith("?") else text + rng.choice(("", "."))


def normalise(text: str) -> str:
    """The words alone, for word error rates: lower-case, without punctuation, hyphens as spaces, one space between."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("'", "")
    return " ".join(re.sub(r"[\W_]+", " ", text).split())


def is_held_out(text: str) -> bool:
    """True for the sentences that no training set may contain; depends on the words alone."""
    return held_out(normalise(text), HELD_OUT_SENTENCES, "sentence")


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """All words that the grammar can produce, in normalised form."""
    words: set[str] = set(_JOINTS)
    for items in LEXICON.values():
        for item in items:
            words.update(normalise(item).split())
    for template in TEMPLATES:
        words.update(normalise(_SLOT.sub(" ", template)).split())
        for name in _SLOT.findall(template):
            if name not in LEXICON:
                words.update(plural(item) for item in LEXICON[name.removesuffix("s")])
    return frozenset(words)
