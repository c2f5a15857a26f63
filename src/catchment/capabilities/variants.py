"""A task under another number of shots, other shots, or another scorer: the values of a study's axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NoReturn

from catchment.capabilities.duplicates import Asked, question
from catchment.capabilities.order import seeded_order
from catchment.capabilities.prompts import expected_answer
from catchment.capabilities.tasks import CHOICE_SCORERS, SCORERS, Item, Task
from catchment.errors import GateError, InputError, did_you_mean

TEXT_SCORERS = ("exact", "regex", "rouge_l")
"""Scorers of a generated answer against texts that are known."""


def variant(
    task: Task,
    *,
    shots: int | None = None,
    pool: Sequence[Item] = (),
    shot_seed: int = 0,
    scorer: str | None = None,
) -> Task:
    """The task with other shots or another scorer. Without arguments it is the task itself, so that rows are shared;
    so it is where the number of shots and the scorer are those it has, and neither a pool nor a seed is given.

    Shots are the first of the pool in the seeded order of :func:`catchment.capabilities.seeded_order`: few shots are
    among more of the same seed, and the order of the pool does not matter. No shot is or nearly repeats a scored item
    or another shot, or lacks an answer to show. Their ids are those of ``variant(...).shots``.

    Args:
        shots: How many, from 0; ``None``: those that the task has, whatever pool and seed are.
        pool: Solved items to draw from; default: the task's own ``pool``. Without either the first of the task's own
            shots are taken.
        shot_seed: Which shots are drawn.
        scorer: Another of the same kind: ``choice``, ``choice_per_token`` and ``choice_per_byte``; or ``exact``,
            ``regex`` and ``rouge_l``, where the right answers are known as text. The limits of an answer stay.

    Raises:
        InputError: No such number of shots or scorer for this task; says why.
        GateError: The pool holds too few items that can be shots.

    >>> items = (Item("Wet?", ("no", "yes"), 0), Item("Dry?", ("no", "yes"), 1))
    >>> task = Task("t", items[:1], "choice", pool=items)
    >>> variant(task) is task, [shot.prompt for shot in variant(task, shots=1).shots]
    (True, ['Dry?'])
    """
    changed = _scored(task, scorer)
    if shots is None:
        return changed
    for argument, value, least in (("shots", shots, 0), ("shot_seed", shot_seed, None)):
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            raise InputError(f"task {task.name!r}: {argument} is {value!r}; expected a whole number from 0.")
    if task.shots_within:
        return _fixed(changed, shots, shot_seed)
    if shots == 0 or (shots == len(task.shots) and shot_seed == 0 and not pool):
        return changed if shots == len(task.shots) else replace(changed, shots=())
    given = tuple(pool) or task.pool
    return replace(changed, shots=_drawn(changed, given, shots, shot_seed) if given else _own(task, shots, shot_seed))


def _fixed(task: Task, shots: int, shot_seed: int) -> Task:
    if shots == task.shots_within and shot_seed == 0:
        return task
    raise InputError(
        f"task {task.name!r}: its {task.shots_within} shots stand in its items, as its source wrote them; got shots "
        f"{shots}, shot_seed {shot_seed}. Name it with another number of shots (lm-eval:NAME:{shots})."
    )


def _own(task: Task, shots: int, shot_seed: int) -> tuple[Item, ...]:
    if shots <= len(task.shots) and shot_seed == 0:
        return task.shots[:shots]
    raise InputError(
        f"task {task.name!r}: shots {shots}, shot_seed {shot_seed}, but it has {len(task.shots)} shots of its own and "
        f"no pool to draw from; expected a pool. In its YAML file: shot_split, or shots_from with another file."
    )


def _drawn(task: Task, pool: Sequence[Item], shots: int, shot_seed: int) -> tuple[Item, ...]:
    asked = _asked(_Same(task.items))
    drawn: dict[str, Item] = {}
    for item in seeded_order(pool, f"shots:{shot_seed}:"):
        if len(drawn) == shots:
            break
        if expected_answer(item, task.scorer) is not None and asked.near(item) is None:
            drawn.setdefault(question(item), item)
    if len(drawn) < shots:
        raise GateError(
            f"task {task.name!r}: {shots} shots wanted, but only {len(drawn)} of the {len(pool)} items of the pool "
            f"have an answer to show and are no (near) copies of scored items or of each other; expected at least "
            f"{shots}. Take the shots from another split."
        )
    return tuple(drawn.values())


@dataclass(frozen=True, eq=False)
class _Same:
    """A list of items as one object: equal to none but itself."""

    items: tuple[Item, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.items is other.items

    def __hash__(self) -> int:
        return id(self.items)


@lru_cache(maxsize=4)
def _asked(same: _Same) -> Asked:
    """Of many variants of a task one after the other its questions are read once."""
    return Asked(same.items)


def _scored(task: Task, scorer: str | None) -> Task:
    """The task under another scorer of its kind."""
    if scorer is None or scorer == task.scorer:
        return task
    check_scorer(task.name, task.scorer, scorer)
    if scorer in CHOICE_SCORERS:
        return replace(task, scorer=scorer)
    items, shots, pool = (
        tuple(_regold(task, item, scorer) for item in part) for part in (task.items, task.shots, task.pool)
    )
    return replace(task, scorer=scorer, items=items, shots=shots, pool=pool)


def check_scorer(name: str, own: str, scorer: str) -> None:
    """Refuse a scorer that the items of a task cannot have; ``own`` is theirs, empty where it is not known.

    Raises:
        InputError: No scorer of this name, or one of another kind.
    """
    if scorer not in SCORERS:
        raise InputError(
            f"task {name!r}: unknown scorer {scorer!r}; expected one of {', '.join(SCORERS)}."
            + did_you_mean(scorer, SCORERS)
        )
    kind = next((kind for kind in (CHOICE_SCORERS, TEXT_SCORERS) if own in kind), (own,))
    if own and scorer not in kind:
        others = " or ".join(other for other in kind if other != own)
        there = f"its items are scored by {own!r}, and so by {others}"
        _refuse(name, scorer, there if others else f"there is no other scorer than {own!r} for its items")


def _regold(task: Task, item: Item, scorer: str) -> Item:
    """The item with its right answer as the new scorer reads it; its id stays."""
    if task.scorer == "regex":
        answer = expected_answer(item, "regex")
        if answer is None:
            _refuse(
                task.name, scorer, f"item {item.id} has a pattern and no answer; expected 'answer' beside 'pattern'"
            )
        return replace(item, gold=answer)
    if scorer != "regex":
        return item
    golds = item.gold if isinstance(item.gold, tuple) else (item.gold,)
    meta = {**item.meta, "answer": expected_answer(item, task.scorer)}
    return replace(item, gold="|".join(re.escape(str(gold).strip()) for gold in golds), meta=meta)


def _refuse(name: str, scorer: str, reason: str) -> NoReturn:
    raise InputError(f"task {name!r} cannot be scored by {scorer!r}: {reason}.")
