"""The plan of a comparison: which items, in which rounds, what they cost, and what interval width they buy.

A plan is frozen in the record. A time budget first measures a pilot of every task on both models, then fixes the
number of items once; a resumed run follows it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from catchment.capabilities import Task
from catchment.statistics import expected_half_width

PILOT = 64
"""Items per task in the first round: enough to see speed and admission, few enough to show a row soon."""
FORMAT_ITEMS = 200
FLIP_RATE = 0.05


@dataclass(frozen=True)
class TaskPlan:
    """Items of one task: ``items`` of ``available`` under the default format, ``format_items`` under the others."""

    task: str
    available: int
    pilot: int
    items: int
    format_items: int = 0
    tokens: float = 0.0
    seconds: float | None = None
    half_width: float = 0.0


@dataclass(frozen=True)
class Plan:
    """``frozen``: the numbers of items are final. ``doubled``: mean half-width that twice the budget would buy.
    ``text``: bits per byte are measured. ``cut``: the budget ended before the planned items did. ``room_items``: items
    per point of the room, once they are known; ``room_done``: nothing more is measured for it."""

    tasks: tuple[TaskPlan, ...]
    budget: float | None
    batch_tokens: int
    speed: float | None = None
    frozen: bool = False
    half_width: float = 0.0
    doubled: float | None = None
    text: bool = True
    cut: bool = False
    room_items: int | None = None
    room_done: bool = False

    def of(self, name: str) -> TaskPlan:
        return next(t for t in self.tasks if t.task == name)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        content: dict[str, Any] = json.loads(text)
        tasks = tuple(TaskPlan(**t) for t in content.pop("tasks"))
        return Plan(tasks=tasks, **content)

    def sentence(self) -> str:
        """What the plan buys, in words."""
        total = sum(t.items for t in self.tasks)
        text = f"{total:,} items over {len(self.tasks)} tasks; intervals of about ±{100 * self.half_width:.1f} points"
        text += f" at {100 * FLIP_RATE:.0f}% flips"
        if self.budget is not None and self.doubled is not None:
            if all(t.items >= t.available for t in self.tasks):
                return f"{text}; all items fit into the budget"
            text += f"; twice the budget would buy ±{100 * self.doubled:.1f}"
        return text


def first_plan(
    tasks: list[Task],
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


def pilot_size(plan: Plan, speed: float) -> Plan:
    """Shrink the pilot where even that would take more than a third of the budget at the speed measured."""
    assert plan.budget is not None
    cost = sum(2 * t.tokens * t.pilot for t in plan.tasks) / speed
    allowed = plan.budget / 3
    if cost <= allowed:
        return dataclasses.replace(plan, speed=speed)
    share = allowed / cost
    tasks = tuple(dataclasses.replace(t, pilot=max(min(16, t.available), int(t.pilot * share))) for t in plan.tasks)
    return dataclasses.replace(plan, tasks=tasks, speed=speed)


def allocate(plan: Plan, costs: dict[str, float], left: float, closed: set[str], others: int) -> Plan:
    """Choose the items of every task for the seconds that are left, and freeze.

    All open tasks get the same number of items as far as they have them (equal widths), at the measured cost of an
    item on both models; prompt formats get a quarter of it, at most FORMAT_ITEMS.

    Args:
        costs: seconds per item, both models together, as the pilot measured them.
        left: seconds that may still be spent.
        closed: tasks that get no more items: the base is at chance and the tuned model shows no gain.
        others: prompt formats beside the default.
    """
    final = _fill(plan, costs, left, closed, others)
    double = _fill(plan, costs, left + (plan.budget or 0.0), closed, others)
    return dataclasses.replace(freeze(final), doubled=freeze(double).half_width)


def _fill(plan: Plan, costs: dict[str, float], left: float, closed: set[str], others: int) -> Plan:
    def seconds(n: int) -> float:
        return sum(_cost(t, n, costs, closed, others) for t in plan.tasks)

    low, high = 0, max(t.available for t in plan.tasks)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= left else (low, middle - 1)
    tasks = tuple(
        dataclasses.replace(
            t,
            items=_items(t, low, closed),
            format_items=_format_items(t, low, closed),
            seconds=round(_cost(t, low, costs, closed, others), 1),
        )
        for t in plan.tasks
    )
    return dataclasses.replace(plan, tasks=tasks)


def _items(t: TaskPlan, n: int, closed: set[str]) -> int:
    return t.pilot if t.task in closed else max(t.pilot, min(n, t.available))


def _format_items(t: TaskPlan, n: int, closed: set[str]) -> int:
    few = (n - t.pilot) // 4
    return 0 if t.task in closed or few < 16 else min(t.format_items, few)


def _cost(t: TaskPlan, n: int, costs: dict[str, float], closed: set[str], others: int) -> float:
    more = _items(t, n, closed) - t.pilot
    return costs.get(t.task, 0.0) * (more + others * _format_items(t, n, closed))


def freeze(plan: Plan) -> Plan:
    """Fix the numbers of items and state the half-widths they buy."""
    tasks = tuple(
        dataclasses.replace(t, half_width=round(expected_half_width(t.items, FLIP_RATE), 4)) for t in plan.tasks
    )
    width = sum(t.half_width for t in tasks) / len(tasks)
    return dataclasses.replace(plan, tasks=tasks, frozen=True, half_width=round(width, 4))
