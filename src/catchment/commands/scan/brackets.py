"""Stages that draw random directions: the brackets of the basins, and the profiles."""

from __future__ import annotations

from collections.abc import Iterator

from catchment import landscape
from catchment.commands.scan.bench import Allotment, Bench, Stage
from catchment.commands.scan.design import unit_scales

PILOT = 4
"""Units per scale from which the search guesses where a task is lost."""


def search(bench: Bench, time: Allotment) -> Iterator[str]:
    """Decide scales of every task; yields the tasks of which some were."""
    tasks, field = bench.admitted.tasks, bench.field
    if not field.guesses:
        landscape.scout(field, tasks, PILOT, time.part(1 / 3).stop)
    landscape.search(field, tasks, time.stop)
    yield from (task for task in tasks if field.decided.get(task))


def sharpen(bench: Bench, time: Allotment) -> Iterator[str]:
    """The search again, and more units where it is undecided."""
    decided = list(search(bench, time))
    landscape.sharpen(bench.field, bench.admitted.tasks, bench.field.design.cap, time.stop)
    yield from decided


def profiles(bench: Bench, time: Allotment) -> Iterator[str]:
    """The same number of directions at every second rung; yields the tasks once all of them have some."""
    field, tasks = bench.field, bench.admitted.tasks
    scales = unit_scales(field.design)
    landscape.fill(field, bench.choices or tasks, scales, bench.opened.settings.directions, time.stop)
    if all(any((task, scale) in field.units for task in tasks) for scale in scales):
        yield from tasks


def _rough_profiles(bench: Bench) -> float:
    return bench.unit() * bench.opened.settings.directions * len(unit_scales(bench.field.design)) / 2


BASINS = Stage("basins", "Basins", 0.55, search, rough=lambda bench: bench.unit() * 100)
PROFILES = Stage("profiles", "Profiles", 0.5, profiles, rough=_rough_profiles)
