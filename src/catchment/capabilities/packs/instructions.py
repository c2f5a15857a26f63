"""Instructions about the form of the answer. Scored is the form, with what the instruction itself names."""

from __future__ import annotations

import re
from random import Random

from catchment.capabilities.packs._draw import Draft, answer_items, collect, pick, seeded, some, words
from catchment.capabilities.packs._words import WORDS
from catchment.capabilities.tasks import Format, Item, Task

FORMATS = (
    Format("bare", "{prompt}", "\n"),
    Format("instruction", "Instruction: {prompt}\nResponse:"),
    Format("exactly", "Follow the instruction exactly, and write nothing else.\n{prompt}", "\n"),
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
    return Draft(f"{ask} {question}", r"(?:yes|no)\.?", kind="yes or no", answer="yes")


def one_of(rng: Random) -> Draft:
    """One of two given words (either counts)."""
    a, b = some(rng, WORDS, 2)
    prompt = f"Choose one word and write only that word: {a} or {b}?"
    return Draft(prompt, rf"['\"]?(?:{a}|{b})['\"]?\.?", kind="one of two", answer=a)


def hyphens(rng: Random) -> Draft:
    """Three given words with hyphens."""
    parts = some(rng, WORDS, 3)
    ask = pick(rng, ("Join these with hyphens:", "Write these words with hyphens between them:"))
    return Draft(f"{ask} {' '.join(parts)}", r"\s?-\s?".join(parts) + r"\.?", kind="hyphens", answer="-".join(parts))


def sentence(rng: Random) -> Draft:
    """One sentence with a given word."""
    word = pick(rng, WORDS)
    ask = pick(
        rng,
        (
            "Write one short sentence with the word '{}'.",
            "Use the word '{}' in one short sentence.",
            "Say one short sentence with the word '{}'.",
        ),
    )
    return Draft(ask.format(word), rf"(?=.*{word})[^.!?]+[.!]", kind="sentence", answer=f"I like the word {word}.")


def question(rng: Random) -> Draft:
    """One question with a given word."""
    word = pick(rng, WORDS)
    ask = pick(
        rng,
        (
            "Ask a short question with the word '{}'.",
            "Use the word '{}' in one short question.",
            "Write one short question with the word '{}'.",
        ),
    )
    return Draft(ask.format(word), rf"(?=.*{word})[^.!?]+\?", kind="question", answer=f"Where is the {word}?")


def _shot(prompt: str, answer: str) -> Item:
    return Item(prompt, gold=re.escape(answer), meta={"answer": answer})


SHOTS = (
    _shot("Say only yes or no: Is snow cold?", "yes"),
    _shot("Use the word 'autumn' in one short sentence.", "The leaves fall in autumn."),
    _shot("Ask a short question with the word 'uncle'.", "Where is your uncle?"),
    _shot("Join these with hyphens: oak elm ash", "oak-elm-ash"),
)
KINDS = (yes_no, one_of, hyphens, sentence, question)


def build() -> Task:
    """The task: 1,600 items of five kinds, scored by a pattern that must match the whole answer, four shots."""
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
