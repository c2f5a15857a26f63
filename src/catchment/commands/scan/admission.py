"""The model's own scores, and which tasks it is good enough at to be scanned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from catchment.capabilities import JUDGED_SCORERS, Prepared, Task, sample, seeded_order
from catchment.commands.scan.design import design_of, out_of_reach
from catchment.commands.scan.opened import Opened
from catchment.commands.scan.settings import ScanSettings
from catchment.errors import InputError, TaskError
from catchment.landscape import Design, Ground
from catchment.measuring import OutOfTimeError, fill
from catchment.records import Admission, Row
from catchment.runs import processes
from catchment.statistics import admission, mean_interval

LEAST = 16
"""Items a task needs to be scanned at all."""
OWN_SHARE = 0.4
"""Of a budget that the model's own scores may take, beyond the items without which a task is not scanned."""
STEPS = (LEAST, 64)
"""Items per task at which own scores look at the clock."""
CHECK_SHARE, CHECK_ITEMS = 0.05, 16
"""Of a budget that the self-check may take, and its items per task at most."""


@dataclass(frozen=True)
class Own:
    """The model's own scores of one task.

    Attributes:
        rows: By item.
        reached: So many items of the seeded order were measured.
        seconds: Per item that was measured now; ``None`` where all were stored.
        speed: Tokens per second, of the first that were.
    """

    rows: Mapping[str, Row] = dataclasses.field(default_factory=dict)
    reached: int = 0
    seconds: float | None = None
    speed: float | None = None


@dataclass(frozen=True)
class Admitted:
    """What is scanned.

    Attributes:
        grounds: Tasks that the model is good enough at, with their tolerances.
        admissions: Of every task that has a row.
        own: Items per task whose own scores were measured.
        check_items: Items per task of the self-check, which comes last.
        speed: Tokens per second at the model's own weights, where some were measured.
    """

    grounds: tuple[Ground, ...]
    admissions: tuple[Admission, ...]
    design: Design
    own: dict[str, int]
    check_items: int
    speed: float | None
    warnings: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        """Names of the admitted ones."""
        return [ground.name for ground in self.grounds]


def admit(opened: Opened, most: Mapping[str, int] | None = None) -> Admitted:
    """Measure the model's own rows. Within a budget few items of every task come before many of any; a task without a
    row is said to be unmeasured.

    Args:
        most: Items per task at most; those of an earlier run by default.

    Raises:
        InputError: The budget ended before the first items of any task.
        TaskError: The model is good enough at none.
    """
    own = _own_scores(opened, opened.earlier.notes.own if most is None else most)
    warnings = [note for task in opened.tasks for note in task.notes]
    grounds, admissions = [], []
    for task in opened.tasks:
        ground, said = _ground_of(opened, task, own[task.name])
        warnings += said
        if ground is not None:
            admissions.append(_admission(ground, task))
            grounds += [ground] if admissions[-1].admitted else []
    check_items = _check_items(opened, own, [ground.name for ground in grounds])
    design = design_of(opened.settings, opened.ruler, opened.subspace.spread, grounds)
    for ground in grounds:
        warnings += out_of_reach(opened.settings, opened.tasks, ground, design)
    if not grounds:
        raise _nothing(opened, admissions)
    return Admitted(
        grounds=tuple(grounds),
        admissions=tuple(admissions),
        design=design,
        own={name: scores.reached for name, scores in own.items() if scores.reached},
        check_items=check_items,
        speed=next((scores.speed for scores in own.values() if scores.speed is not None), None),
        warnings=tuple(warnings),
    )


def _nothing(opened: Opened, admissions: list[Admission]) -> InputError | TaskError:
    if not admissions:
        return InputError(
            f"--budget {opened.settings.budget}: it ended before the first items of any task were measured, "
            f"{opened.clock.spent:,.0f} s after the start, reading the model included; expected a longer one."
        )
    reasons = "; ".join(f"{a.task}: {a.reason}" for a in admissions)
    return TaskError(
        f"none of the tasks can be scanned on {opened.subject.card.name}: {reasons}. Choose easier tasks, or give more "
        "items."
    )


def _own_scores(opened: Opened, most: Mapping[str, int]) -> dict[str, Own]:
    """Of every task, a few items of each before many of any."""
    s, clock = opened.settings, opened.clock
    counts = {task.name: len(sample(task.items, s.limit, s.seed)) for task in opened.tasks}
    ends = {name: min(count, most.get(name, count)) for name, count in counts.items()}
    own = {task.name: Own() for task in opened.tasks}
    for number, stop in enumerate((*STEPS, None)):
        with clock.within(OWN_SHARE * clock.budget - clock.spent if number else math.inf):
            for task in opened.tasks:
                end = ends[task.name] if stop is None else min(stop, ends[task.name])
                own[task.name] = _up_to(opened, task, own[task.name], end)
    return own


def _up_to(opened: Opened, task: Task, own: Own, stop: int) -> Own:
    """Own scores up to item ``stop`` of the seeded order; where the clock ended before, none of these counts."""
    if stop <= own.reached:
        return own
    s, form = opened.settings, task.formats[0].name
    before = {item.id for item in sample(task.items, own.reached, s.seed)} if own.reached else set()
    items = [item for item in sample(task.items, stop, s.seed) if item.id not in before]
    opened.progress.status(f"own scores · {task.name}")
    try:
        measured = fill(opened.subject, opened.store, task, form, items, opened.batch_tokens, opened.progress)
    except OutOfTimeError:
        return own
    more = dataclasses.replace(own, rows={**own.rows, **measured.rows}, reached=stop)
    if not measured.fresh or measured.seconds <= 0:
        return more
    tokens = opened.subject.prepare(task, form, items).tokens
    speed = tokens * measured.fresh / len(items) / measured.seconds
    seconds = measured.seconds / measured.fresh
    return dataclasses.replace(more, seconds=seconds, speed=own.speed if own.speed is not None else speed)


def _ground_of(opened: Opened, task: Task, own: Own) -> tuple[Ground | None, list[str]]:
    """The task with its tolerance, and what a reader must know; ``None`` where it has no row."""
    s = opened.settings
    items = sample(task.items, s.limit, s.seed)
    asked = [item for item in items if item.id in own.rows]
    if not asked:
        return None, [f"{task.name}: not measured: the budget ended before its first item"]
    prepared = opened.subject.prepare(task, task.formats[0].name, asked)
    said = []
    if own.reached < len(items):
        said = [f"{task.name}: {own.reached:,} of {len(items):,} items are scanned, because the budget ended"]
    return ground_of(prepared, own.rows, s), said


def ground_of(prepared: Prepared, rows: Mapping[str, Row], settings: ScanSettings) -> Ground:
    """A task at the model's own weights: its rows, the seeded order of its items, and the drop that is tolerated."""
    chance = prepared.task.chance_level
    items = tuple(seeded_order([e.item.id for e in prepared.encoded], f"{settings.seed}/"))
    ground = Ground(prepared, rows, items, chance, 1.0)
    absolute = settings.tau_absolute
    tau = absolute if absolute is not None else settings.tau * max(ground.score - chance, 0.0)
    return dataclasses.replace(ground, tau=tau)


def _check_items(opened: Opened, own: Mapping[str, Own], admitted: list[str]) -> int:
    """Choose the items of the self-check, which comes last, and keep the time for it."""
    clock, earlier = opened.clock, opened.earlier.notes.check_items
    each = float(processes.agreed(2 * sum(own[name].seconds or 0.0 for name in admitted)))
    fits = int(CHECK_SHARE * clock.budget / each) if each > 0 else CHECK_ITEMS
    items = max(1, min(CHECK_ITEMS, fits)) if earlier is None else earlier
    clock.later = clock.reserve + each * items
    return items


def _admission(ground: Ground, task: Task) -> Admission:
    values = [ground.value(ground.base[item]) for item in ground.items]
    if task.scorer == "text":
        admitted, reason = True, ""
    else:
        admitted, reason = admission(values, ground.chance, task.scorer in JUDGED_SCORERS)
    if admitted and len(values) < LEAST:
        admitted, reason = False, f"{len(values)} items; expected at least {LEAST} to draw from"
    companions = [c for item in ground.items if (c := ground.base[item].companion) is not None]
    mean = sum(companions) / len(companions) if companions else None
    return Admission(task.name, len(values), mean_interval(values), ground.chance, admitted, reason, mean)
