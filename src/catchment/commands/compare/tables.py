"""The rows of a comparison, by task, prompt format and model."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from catchment.capabilities import Task, seeded_order
from catchment.commands.compare.allocation import CHUNKS, PILOT
from catchment.records import Row

Rows = Mapping[str, Row]


def item_order(task: Task, seed: int) -> tuple[str, ...]:
    """Ids in the order in which rows are kept: chunk by chunk of the seeded order, in the task's order within one. It
    does not depend on the steps in which items are measured, so that sums round the same in a run that goes on."""
    place = {name: number for number, name in enumerate(seeded_order([i.id for i in task.items], f"{seed}:"))}
    stops = [*range(PILOT, len(place), CHUNKS[0])]
    return tuple(sorted((item.id for item in task.items), key=lambda name: bisect_right(stops, place[name])))


@dataclass(frozen=True)
class Tables:
    """Rows of both models.

    Attributes:
        orders: Of each task, the ids of its items in the order in which rows are kept.
        rows: By task, format and role; both models have a table where one has.
    """

    orders: Mapping[str, Sequence[str]]
    rows: Mapping[tuple[str, str, str], Rows] = field(default_factory=dict)

    def of(self, role: str, task: Task, form: str | None = None) -> Rows:
        """Rows of one model, by item; under the default format for ``None``."""
        return self.rows.get((task.name, form or task.formats[0].name, role), {})

    def both(self, task: Task, form: str | None = None) -> tuple[Rows, Rows]:
        """Rows of base and tuned."""
        return self.of("base", task, form), self.of("tuned", task, form)

    def measured(self, tasks: Sequence[Task]) -> list[Task]:
        """Tasks that have rows of both models; a budget may end before a task's first item."""
        return [task for task in tasks if all(self.both(task))]

    def with_rows(self, task: Task, form: str, base: Rows, tuned: Rows) -> Tables:
        """New tables with rows of one task and format added."""
        added = {}
        for role, fresh in (("base", base), ("tuned", tuned)):
            known = {**self.of(role, task, form), **fresh}
            added[task.name, form, role] = {name: known[name] for name in self.orders[task.name] if name in known}
        return dataclasses.replace(self, rows={**self.rows, **added})

    def without(self, task: Task, forms: Sequence[str]) -> Tables:
        """New tables without the rows of a task under these formats."""
        rows = {key: table for key, table in self.rows.items() if key[0] != task.name or key[1] not in forms}
        return dataclasses.replace(self, rows=rows)
