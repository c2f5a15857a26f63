"""The plan of a comparison: which items, in which rounds, what they cost, and what interval width they buy.

A plan is frozen in the record. A time budget first measures a pilot of every task on both models, then fixes the
numbers of items; where time is left at their end they are raised. A resumed run follows the last numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from catchment.capabilities import Task
from catchment.statistics import ABOVE_CHANCE, expected_half_width, mean_interval

PILOT = 64
"""Items per task in the first round: enough to see speed and admission, few enough to show a row soon."""
STAGES = (4, 16, PILOT)
"""Items per task at which a pilot within a budget looks at the clock."""
CHUNKS = (256, 64, 16, 4)
"""Items per task between two looks at the clock after the pilot; the largest that takes a small share of a budget."""
FORMAT_ITEMS = 200
FLIP_RATE = 0.05
HARDLY = 0.1
"""A change over a pilot below which a task is not measured on for the change alone."""


@dataclass(frozen=True)
class TaskPlan:
    """Items of one task: ``items`` of ``available`` under the default format, ``format_items`` under the others;
    ``pilot`` were measured when the numbers were fixed, and ``chunk`` are measured between two looks at the clock."""

    task: str
    available: int
    pilot: int
    items: int
    format_items: int = 0
    tokens: float = 0.0
    seconds: float | None = None
    half_width: float = 0.0
    chunk: int = CHUNKS[0]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        speed: Tokens per second that the base reads.
        frozen: The numbers of items are final.
        doubled: Mean half-width that twice the budget would buy.
        text: Bits per byte are measured.
        text_items, prompt_items: Passages and unlabelled prompts that were reached; all where ``None``.
        cut: The budget ended before the planned items did.
        room_items: Items per point of the room, once they are known.
        room_done: Nothing more is measured for it.
        recover: Of ``--recover`` within a budget: items per task to choose on and to judge on, and candidates.
    """

    tasks: tuple[TaskPlan, ...]
    budget: float | None
    batch_tokens: int
    speed: float | None = None
    frozen: bool = False
    half_width: float = 0.0
    doubled: float | None = None
    text: bool = True
    text_items: int | None = None
    prompt_items: int | None = None
    cut: bool = False
    room_items: int | None = None
    room_done: bool = False
    recover: tuple[int, int, int] | None = None

    def of(self, name: str) -> TaskPlan:
        return next(t for t in self.tasks if t.task == name)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        content: dict[str, Any] = json.loads(text)
        tasks = tuple(TaskPlan(**t) for t in content.pop("tasks"))
        recover = content.pop("recover", None)
        return Plan(tasks=tasks, recover=None if recover is None else tuple(recover), **content)

    def with_tasks(self, **changes: Mapping[str, Any]) -> Plan:
        """The plan with fields of its tasks replaced: ``items={"recall": 4}``."""
        tasks = []
        for t in self.tasks:
            own = {name: values[t.task] for name, values in changes.items() if t.task in values}
            tasks.append(dataclasses.replace(t, **own))
        return dataclasses.replace(self, tasks=tuple(tasks))

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Tasks that get no item."""
        return tuple(t.task for t in self.tasks if t.items < 1)

    def sentence(self) -> str:
        """What the plan buys, in words."""
        total, missing = sum(t.items for t in self.tasks), self.unmeasured
        text = f"{total:,} items over {len(self.tasks) - len(missing)} tasks; "
        text += f"intervals of about ±{100 * self.half_width:.1f} points at {100 * FLIP_RATE:.0f}% flips"
        if missing:
            text += f"; no time for {', '.join(missing)}"
        if self.budget is not None and self.doubled is not None:
            if all(t.items >= t.available for t in self.tasks):
                return f"{text}; all items fit into the budget"
            text += f"; twice the budget would buy ±{100 * self.doubled:.1f}"
        return text


def first_plan(
    tasks: Sequence[Task],
    *,
    limit: int | None,
    formats: int,
    budget: float | None,
    batch_tokens: int,
    tokens: dict[str, float],
) -> Plan:
    """The plan before anything is measured. Without a budget it is final.

    Args:
        tokens: estimated tokens per item of each task.
    """
    rows = []
    for task in tasks:
        available = len(task.items) if limit is None else min(limit, len(task.items))
        others = min(formats, len(task.formats)) - 1 if task.scorer not in ("text", "agreement", "classify") else 0
        few = min(available, FORMAT_ITEMS) if others > 0 else 0
        rows.append(TaskPlan(task.name, available, min(PILOT, available), available, few, tokens.get(task.name, 0.0)))
    plan = Plan(tuple(rows), budget, batch_tokens)
    return plan if budget is not None else freeze(plan)


def allocate(plan: Plan, costs: dict[str, float], left: float, closed: Set[str], others: int) -> Plan:
    """Choose the items of every task for the seconds that are left, and freeze.

    All open tasks get the same number of items as far as they have them (equal widths), at the measured cost of an
    item on both models; prompt formats get a quarter of it, at most FORMAT_ITEMS. A task without any item is planned
    with one at least while there is time, so that it is tried.

    Args:
        costs: seconds per item, both models together.
        left: seconds that may still be spent.
        closed: tasks that get no more items: the base is at chance and the tuned model shows neither a gain nor a loss.
        others: prompt formats beside the default.
    """
    final = _fill(plan, costs, left, closed, others)
    double = _fill(plan, costs, left + (plan.budget or 0.0), closed, others)
    return dataclasses.replace(freeze(final), doubled=freeze(double).half_width)


def _fill(plan: Plan, costs: dict[str, float], left: float, closed: Set[str], others: int) -> Plan:
    """Equal numbers for all; where they end below a pilot, the dearest task stays there and the others go on, so that
    one task of long answers does not keep all of them from their items."""
    levels = dict.fromkeys((t.task for t in plan.tasks), 0)
    rising = sorted(plan.tasks, key=lambda t: costs.get(t.task, 0.0))
    level = 0
    while rising and level < PILOT:
        level = _level(plan, levels, {t.task for t in rising}, costs, left, closed, others)
        levels |= {t.task: level for t in rising}
        rising.pop()
    least = 1 if left > 0 else 0
    tasks = tuple(
        dataclasses.replace(
            t,
            items=max(_items(t, levels[t.task], closed), min(least, t.available)),
            format_items=_format_items(t, levels[t.task], closed),
            seconds=round(_cost(t, levels[t.task], costs, closed, others), 1),
        )
        for t in plan.tasks
    )
    return dataclasses.replace(plan, tasks=tasks)


def _level(
    plan: Plan, levels: dict[str, int], rising: set[str], costs: dict[str, float], left: float, closed: Set[str],
    others: int,
) -> int:  # fmt: skip
    """The most items that every rising task can have, the others at their levels."""

    def seconds(n: int) -> float:
        return sum(_cost(t, n if t.task in rising else levels[t.task], costs, closed, others) for t in plan.tasks)

    low, high = 0, max(t.available for t in plan.tasks if t.task in rising)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= left else (low, middle - 1)
    return low


def _items(t: TaskPlan, n: int, closed: Set[str]) -> int:
    return t.pilot if t.task in closed else max(t.pilot, min(n, t.available))


def _format_items(t: TaskPlan, n: int, closed: Set[str]) -> int:
    few = (n - PILOT) // 4
    return 0 if t.task in closed or few < 16 else min(t.format_items, few)


def _cost(t: TaskPlan, n: int, costs: dict[str, float], closed: Set[str], others: int) -> float:
    more = _items(t, n, closed) - t.pilot
    return costs.get(t.task, 0.0) * (more + others * _format_items(t, n, closed))


def hopeless(base: Sequence[float], chance: float, change: float) -> bool:
    """Whether more items of a task would say nothing, as far as a pilot shows: the base is not above chance, and surely
    not far enough above it to keep anything, and nothing points to a gain or a drop."""
    own = mean_interval(base)
    return own.low <= chance and own.high < chance + ABOVE_CHANCE and abs(change) < HARDLY


def freeze(plan: Plan) -> Plan:
    """Fix the numbers of items and state the half-widths they buy; their mean is over tasks that have any."""
    tasks = tuple(
        dataclasses.replace(t, half_width=round(expected_half_width(t.items, FLIP_RATE), 4) if t.items else 1.0)
        for t in plan.tasks
    )
    widths = [t.half_width for t in tasks if t.items] or [1.0]
    return dataclasses.replace(plan, tasks=tasks, frozen=True, half_width=round(sum(widths) / len(widths), 4))


def edges(t: TaskPlan, budgeted: bool) -> list[int]:
    """Where the rounds of a task begin and end. Fixed places, so that comparisons that share rows share batches too."""
    places = {0, PILOT, *range(PILOT, t.items, t.chunk)}
    if budgeted:
        places |= {*(stage for stage in STAGES if stage >= t.chunk), *range(t.chunk, PILOT, t.chunk)}
    return [*sorted(p for p in places if p < t.items), t.items]
