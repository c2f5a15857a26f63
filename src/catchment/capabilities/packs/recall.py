"""Recall in context: the answer stands in the prompt and is to be copied from there."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, answer_items, between, collect, pick, seeded, some
from catchment.capabilities.packs._words import CITIES, COLOURS, JOBS, NAMES, PLACES, THINGS, WORDS
from catchment.capabilities.tasks import Format, Task

FORMATS = (
    Format("plain"),
    Format("text", "Text: {prompt}"),
    Format("complete", "Read the text and complete it.\n\n{prompt}"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def owner(rng: Random) -> Draft:
    """Whose a thing is."""
    people, things = some(rng, NAMES, 3), some(rng, THINGS, 3)
    facts = " ".join(f"The {t} belongs to {p}." for p, t in zip(people, things, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} The {things[k]} belongs to", people[k], kind="owner")


def thing(rng: Random) -> Draft:
    """What someone has."""
    people, things = some(rng, NAMES, 3), some(rng, THINGS, 3)
    things = [f"{c} {t}" for c, t in zip(some(rng, COLOURS, 3), things, strict=True)]
    facts = " ".join(f"{p} has the {t}." for p, t in zip(people, things, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} {people[k]} has the", things[k], kind="thing")


def colour(rng: Random) -> Draft:
    """Which colour a thing has."""
    things, colours = some(rng, THINGS, 3), some(rng, COLOURS, 3)
    facts = " ".join(f"The {t} is {c}." for t, c in zip(things, colours, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} The {things[k]} is", colours[k], kind="color")


def number(rng: Random) -> Draft:
    """A number of four digits."""
    things = some(rng, THINGS, 3)
    codes = [str(1000 + 3000 * i + between(rng, 0, 2999)) for i in some(rng, range(3), 3)]
    facts = " ".join(f"The number of the {t} is {c}." for t, c in zip(things, codes, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} The number of the {things[k]} is", codes[k], kind="number")


def city(rng: Random) -> Draft:
    """Where someone lives."""
    people, cities = some(rng, NAMES, 3), some(rng, CITIES, 3)
    facts = " ".join(f"{p} lives in {c}." for p, c in zip(people, cities, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} {people[k]} lives in", cities[k], kind="city")


def job(rng: Random) -> Draft:
    """Which profession someone has."""
    people, jobs = some(rng, NAMES, 3), some(rng, JOBS, 3)
    facts = " ".join(f"{p} works as a {j}." for p, j in zip(people, jobs, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} {people[k]} works as a", jobs[k], kind="job")


def place(rng: Random) -> Draft:
    """Where a thing is."""
    things, places = some(rng, THINGS, 3), some(rng, PLACES, 3)
    facts = " ".join(f"The {t} is in the {p}." for t, p in zip(things, places, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} The {things[k]} is in the", places[k], kind="place")


def day(rng: Random) -> Draft:
    """On which day someone comes."""
    people, days = some(rng, NAMES, 3), some(rng, DAYS, 3)
    facts = " ".join(f"{p} comes on {d}." for p, d in zip(people, days, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} {people[k]} comes on", days[k], kind="day")


def repeat(rng: Random) -> Draft:
    """The next word of a list that is said again."""
    words = some(rng, WORDS, 5)
    k = between(rng, 1, 4)
    return Draft(f"{', '.join(words)}. Again: {', '.join(words[:k])},", words[k], kind="repeat")


def secret(rng: Random) -> Draft:
    """A code word."""
    people, words = some(rng, NAMES, 3), some(rng, WORDS, 3)
    facts = " ".join(f"Code word of {p}: {w}." for p, w in zip(people, words, strict=True))
    k = pick(rng, (0, 1, 2))
    return Draft(f"{facts} Code word of {people[k]}:", words[k], kind="code word")


KINDS = (owner, thing, colour, number, city, job, place, day, repeat, secret)


def build() -> Task:
    """The task: 1,600 items of ten kinds, exact match of the greedy continuation up to the end of the sentence."""
    return Task(
        name="recall",
        items=answer_items(seeded("recall order"), collect(seeded("recall"), KINDS, 1600)),
        scorer="exact",
        formats=FORMATS,
        style="continue",
        chance=0.0,
        max_new_tokens=8,
        stop=("\n", ".", ","),
        description="looking up and copying what stands in the prompt",
    )
