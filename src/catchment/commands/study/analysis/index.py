"""The scores of a study by place: what all parts of the analysis look things up in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from catchment.commands.study.analysis.intervals import with_error
from catchment.commands.study.grid import default_views
from catchment.commands.study.record import BASE, Checkpoint, Flag
from catchment.commands.study.scores import Scored, ScoreTable


class Place(NamedTuple):
    """A cell without its seed."""

    model: str
    revision: str
    tuning: str
    task: str
    format: str
    shots: int
    scorer: str


class Key(NamedTuple):
    """A place under the default format, shots and scorer of its task."""

    model: str
    revision: str
    tuning: str
    task: str


class Index:
    """A table of scores by place.

    Attributes:
        groups: For each place the scores of its seeds.
        views: For each task the format, shots and scorer that changes are taken under.
        formats: For each task its formats, the default first.
        checkpoints: For each model its checkpoints in order.
    """

    def __init__(self, table: ScoreTable) -> None:
        self.table = table
        self.formats = {task: table.task_formats.get(task, table.formats) for task in table.tasks}
        self.views = default_views((result.cell for result in table.cells), self.formats)
        self.groups: dict[Place, list[Scored]] = {}
        for cell, scored in table.scored.items():
            place = Place(cell.model, cell.revision, cell.tuning, cell.task, cell.format, cell.shots, cell.scorer)
            self.groups.setdefault(place, []).append(with_error(scored))
        self.checkpoints: dict[str, list[Checkpoint]] = {}
        for point in sorted(table.checkpoints, key=lambda c: c.order):
            self.checkpoints.setdefault(point.model, []).append(point)
        self._means: dict[Place, float] = {place: _mean(seeds) for place, seeds in self.groups.items()}

    def place(self, key: Key, form: str | None = None) -> Place:
        default, shots, scorer = self.views[key.task]
        return Place(*key, default if form is None else form, shots, scorer)

    def seeds(self, key: Key, form: str | None = None) -> list[Scored]:
        """Scores at a place, one per seed; empty where it is missing."""
        return self.groups.get(self.place(key, form), [])

    def mean(self, key: Key, form: str | None = None) -> float | None:
        """Mean score over seeds."""
        return self._means.get(self.place(key, form))

    @cached_property
    def keys(self) -> list[Key]:
        """Every place with a score under the default view, by model, checkpoint, tuning and task in their order."""
        labels = (BASE, *(card.label for card in self.table.tunings))
        keys = (
            Key(model, point.revision, label, task)
            for model, points in self.checkpoints.items()
            for point in points
            for label in labels
            for task in self.table.tasks
        )
        return [key for key in keys if key.task in self.views and self.place(key) in self.groups]

    def domain(self, label: str) -> tuple[str, ...]:
        """Tasks that belong to the data of a tuning: what its card says, else the task of the same name."""
        card = next(card for card in self.table.tunings if card.label == label)
        return card.in_domain or tuple(task for task in self.table.tasks if task in (card.data, card.label))

    def labels(self, name: str) -> list[str]:
        """The tunings that a contrast means: the label itself, or all that train on the data of that name."""
        labels = [card.label for card in self.table.tunings]
        return [name] if name in labels else [card.label for card in self.table.tunings if card.data == name]


class Refusals:
    """Which cells the gates refused."""

    def __init__(self, flags: Iterable[Flag], tasks: Sequence[str]) -> None:
        self._flags = []
        self._tasks: set[str] = set()
        for flag in flags:
            if not flag.refused:
                continue
            coordinates = (flag.model, flag.revision, flag.tuning)
            if any(coordinates):
                self._flags.append((*coordinates, flag.task))
            else:
                self._tasks.add(flag.task or (flag.where if flag.where in tasks else ""))

    def task(self, task: str) -> bool:
        """Whether all cells of a task are refused."""
        return task in self._tasks

    def cell(self, key: Key) -> bool:
        """Whether a cell is refused."""
        return key.task in self._tasks or any(
            all(wanted in ("", own) for wanted, own in zip(flag, key, strict=True)) for flag in self._flags
        )

    def change(self, key: Key) -> bool:
        """Whether a cell or its base is refused."""
        return self.cell(key) or self.cell(key._replace(tuning=BASE))


def _mean(seeds: Sequence[Scored]) -> float:
    return seeds[0].mean if len(seeds) == 1 else float(np.mean([s.mean for s in seeds]))
