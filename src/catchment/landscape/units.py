"""Units of random directions: what is fixed before the first one is drawn, and all that were measured so far.

A *unit* is one antithetic pair ``theta +- s z`` on its own fresh random items; its value is

    x = mean over items of base - (score(theta + s z) + score(theta - s z)) / 2          in [-1, 1].

Units at a scale are i.i.d. with mean drop(s) (STATISTICS.md, "Basin"), and no two scales share a direction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from catchment.landscape.directions import gaussian
from catchment.landscape.evaluator import Evaluator, Ground, subset
from catchment.records import Outcome, Row
from catchment.statistics import decide_mean, node_error, units_needed

CHUNK = 4
"""Units between two looks at the clock and at the decision."""


@dataclass(frozen=True)
class Unit:
    """Rows of one pair: the model's own, at +s and at -s, of the same items."""

    base: tuple[Row, ...]
    plus: tuple[Row, ...]
    minus: tuple[Row, ...]


@dataclass(frozen=True)
class Design:
    """What is fixed before the first direction is drawn.

    Attributes:
        ladder: Rising scales, at least 8.
        depth: Bisections after the rungs.
        gamma: Error of all brackets together.
        family: Tasks that are ranked together.
        items_each: Items of a unit.
        cap: Units at a scale at most, per task.
        fixed: Items are the population; otherwise a scale uses no item twice, so that the claim is over the
            population that the items came from.
        below: Rising scales below the ladder, which are looked at where none of its rungs is shown to be inside.
        floor: The number format whose smallest step the lowest of them is; empty where the ladder was given.
    """

    ladder: tuple[float, ...]
    depth: int = 3
    gamma: float = 0.05
    family: int = 1
    items_each: int = 2
    cap: int = 400
    fixed: bool = False
    seed: int = 0
    below: tuple[float, ...] = ()
    floor: str = ""

    @property
    def whole(self) -> tuple[float, ...]:
        """All scales that may be rungs."""
        return (*self.below, *self.ladder)

    @property
    def error(self) -> float:
        """Of one decision at one scale."""
        return node_error(self.gamma, len(self.whole), self.depth, self.family)

    def units(self, ground: Ground) -> int:
        """Most units at one scale."""
        return self.cap if self.fixed else min(self.cap, len(ground.items) // min(self.items_each, len(ground.items)))

    def sampling(self, ground: Ground) -> str:
        if self.fixed:
            return f"directions; these {len(ground.items)} items are the population"
        return "directions and the population of the items (no item twice at a scale)"


def values(ground: Ground, units: Sequence[Unit]) -> list[float]:
    """The value of each unit: its base score less the mean of its two sides."""
    value, drops = ground.value, []
    for unit in units:
        moved = sum(value(p) + value(m) for p, m in zip(unit.plus, unit.minus, strict=True)) / 2
        drops.append((sum(map(value, unit.base)) - moved) / len(unit.base))
    return drops


def items_each(grounds: Sequence[Ground], error: float, most: int = 8) -> int:
    """Items per unit: as many as leave enough units for "inside", before items would be used twice."""
    fits = [len(g.items) / (1.25 * units_needed(g.tau, error)) for g in grounds]
    return max(1, min(most, int(min(fits, default=1))))


@dataclass
class Field:
    """Units measured so far, per task and scale, and what the search made of them; the rest is computed from it.

    ``pilot`` holds units of another stream, from which the search guesses where to look and which decide nothing.
    Scales that only a profile looked at take no part in a bracket either, whose error they would add to.
    """

    evaluator: Evaluator
    design: Design
    units: dict[tuple[str, float], list[Unit]] = field(default_factory=dict)
    spent: dict[str, list[int]] = field(default_factory=dict)
    decided: dict[str, dict[float, Outcome]] = field(default_factory=dict)
    guesses: dict[str, float | None] = field(default_factory=dict)
    pilot: dict[tuple[str, float], list[Unit]] = field(default_factory=dict)

    def measure(self, tasks: Sequence[str], scale: float, count: int) -> None:
        """Raise the units of these tasks at a scale to ``count``, or to the most that a task may have; the pairs are
        shared by the tasks."""
        most = {task: self.design.units(self.evaluator.grounds[task]) for task in tasks}
        for number in range(count):
            due = [t for t in tasks if len(self.units.setdefault((t, scale), [])) == number < most[t]]
            for task, unit in self.unit(due, scale, number).items() if due else ():
                self.units[task, scale].append(unit)
                self._book(task, unit)

    def unit(self, tasks: Sequence[str], scale: float, number: int, stream: str = "") -> dict[str, Unit]:
        """The ``number``-th unit of each task at a scale: looked up, or measured."""
        stream = f"{self.design.seed}/{scale!r}{stream}"
        seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:6], "little")
        subspace, grounds = self.evaluator.mover.subspace, self.evaluator.grounds
        direction = gaussian(subspace, seed, number)
        family = {"subspace": subspace.hash, "scale": scale, **direction.address, "index": "unit"}
        wanted = {
            task: subset(grounds[task], f"{stream}/{task}", number, self.design.items_each, self.design.fixed)
            for task in tasks
        }
        plus, minus = (
            self.evaluator.rows(family, f"{number}{sign}", wanted, (direction, signed))
            for sign, signed in (("+", scale), ("-", -scale))
        )
        return {
            task: Unit(*(tuple(side[i] for i in ids) for side in (grounds[task].base, plus[task], minus[task])))
            for task, ids in wanted.items()
        }

    def _book(self, task: str, unit: Unit) -> None:
        spent = self.spent.setdefault(task, [0, 0])
        spent[0] += 2 * len(unit.base)
        spent[1] += 2 * self.evaluator.cost(task, [row.item for row in unit.base])

    def drops(self, task: str, scale: float) -> list[float]:
        """Value of each unit that decides."""
        return values(self.evaluator.grounds[task], self.units.get((task, scale), []))

    def seen(self, task: str, scale: float) -> list[Unit]:
        """All units at a scale, those of the pilot too: for estimates."""
        return [*self.pilot.get((task, scale), []), *self.units.get((task, scale), [])]

    def scales(self, task: str) -> list[float]:
        """Where at least one unit was measured."""
        tables = (self.units, self.pilot)
        known = {scale for table in tables for (name, scale), units in table.items() if name == task and units}
        return sorted(known)

    def settle(self, task: str, scale: float) -> bool:
        """Note what the units at a scale decide, if they do or are as many as may be. It is looked at after every
        :data:`CHUNK` units only, so that what a profile added in between changes no look."""
        drops = self.drops(task, scale)
        full = len(drops) >= self.design.units(self.evaluator.grounds[task])
        looked = drops if full else drops[: len(drops) - len(drops) % CHUNK]
        outcome = decide_mean(looked, self.evaluator.grounds[task].tau, self.design.error)
        if full or outcome != "undecided":
            self.decided.setdefault(task, {})[scale] = outcome
        return full or outcome != "undecided"
