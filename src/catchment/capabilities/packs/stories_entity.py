"""Who and what in a little story: every choice is named in it, one is the one meant."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, choice_items, collect, pick, seeded, some, words
from catchment.capabilities.packs._stories import BOYS, FORMATS, GIRLS
from catchment.capabilities.tasks import Task

TOYS = words("ball doll truck kite car boat train drum book hat robot balloon bike")
ANIMALS = words("dog cat bird frog bunny fish duck horse pig mouse bear")
PLAY = ("in the park", "in the garden", "at school", "by the lake", "in the forest", "at the beach")


def _three(rng: Random) -> tuple[str, str, str]:
    """Two girls and a boy, or two boys and a girl, in random order."""
    girls = pick(rng, (1, 2))
    names = some(rng, some(rng, GIRLS, girls) + some(rng, BOYS, 3 - girls), 3)
    return names[0], names[1], names[2]


def taken(rng: Random) -> Draft:
    """A toy is to be given back by the one who took it."""
    (a, b), c = some(rng, GIRLS, 2), pick(rng, BOYS)
    toy = pick(rng, TOYS)
    prompt = (
        f"Once upon a time, there was a girl named {a}. She had a brother named {c} and a friend named {b}. "
        f'One day, {c} took the {toy}. {c} ran away with it. Mom was angry. She said, "Give it back,'
    )
    return Draft(prompt, c, (a, b), "taken")


def sad(rng: Random) -> Draft:
    """The one who is sad gets the hug."""
    a, b, c = _three(rng)
    prompt = (
        f"One day, {a} met {b} {pick(rng, PLAY)}. {a} and {b} played all day. Then they saw {c}. "
        f"{c} was sad. {c} wanted to play too. {a} hugged"
    )
    return Draft(prompt, c, (a, b), "sad")


def lost(rng: Random) -> Draft:
    """The toy that was lost, not the one kept."""
    who, (x, y, z) = pick(rng, GIRLS), some(rng, TOYS, 3)
    first, second = some(rng, (x, y), 2)
    prompt = (
        f"{who} had a {first}, a {second} and a {z}. One day, she lost her {x}. She looked for it everywhere. "
        f'{who} was very sad. Mom said, "Do not cry. I will help you find your'
    )
    return Draft(prompt, x, (y, z), "lost")


def wanted(rng: Random) -> Draft:
    """The toy that was wanted in the store."""
    who, (x, y, z) = pick(rng, GIRLS), some(rng, TOYS, 3)
    prompt = (
        f'One day, {who} saw a {y} and a {z} in the store. But {who} wanted a {x}. She said, "Mom, please buy me '
        f'the {x}." Mom said yes. {who} was happy with her new'
    )
    return Draft(prompt, x, (y, z), "wanted")


def found(rng: Random) -> Draft:
    """The toy that was found and taken home."""
    who, (x, y, z) = pick(rng, GIRLS), some(rng, TOYS, 3)
    prompt = (
        f"{who} saw a {y} and a {z}. She did not like them. Then {who} found a {x}. She loved the {x}. "
        f'She took the {x} home. She told her mom, "Look at my'
    )
    return Draft(prompt, x, (y, z), "found")


def lost_animal(rng: Random) -> Draft:
    """The animal that needs help."""
    who, (x, y, z) = pick(rng, GIRLS), some(rng, ANIMALS, 3)
    prompt = (
        f"One day, {who} saw a {y} and a {z} on the farm. Then she saw a little {x}. The {x} was sad. "
        f"The {x} was lost. {who} wanted to help the"
    )
    return Draft(prompt, x, (y, z), "animal")


def friends(rng: Random) -> Draft:
    """The hero of the story, not its friends."""
    who, (x, y, z) = pick(rng, GIRLS + BOYS), some(rng, ANIMALS, 3)
    prompt = (
        f"Once there was a {x}. The {x} had two friends, a {y} and a {z}. The {x} could not find its home. "
        f"{who} came and felt sorry for the"
    )
    return Draft(prompt, x, (y, z), "hero")


def greeting(rng: Random) -> Draft:
    """The name that was just told."""
    a, b, c = _three(rng)
    prompt = (
        f'{b} and {c} were {pick(rng, PLAY)}. They saw a new child. "What is your name?" they asked. '
        f'"My name is {a}," said the child. "Nice to meet you,'
    )
    return Draft(prompt, a, (b, c), "greeting")


def fell(rng: Random) -> Draft:
    """The one who fell gets help; named first or last at the start."""
    a, b, c = _three(rng)
    group = pick(rng, (f"{b} and {c} were {{}} with {a}", f"{c} was {{}} with {a} and {b}"))
    prompt = f"{group.format(pick(rng, PLAY))}. {c} fell down and started to cry. {b} and {a} ran to"
    return Draft(prompt, c, (a, b), "fell")


def hiding(rng: Random) -> Draft:
    """The one who hid is found."""
    a, b, c = _three(rng)
    where = pick(rng, ("a tree", "the door", "a big box", "the house", "a rock"))
    names = some(rng, (a, b, c), 3)
    prompt = (
        f"{names[0]}, {names[1]} and {names[2]} played hide and seek. {c} hid behind {where}. "
        f"{a} and {b} looked and looked. At last they found"
    )
    return Draft(prompt, c, (a, b), "hiding")


def birthday(rng: Random) -> Draft:
    """The one whose birthday it is."""
    a, b, c = _three(rng)
    prompt = (
        f"{b} and {c} came to the birthday party of {a}. They had a gift for {a}. It was a {pick(rng, TOYS)}. "
        '"Happy birthday,'
    )
    return Draft(prompt, a, (b, c), "birthday")


KINDS = (taken, sad, lost, wanted, found, lost_animal, friends, greeting, fell, hiding, birthday)


def build() -> Task:
    """The task: 1,606 items of 11 kinds, three choices each."""
    return Task(
        name="stories_entity",
        items=choice_items(seeded("stories entity order"), collect(seeded("stories entity"), KINDS, 1606)),
        scorer="choice",
        formats=FORMATS,
        style="continue",
        description="who and what in a little story",
    )
