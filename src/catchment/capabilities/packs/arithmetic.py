"""Sums and differences of one- and two-digit numbers, answered in figures."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, answer_items, between, collect, seeded
from catchment.capabilities.tasks import Format, Item, Task

FORMATS = (
    Format("question", "Question: {prompt}\nAnswer:"),
    Format("bare", "{prompt}", "\n"),
    Format("calculate", "Calculate, and give only the number.\n{prompt}\nThe answer is"),
)
SHOTS = (Item("What is 3 + 6?", gold="9"), Item("What is 40 - 20?", gold="20"))
_TAKEN = {(3, 6), (40, 20)}


def answers(a: int, sign: str, b: int) -> tuple[str, ...]:
    """The right number, alone or at the end of the repeated sum.

    >>> answers(27, "+", 8)
    ('35', '27 + 8 = 35')
    """
    result = a + b if sign == "+" else a - b
    return (str(result), f"{a} {sign} {b} = {result}")


def _draft(a: int, sign: str, b: int, kind: str, used: set[tuple[int, int]]) -> Draft | None:
    if (a, b) in used:
        return None
    used.add((a, b))
    return Draft(f"What is {a} {sign} {b}?", answers(a, sign, b), kind=kind)


def drafts(n: int) -> list[Draft]:
    """``n`` questions; no pair of numbers is used twice, not even with the other sign.

    Three in eight add a one-digit number to a number below 100, three add two two-digit numbers with a sum
    below 100, two subtract a smaller number from a number below 100.
    """
    used = set(_TAKEN)

    def fresh(rng: Random, kind: str) -> Draft:
        while True:
            if kind == "add one digit":
                draft = _draft(between(rng, 2, 98), "+", between(rng, 2, 9), kind, used)
            elif kind == "add two digits":
                a = between(rng, 11, 80)
                draft = _draft(a, "+", between(rng, 10, 99 - a), kind, used)
            else:
                a = between(rng, 12, 99)
                draft = _draft(a, "-", between(rng, 2, a - 2), kind, used)
            if draft is not None:
                return draft

    one = lambda rng: fresh(rng, "add one digit")  # noqa: E731
    two = lambda rng: fresh(rng, "add two digits")  # noqa: E731
    minus = lambda rng: fresh(rng, "subtract")  # noqa: E731
    return collect(seeded("arithmetic"), (one, two, minus, one, two, minus, one, two), n)


def build() -> Task:
    """The task: 1,600 items, exact match, two shots."""
    return Task(
        name="arithmetic",
        items=answer_items(seeded("arithmetic order"), drafts(1600)),
        scorer="exact",
        formats=FORMATS,
        style="ask",
        shots=SHOTS,
        chance=0.0,
        max_new_tokens=12,
        description="sums and differences of one- and two-digit numbers",
    )
