"""Instructions about the form of the answer. Scored is the form, with what the instruction itself names."""

from __future__ import annotations

import re
from random import Random

from catchment.capabilities.packs._draw import Draft, answer_items, between, collect, pick, seeded, some, words
from catchment.capabilities.packs._words import COLOURS, NAMES, THINGS, WORDS
from catchment.capabilities.tasks import Format, Item, Task

FORMATS = (
    Format("bare", "{prompt}", "\n"),
    Format("instruction", "Instruction: {prompt}\nResponse:"),
    Format("exactly", "Follow the instruction exactly, and write nothing else.\n{prompt}\nResponse:"),
)
SHOTS = (
    Item("Write the word 'violet' in square brackets.", gold="[violet]"),
    Item("Answer with yes or no only: Is snow cold?", gold="yes"),
    Item("List these, separated by commas: oak elm ash", gold="oak, elm, ash"),
)
GROUPS = words(
    "animals colours fruits vegetables countries cities birds fish trees flowers sports games tools languages "
    "drinks metals planets rivers jobs clothes toys insects months hobbies spices cheeses dances oceans"
)
ADJECTIVES = words(
    "big small heavy light soft hard hot cold sweet sour wet dry loud quiet fast slow cheap old round flat"
)
SUBJECTS = words(
    "a stone,a feather,a horse,ice,fire,a mouse,a drum,a lemon,honey,a desert,the sea,a snail,a train,a pillow,iron,"
    "a castle,a coin,a book,a whisper,the moon,a needle,a river,soup,a banana,a spider,a bicycle",
    ",",
)


def yes_no(rng: Random) -> Draft:
    """Only yes or no (either counts: the form is scored)."""
    question = f"Is {pick(rng, SUBJECTS)} {pick(rng, ADJECTIVES)}?"
    ask = pick(rng, ("Answer with yes or no only:", "Say only yes or no:", "Answer in one word, yes or no:"))
    return Draft(f"{ask} {question}", r"(?:yes|no)\.?", kind="yes or no")


def brackets(rng: Random) -> Draft:
    """A word in square brackets, round brackets or quotation marks."""
    name, left, right = pick(rng, (("square brackets", "[", "]"), ("round brackets", "(", ")")))
    word = pick(rng, WORDS)
    return Draft(f"Write the word '{word}' in {name}.", re.escape(left + word + right), kind="brackets")


def capitals(rng: Random) -> Draft:
    """A word in capital letters; ``(?-i:...)`` keeps the case although the scorer ignores it elsewhere."""
    word = pick(rng, WORDS)
    verb = pick(rng, ("Write the word '{}' in capital letters.", "Put the word '{}' in upper case."))
    return Draft(verb.format(word), rf"(?-i:{word.upper()})\.?", kind="capitals")


def commas(rng: Random) -> Draft:
    """Given words as a list with commas."""
    words = some(rng, WORDS, 3)
    return Draft(f"List these, separated by commas: {' '.join(words)}", r",\s*".join(words) + r"\.?", kind="commas")


def three(rng: Random) -> Draft:
    """Any list of three."""
    group, colour = pick(rng, GROUPS), pick(rng, NAMES)
    item = r"[^,.:;\d]{2,40}"
    prompt = f"{colour} asks for three {group}. Name three, separated by commas."
    return Draft(prompt, rf"{item},\s*{item},\s*(?:and )?{item}\.?", kind="list of three")


def figure(rng: Random) -> Draft:
    """Only a number (any counts: the form is scored)."""
    thing, name = pick(rng, THINGS), pick(rng, NAMES)
    prompt = f"Answer with a number only: {name} buys {between(rng, 2, 9)} of the {thing}s. How many is that?"
    return Draft(prompt, r"\d{1,4}\.?", kind="number only")


def one_of(rng: Random) -> Draft:
    """One of two given words."""
    a, b = some(rng, WORDS, 2)
    word = rf"(?:{a}|{b})"
    return Draft(f"Choose one word and write only that word: {a} or {b}?", rf"['\"]?{word}['\"]?\.?", kind="one of two")


def starts(rng: Random) -> Draft:
    """An answer that begins with a given word."""
    word = pick(rng, ("Well", "Yes", "Sure", "Today", "Maybe", "Indeed"))
    name, colour, thing = pick(rng, NAMES), pick(rng, COLOURS), pick(rng, THINGS)
    prompt = f"Say that {name} has a {colour} {thing}. Begin your answer with the word '{word}'."
    return Draft(prompt, rf"['\"]?{word}\b.*", kind="first word")


KINDS = (yes_no, brackets, capitals, commas, three, figure, one_of, starts)


def build() -> Task:
    """The task: 1,600 items, scored by a pattern that must match the whole answer, three shots."""
    return Task(
        name="format",
        items=answer_items(seeded("format order"), collect(seeded("format"), KINDS, 1600)),
        scorer="regex",
        formats=FORMATS,
        style="ask",
        shots=SHOTS,
        chance=0.0,
        max_new_tokens=20,
        description="the form of the answer follows the instruction",
    )
