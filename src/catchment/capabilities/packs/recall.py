"""Copying and recall: the answer stands in the prompt."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, answer_items, between, collect, pick, seeded, shuffled, some
from catchment.capabilities.packs._words import CITIES, COLOURS, JOBS, NAMES, PLACES, THINGS, WORDS
from catchment.capabilities.tasks import Format, Item, Task

FORMATS = (
    Format("question", "{prompt}\nAnswer:"),
    Format("bare", "{prompt}", "\n"),
    Format("instructed", "Read the text and answer with as few words as possible.\n{prompt}\nThe answer is"),
)
SHOTS = (
    Item("Iris has a gold coin. Hugo has a silver key. Who has the silver key?", gold="Hugo"),
    Item("The number of the boat is 4418. The number of the train is 5093. What is the number of the boat?", gold="4418"),
)


def owner(rng: Random) -> Draft:
    """Who has a thing."""
    people, things = some(rng, NAMES, 3), some(rng, THINGS, 3)
    things = [f"{c} {t}" for c, t in zip(some(rng, COLOURS, 3), things, strict=True)]
    facts = " ".join(f"{p} has {article(t)} {t}." for p, t in zip(people, things, strict=True))
    k = pick(rng, (0, 1, 2))
    right = (people[k], f"{people[k]} has the {things[k]}")
    return Draft(f"{facts} Who has the {things[k]}?", right, kind="owner")


def colour(rng: Random) -> Draft:
    """Which colour a thing has."""
    things, colours = some(rng, THINGS, 3), some(rng, COLOURS, 3)
    facts = " ".join(f"The {t} is {c}." for t, c in zip(things, colours, strict=True))
    k = pick(rng, (0, 1, 2))
    right = (colours[k], f"the {things[k]} is {colours[k]}")
    return Draft(f"{facts} What colour is the {things[k]}?", right, kind="colour")


def number(rng: Random) -> Draft:
    """A number of four digits."""
    things = some(rng, THINGS, 2)
    codes = [str(between(rng, 1000, 9999)) for _ in things]
    facts = " ".join(f"The number of the {t} is {c}." for t, c in zip(things, codes, strict=True))
    k = pick(rng, (0, 1))
    right = (codes[k], f"the number of the {things[k]} is {codes[k]}")
    return Draft(f"{facts} What is the number of the {things[k]}?", right, kind="number")


def city(rng: Random) -> Draft:
    """Where someone lives."""
    people, cities = some(rng, NAMES, 3), some(rng, CITIES, 3)
    facts = " ".join(f"{p} lives in {c}." for p, c in zip(people, cities, strict=True))
    k = pick(rng, (0, 1, 2))
    right = (cities[k], f"in {cities[k]}", f"{people[k]} lives in {cities[k]}")
    return Draft(f"{facts} In which city does {people[k]} live?", right, kind="city")


def job(rng: Random) -> Draft:
    """Who has a profession."""
    people, jobs = some(rng, NAMES, 3), some(rng, JOBS, 3)
    facts = " ".join(f"{p} is a {j}." for p, j in zip(people, jobs, strict=True))
    k = pick(rng, (0, 1, 2))
    right = (people[k], f"{people[k]} is the {jobs[k]}")
    return Draft(f"{facts} Who is the {jobs[k]}?", right, kind="job")


def place(rng: Random) -> Draft:
    """Where a thing is."""
    things, places = some(rng, THINGS, 2), some(rng, PLACES, 2)
    facts = " ".join(f"The {t} is in the {p}." for t, p in zip(things, places, strict=True))
    k = pick(rng, (0, 1))
    right = (f"in the {places[k]}", f"the {places[k]}", places[k], f"the {things[k]} is in the {places[k]}")
    return Draft(f"{facts} Where is the {things[k]}?", right, kind="place")


def repeat(rng: Random) -> Draft:
    """The same word again."""
    word, other = some(rng, WORDS, 2)
    return Draft(f'Repeat the second word: "{other} {word}".', (word, f'"{word}"'), kind="repeat")


def listed(rng: Random) -> Draft:
    """The first word of a list."""
    words = shuffled(rng, some(rng, WORDS, 4))
    right = (words[0], f'"{words[0]}"', f"the first word is {words[0]}")
    return Draft(f"Here is a list: {', '.join(words)}. What is the first word of the list?", right, kind="list")


def article(words: str) -> str:
    """``a`` or ``an``, by the first letter."""
    return "an" if words[0] in "aeiou" else "a"


KINDS = (owner, colour, number, city, job, place, repeat, listed)


def build() -> Task:
    """The task: 1,600 items, exact match, two shots."""
    return Task(
        name="recall",
        items=answer_items(seeded("recall order"), collect(seeded("recall"), KINDS, 1600)),
        scorer="exact",
        formats=FORMATS,
        style="ask",
        shots=SHOTS,
        chance=0.0,
        max_new_tokens=12,
        description="copying and looking up what stands in the prompt",
    )
