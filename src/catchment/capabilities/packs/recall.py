"""Copying and recall: the answer stands in the prompt."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, answer_items, between, collect, pick, seeded, some
from catchment.capabilities.packs._words import COLOURS, NAMES, PLACES, THINGS, WORDS
from catchment.capabilities.tasks import Format, Task

FORMATS = (
    Format("bare", "{prompt}", "\n"),
    Format("question", "Question: {prompt}\nAnswer:"),
    Format("instructed", "Do what is asked, and write nothing else.\n{prompt}", "\n"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def article(noun: str) -> str:
    """``a`` or ``an``, by the first letter."""
    return "an" if noun[0] in "aeiou" else "a"


def _repeat(sentence: str, kind: str) -> Draft:
    return Draft(f"Repeat this sentence: {sentence}", (sentence, f'"{sentence}"'), kind=kind)


def repeat_has(rng: Random) -> Draft:
    """A sentence about a thing that someone has."""
    colour = pick(rng, COLOURS)
    return _repeat(f"{pick(rng, NAMES)} has {article(colour)} {colour} {pick(rng, THINGS)}.", "repeat: has")


def repeat_place(rng: Random) -> Draft:
    """A sentence about where a thing is."""
    return _repeat(f"The {pick(rng, COLOURS)} {pick(rng, THINGS)} is in the {pick(rng, PLACES)}.", "repeat: place")


def repeat_gift(rng: Random) -> Draft:
    """A sentence about a gift."""
    a, b = some(rng, NAMES, 2)
    thing = pick(rng, THINGS)
    return _repeat(f"{a} gave {article(thing)} {thing} to {b} on {pick(rng, DAYS)}.", "repeat: gift")


def telephone(rng: Random) -> Draft:
    """The number of one of two people."""
    people = some(rng, NAMES, 2)
    codes = some(rng, (str(between(rng, 1000, 4999)), str(between(rng, 5000, 9999))), 2)
    facts = " ".join(f"The phone number of {p} is {c}." for p, c in zip(people, codes, strict=True))
    k = pick(rng, (0, 1))
    right = (f"The phone number of {people[k]} is {codes[k]}.", codes[k])
    return Draft(f"{facts} What is the phone number of {people[k]}?", right, kind="phone")


def _told(rng: Random, what: str, values: tuple[str, ...], kind: str) -> Draft:
    name, value = pick(rng, NAMES), pick(rng, values)
    say = f'The {what} of {name} is "{value}".'
    right = (say, say.replace('"', ""), value, f'"{value}"')
    return Draft(f"{say} What is the {what} of {name}?", right, kind=kind)


def password(rng: Random) -> Draft:
    """A password."""
    return _told(rng, "password", WORDS, "password")


def nickname(rng: Random) -> Draft:
    """A nickname."""
    return _told(rng, "nickname", tuple(word.capitalize() for word in WORDS), "nickname")


def favorite(rng: Random) -> Draft:
    """A favorite word."""
    return _told(rng, "favorite word", WORDS, "favorite word")


def code_word(rng: Random) -> Draft:
    """A code word."""
    return _told(rng, "code word", WORDS, "code word")


def number(rng: Random) -> Draft:
    """The number of one of two things."""
    things = some(rng, THINGS, 2)
    low, high = between(rng, 1000, 4999), between(rng, 5000, 9999)
    codes = some(rng, (str(low), str(high)), 2)
    facts = " ".join(f"The number of the {t} is {c}." for t, c in zip(things, codes, strict=True))
    k = pick(rng, (0, 1))
    right = (f"The number of the {things[k]} is {codes[k]}.", codes[k])
    return Draft(f"{facts} What is the number of the {things[k]}?", right, kind="number")


KINDS = (repeat_has, repeat_place, repeat_gift, password, nickname, favorite, code_word, number)


def build() -> Task:
    """The task: 1,600 items of eight kinds, exact match of the first sentence of the answer."""
    return Task(
        name="recall",
        items=answer_items(seeded("recall order"), collect(seeded("recall"), KINDS, 1600)),
        scorer="exact",
        formats=FORMATS,
        style="ask",
        chance=0.0,
        max_new_tokens=20,
        stop=("\n", "."),
        description="repeating a sentence and looking up what stands in the prompt",
    )
