"""Seeded drawing and the assembly of items, stable across Python versions.

Only ``random.Random.random()`` is used: its sequence for an integer seed is guaranteed by Python, while
``choice``, ``sample`` and ``shuffle`` may change between versions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any, TypeVar

from catchment.capabilities.tasks import Item

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """An item before its choices are put in order. ``wrong`` is empty for generated answers; ``answer`` is one
    right answer in full where ``right`` is a pattern."""

    prompt: str
    right: str | tuple[str, ...]
    wrong: tuple[str, ...] = ()
    kind: str = ""
    answer: str = ""


def seeded(name: str) -> Random:
    """A generator whose seed is the SHA-256 of ``name``."""
    return Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def below(rng: Random, n: int) -> int:
    """A uniform integer in [0, n)."""
    return int(rng.random() * n)


def between(rng: Random, low: int, high: int) -> int:
    """A uniform integer in [low, high]."""
    return low + below(rng, high - low + 1)


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of ``options``, uniformly."""
    return options[below(rng, len(options))]


def shuffled(rng: Random, options: Iterable[T]) -> list[T]:
    """A uniformly permuted copy (Fisher-Yates)."""
    out = list(options)
    for i in range(len(out) - 1, 0, -1):
        j = below(rng, i + 1)
        out[i], out[j] = out[j], out[i]
    return out


def some(rng: Random, options: Iterable[T], k: int) -> list[T]:
    """``k`` different positions of ``options``, in random order."""
    return shuffled(rng, options)[:k]


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The parts of a list written as one string.

    >>> words("red blue")
    ('red', 'blue')
    """
    return tuple(text.split(separator))


def normalised(text: str) -> str:
    """Lower case, with every run of anything but letters, digits and ``+ - *`` as one space.

    >>> normalised("What is 2 + 3?")
    'what is 2 + 3'
    """
    return " ".join(re.findall(r"[\w]+|[+*-]", text.lower()))


def collect(rng: Random, kinds: Sequence[Callable[[Random], Draft]], n: int) -> list[Draft]:
    """``n`` drafts with distinct prompts, the kinds in turn, so that each has the same share (within one)."""
    seen: set[str] = set()
    drafts: list[Draft] = []
    for i in range(n):
        make = kinds[i % len(kinds)]
        for _ in range(400):
            draft = make(rng)
            key = normalised(draft.prompt)
            if key not in seen:
                break
        else:
            raise AssertionError(f"{make.__name__} runs out of new prompts after {i} items")
        seen.add(key)
        drafts.append(draft)
    return drafts


def choice_items(rng: Random, drafts: Iterable[Draft]) -> tuple[Item, ...]:
    """Items with the right answer at balanced positions (per number of choices), in random order."""
    out: list[Item] = []
    queues: dict[int, list[int]] = {}
    for draft in shuffled(rng, drafts):
        size = len(draft.wrong) + 1
        if not queues.get(size):
            queues[size] = shuffled(rng, range(size))
        gold = queues[size].pop()
        choices = shuffled(rng, draft.wrong)
        choices.insert(gold, str(draft.right))
        out.append(Item(draft.prompt, tuple(choices), gold, meta={"kind": draft.kind}))
    return tuple(out)


def answer_items(rng: Random, drafts: Iterable[Draft]) -> tuple[Item, ...]:
    """Items with a written answer (or pattern) as gold, in random order."""
    out = []
    for draft in shuffled(rng, drafts):
        meta = {"kind": draft.kind} | ({"answer": draft.answer} if draft.answer else {})
        out.append(Item(draft.prompt, gold=draft.right, meta=meta))
    return tuple(out)


def read_lines(name: str) -> list[dict[str, Any]]:
    """The rows of ``data/<name>.jsonl``."""
    text = resources.files(__package__).joinpath("data", f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]
