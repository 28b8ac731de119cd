"""Scenarios in words, written and spoken: facts of the world, small talk, remembering, saying, writing down."""

from anygpt.data.dialogue import Check
from anygpt.world.dialogues.facts import (
    COLOURS,
    DAYS,
    KIND_OF,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    a_kind,
    is_or_are,
)
from anygpt.world.dialogues.talk import Again, Talk
from anygpt.world.emoji import with_article
from anygpt.world.sentences import LEXICON, plural

SMALL_TALK: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("hello", "hello there", "hi", "good morning", "good evening"), "Hello! What can I do for you?", "hello"),
    (("how are you?", "how are you today?"), "I am well, thank you.", "well"),
    (("who are you?", "what is your name?", "what are you?"), "My name is AnyGPT.", "AnyGPT"),
    (("what can you do?", "how can you help me?"), "I can talk, draw and play music.", "draw"),
    (("thank you", "thank you very much", "thanks"), "You are welcome.", "welcome"),
    (("good night", "see you tomorrow", "goodbye", "bye"), "Goodbye! See you soon.", "goodbye"),
    (("i am sad", "i am lonely", "i am sad today"), "I am sorry. Do you want some music?", "sorry"),
    (("i am happy", "i am happy today"), "That is wonderful.", "wonderful"),
    (("can you sing?", "can you play music?", "do you like music?"), "Yes, I like to play music.", "yes"),
    (("can you draw?", "can you paint?", "do you like pictures?"), "Yes, I like to draw pictures.", "yes"),
)
"""Wordings, reply, and what must occur in it."""

Fact = tuple[str, str, str]
"""Question, reply, and the words that must occur in it."""


# ---- facts ----


def colour_fact(talk: Talk) -> Fact:
    """The colour of an object."""
    colour = talk.one(*COLOURS)
    name = talk.one(*COLOURS[colour])
    words, be = with_article(name), is_or_are(name)
    asked = talk.one(f"what colour {be} {words}?", f"which colour has {words}?", f"tell me the colour of {words}")
    return asked, f"{_capital(words)} {be} {colour}.", colour


def kind_fact(talk: Talk) -> Fact:
    """What an object is, or which of two is of a kind."""
    name = talk.object()
    while KIND_OF[name] in ("thing", "dish"):
        name = talk.object(share=0.0)
    words, be, kind = with_article(name), is_or_are(name), a_kind(name)
    how = talk.one("what", "is", "which")
    if how == "what":
        return (
            talk.one(f"what {be} {words}?", f"what kind of thing {be} {words}?"),
            f"{_capital(words)} {be} {kind}.",
            kind,
        )
    other = talk.object(name, share=0.0)
    while KIND_OF[other] in (KIND_OF[name], "thing"):
        other = talk.object(name, share=0.0)
    if how == "which":
        first, second = talk.one((name, other), (other, name))
        asked = f"which is {kind}, {with_article(first)} or {with_article(second)}?"
        return asked, f"{_capital(words)} {be} {kind}.", name
    if talk.chance(0.5):
        return f"{be} {words} {kind}?", f"Yes, {words} {be} {kind}.", "yes"
    wrong = with_article(KIND_OF[other])
    return f"{be} {words} {wrong}?", f"No, {words} {be} {kind}.", "no"


def sum_fact(talk: Talk) -> Fact:
    """Small sums, of numbers or of things."""
    first, second = talk.rng.randrange(1, 7), talk.rng.randrange(1, 7)
    one, two, both = NUMBERS[first], NUMBERS[second], NUMBERS[first + second]
    kind = talk.one("plus", "minus", "things")
    if kind == "minus":
        asked = talk.one(f"what is {both} minus {two}?", f"how much is {both} minus {two}?")
        return asked, f"{_capital(both)} minus {two} is {one}.", one
    if kind == "plus":
        asked = talk.one(f"what is {one} plus {two}?", f"how much is {one} plus {two}?")
        return asked, f"{_capital(one)} plus {two} is {both}.", both
    group, things = talk.one(("animal", "animals"), ("object", "things"), ("clothes", "clothes"))
    name, other = talk.rng.sample(LEXICON[group], 2)
    words = f"{_counted(first, name)} and {_counted(second, other)}"
    return f"i have {words}. how many {things} do i have?", f"You have {both} {things}.", both


def order_fact(talk: Talk) -> Fact:
    """Neighbours among the days and months."""
    word, names = talk.one(("day", DAYS), ("month", MONTHS))
    number = talk.rng.randrange(len(names))
    before, after = names[number].capitalize(), names[(number + 1) % len(names)].capitalize()
    if talk.chance(0.5):
        asked = talk.one(f"which {word} comes after {before}?", f"what comes after {before}?")
        return asked, f"{after} comes after {before}.", after
    asked = talk.one(f"which {word} comes before {after}?", f"what comes before {after}?")
    return asked, f"{before} comes before {after}.", before


def opposite_fact(talk: Talk) -> Fact:
    """Opposites."""
    word = talk.one(*OPPOSITES)
    asked = talk.one(f"what is the opposite of {word}?", f"tell me the opposite of {word}", f"what is not {word}?")
    return asked, f"The opposite of {word} is {OPPOSITES[word]}.", OPPOSITES[word]


def _counted(number: int, noun: str) -> str:
    return with_article(noun) if number == 1 else f"{NUMBERS[number]} {plural(noun)}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


FACTS = {
    "food": (colour_fact, kind_fact), "animals": (colour_fact, kind_fact), "nature": (colour_fact, kind_fact),
    "vehicles": (kind_fact,), "clothes": (kind_fact,), "numbers": (sum_fact,), "calendar": (order_fact,),
    "words": (opposite_fact,),
}  # fmt: skip
"""Topic -> what is asked about it."""


# ---- scenarios ----


def facts(talk: Talk) -> None:
    """One to three questions about a topic; the first one is new where the split is held out."""
    for number in range(talk.one(1, 1, 2, 3)):
        asked, text, answer = talk.one(*FACTS[talk.topic])(talk)
        talk.ask(asked, new=not number or not talk.is_heldout)
        talk.reply(text, answer)


def small_talk(talk: Talk) -> None:
    """A few of the things that people say first."""
    for wordings, text, answer in talk.rng.sample(SMALL_TALK, talk.one(1, 2, 3)):
        talk.ask(talk.one(*wordings))
        talk.reply(text, answer)


def remember_me(talk: Talk) -> None:
    """The user tells something, sometimes two things, and asks for one of them."""
    told = talk.rng.sample(_things_told(talk), talk.one(1, 2, 2))
    for said, text, _, _, _ in told:
        talk.ask(said, new=not talk.is_heldout or not talk.is_new)
        talk.reply(text, text.rstrip("."))
    _, _, asked, text, answer = talk.one(*told)
    talk.ask(asked)
    talk.reply(text, answer)


def _things_told(talk: Talk) -> list[tuple[str, str, str, str, str]]:
    """(what the user tells, the reply, a question about it, its reply, what must occur in that)."""
    name, place, town = (talk.one(*LEXICON[kind]) for kind in ("name", "place", "town"))
    animal, friend, colour = (talk.one(*LEXICON[kind]) for kind in ("animal", "name", "colour"))
    likes, number, day = talk.one(*LEXICON["food"]), talk.one(*NUMBERS[2:]), talk.one(*DAYS)
    called, pet = _capital(name), _capital(friend)
    return [
        (f"my name is {name}", f"Nice to meet you, {called}.", "what is my name?", f"Your name is {called}.", called),
        (f"my {animal} is called {friend}", f"{pet} is a nice name.", f"what is my {animal} called?",
         f"Your {animal} is called {pet}.", pet),
        (f"i live in {town}", f"{_capital(town)} is a nice city.", "where do i live?", f"You live in {_capital(town)}.",
         _capital(town)),
        (f"i like {plural(likes)}", f"I like {plural(likes)} too.", "what do i like?", f"You like {plural(likes)}.",
         plural(likes)),
        (f"i am going to the {place} on {day}", "Have a good time.", "where am i going?",
         f"You are going to the {place}.", place),
        (f"i have {number} {plural(animal)}", "That is wonderful.", f"how many {plural(animal)} do i have?",
         f"You have {number} {plural(animal)}.", number),
        (f"my house is {colour}", "That is a nice colour.", "what colour is my house?", f"Your house is {colour}.",
         colour),
    ]  # fmt: skip


def what_did_i_ask(talk: Talk) -> None:
    """One or two questions, then the question what they were."""
    asked = []
    for _ in range(talk.one(1, 2)):
        words, text, answer = talk.one(*FACTS[talk.topic])(talk)
        talk.ask(words, new=True)
        asked.append(talk.messages[-1].text)
        talk.reply(text, answer)
    if len(asked) == 1:
        question, which = talk.one("what did i ask?", "what was my question?", "what did i say?"), 0
    else:
        which = talk.rng.randrange(2)
        order = ("first", "last")[which]
        question = talk.one(f"what was my {order} question?", f"what did i ask {order}?")
    talk.ask(question)
    talk.reply(f"You asked: {asked[which]}", asked[which].rstrip(".?"))


def say(talk: Talk) -> None:
    """A sentence to be said, and sometimes said again."""
    text = talk.sentence(talk.one(5, 7, 9))
    spoken = talk.speech(text)
    check = Check(kind="speech", expected=spoken.facts)
    asked = ("say: {}", "please say: {}", "read this aloud: {}", "say this for me: {}", "i want to hear: {}")
    talk.ask(talk.one(*asked).format(text))
    talk.answer(text, spoken, check=check)
    if talk.chance(0.4):
        talk.ask(talk.one("say that again", "say it again, please", "can you say that again?", "again, please"))
        talk.answer(text, spoken, check=check)


def answer_aloud(talk: Talk) -> None:
    """A written question whose answer is to be said, or is said on second asking."""
    asked, text, answer = talk.one(*FACTS[talk.topic])(talk)
    if talk.chance(0.5):
        talk.ask(asked, new=True)
        talk.reply(text, answer)
        talk.ask(talk.one("say that", "say it aloud", "please say that", "read it to me"))
    else:
        talk.ask(f"{asked.rstrip('?')}? {talk.one('say it aloud', 'say it', 'answer aloud')}", new=True)
    spoken = talk.speech(text)
    talk.answer(text, spoken, check=Check(kind="speech", expected=spoken.facts))


def spoken_facts(talk: Talk) -> None:
    """A spoken question, answered in words and speech; sometimes a second one, or `say that again`."""
    asked, text, answer = talk.one(*FACTS[talk.topic])(talk)
    talk.ask(asked.lower(), spoken=True, new=True)
    talk.reply(text, answer, aloud=True)
    if talk.chance(0.25):
        talk.ask(talk.one("say that again", "say it again please"), spoken=talk.chance(0.5))
        talk.reply(text, answer, aloud=True)


def spoken_small_talk(talk: Talk) -> None:
    """Small talk, spoken on both sides."""
    wordings, text, answer = talk.one(*SMALL_TALK)
    talk.ask(talk.one(*wordings), spoken=True)
    talk.reply(text, answer, aloud=True)


def spoken_memory(talk: Talk) -> None:
    """The user says something, and asks what it was."""
    told, text, asked, reply, answer = talk.one(*_things_told(talk))
    talk.ask(told, spoken=True, new=True)
    talk.reply(text, text.rstrip("."), aloud=True)
    if talk.chance(0.5):
        talk.ask(asked, spoken=talk.chance(0.5))
        talk.reply(reply, answer, aloud=bool(talk.messages[-1].media))
    else:
        talk.ask(talk.one("what did i say?", "what was it that i said?"))
        talk.reply(f"You said: {told}", told)


def write_down(talk: Talk) -> None:
    """A spoken sentence to be written down: the answer is text alone."""
    text = talk.sentence(talk.one(4, 5, 6, 7))
    if text.startswith("please"):
        raise Again
    talk.ask(f"{talk.one('write', 'please write')} {text}", spoken=True)
    talk.reply(text, text)
