"""What the stages of a scan measure with, and what each of them is: an object with a price and a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from catchment import landscape
from catchment.commands.scan.admission import Admitted
from catchment.commands.scan.journal import Journal
from catchment.commands.scan.opened import Opened
from catchment.landscape import Batch, Evaluator, Field, Ground
from catchment.measuring import short_of
from catchment.runs import processes

SPEED, POINT = 500.0, 0.1
"""Tokens per second, and seconds per displaced point, until any were measured."""
SAVE_SECONDS = 5.0
"""Between two looks at the clock that are written to plan.json."""


@dataclass(frozen=True)
class Bench:
    """What stages measure with: the opened scan, its tasks, and where the model is moved and rows are drawn."""

    opened: Opened
    admitted: Admitted
    evaluator: Evaluator
    field: Field
    journal: Journal

    @property
    def choices(self) -> list[str]:
        """The tasks whose items have answers."""
        return [g.name for g in self.admitted.grounds if g.prepared.task.scorer != "text"]

    @property
    def flagship(self) -> str:
        """The task that plane and curvature are drawn for: the best above chance."""
        return max(self.admitted.grounds, key=lambda g: (g.prepared.task.scorer != "text", g.score - g.chance)).name

    def batches(self, ground: Ground, items: Sequence[str]) -> list[Batch]:
        """The items of a task with their right answers, for losses and gradients."""
        return landscape.batches_of(self.evaluator, ground, items)

    def pace(self) -> tuple[float, float]:
        """Tokens per second, and seconds per point: measured here, else by an earlier run, else a guess."""
        e, notes = self.evaluator, self.journal.notes
        if e.seconds <= 0 or not e.fresh_tokens:
            return notes.speed or SPEED, notes.point or POINT
        known: dict[tuple[float, int], int] = {}
        for number, table in enumerate((self.field.units, self.field.pilot)):
            for (_, scale), units in table.items():  # tasks share the points of a scale
                known[scale, number] = max(known.get((scale, number), 0), len(units))
        fresh = 2 * sum(known.values()) * e.fresh_tokens / max(e.tokens, 1)
        return e.fresh_tokens / e.seconds, e.seconds / fresh if fresh else notes.point or POINT

    def seconds(self, tokens: float, points: int = 0) -> float:
        """What evaluating so many tokens takes, and placing the model at so many points, two directions drawn for
        each."""
        speed, point = processes.agreed(self.pace())
        return float(tokens / speed + 2 * points * point)

    def tokens(self, task: str, items: int) -> float:
        """Of so many items of a task, as far as its mean goes."""
        ground = self.evaluator.grounds[task]
        return ground.prepared.tokens / len(ground.items) * items

    def unit(self) -> float:
        """Seconds of one direction and its opposite at one scale, on all tasks."""
        each = self.field.design.items_each
        return self.seconds(sum(2 * self.tokens(t, each) for t in self.admitted.tasks))

    def save(self, panels: Sequence[Any] | None = None) -> None:
        """Write the clock, and what was learnt of this machine, to plan.json."""
        speed, point = self.pace()
        self.journal.note(speed=speed, point=point)
        self.journal.write(panels)


@dataclass(frozen=True)
class Allotment:
    """The seconds that a stage has: measuring stops at ``end``; what is only looked up takes no time of it."""

    bench: Bench
    end: float

    def stop(self) -> bool:
        """Whether they are spent. Looks at the clock are written down now and then: a run that is killed was paid
        for."""
        bench = self.bench
        if bench.evaluator.frozen:
            return False
        spent = bench.opened.clock.spent
        if bench.journal.due(spent, SAVE_SECONDS):
            bench.save()
        return spent >= self.end

    def part(self, share: float) -> Allotment:
        """The first part of what is left."""
        spent = self.bench.opened.clock.spent
        return Allotment(self.bench, spent + share * (self.end - spent))


class Note(str):
    """What a reader must know of a stage, whatever comes of it: a stage may yield some beside its results."""


@dataclass(frozen=True)
class Stage:
    """One thing that a budget may buy.

    Attributes:
        share: Of the time that is left when it begins.
        run: Yields what it bought; nothing where the store or the time had too little. What was yielded before an error
            stays.
        rough: Seconds that it takes, about, where it has no price.
        price: Seconds that it takes; one that does not fit into its share is only looked up.
        memory: Bytes that it needs beside the evaluator's.
        whole: It takes gradients of whole weights, which weights cut over processes do not give.
        forced: It was asked for by name, and is begun whatever its share.
    """

    name: str
    title: str
    share: float
    run: Callable[[Bench, Allotment], Iterator[Any]]
    rough: Callable[[Bench], float]
    price: Callable[[Bench], float] | None = None
    memory: Callable[[Bench], float] | None = None
    whole: bool = False
    forced: bool = False

    def refused(self, bench: Bench) -> str:
        """Why it is not begun here whatever the budget; empty where it may be."""
        if self.whole and processes.count() > 1:
            return "it needs the gradient of whole weights on one process; scan without torchrun for it"
        if self.memory is None:
            return ""
        return short_of(self.memory(bench), bench.evaluator.mover, bench.evaluator.engine.device)


def half_of_budget(bench: Bench) -> float:
    """A rough price for what cannot be priced better."""
    return bench.opened.clock.budget / 2
