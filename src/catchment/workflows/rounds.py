"""Planning and measuring: a pilot, the frozen plan, rounds over all tasks, prompt formats, and the clock."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from catchment.capabilities import Task, measure_speed, sample
from catchment.runs import write_atomic
from catchment.workflows.job import Job, batch_tokens
from catchment.workflows.measure import fill
from catchment.workflows.plan import PILOT, Plan, allocate, first_plan, freeze, pilot_size

CHUNK = 256
"""Items per task between two looks at the clock."""
ROOM_SHARE = 0.3
"""Of the time left after the pilot that is kept for the room."""
RESERVE = 6.0
"""Seconds of a budget that are kept for drift, record and page."""


def settle_plan(job: Job) -> None:
    """Take up the frozen plan of OUT, or make one: at once without a budget, after a pilot with one."""
    kept = _frozen_plan(job)
    if kept is not None:
        job.plan, job.resumed = kept, True
        return
    first(job)
    if not job.plan.frozen:
        _pilot(job)
    save_plan(job)


def _ask(job: Job) -> dict[str, Any]:
    """What a plan answers; another question gets another plan."""
    s = job.settings
    return {
        "tasks": [[t.name, t.hash()] for t in job.tasks], "limit": s.limit, "budget": s.budget, "formats": s.formats,
        "room": s.room,
        "batch_tokens": s.batch_tokens,
    }  # fmt: skip


def _frozen_plan(job: Job) -> Plan | None:
    path = job.out / "plan.json"
    if job.settings.out is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan = Plan.from_json(json.dumps(content["plan"]))
    except (ValueError, KeyError, TypeError):
        return None
    return plan if content["ask"] == _ask(job) and plan.frozen else None


def save_plan(job: Job) -> None:
    """Write the plan to OUT, so that a run that is killed goes on with it."""
    if job.settings.out is not None:
        content = {"ask": _ask(job), "plan": json.loads(job.plan.to_json())}
        write_atomic(job.out / "plan.json", json.dumps(content, indent=1))


def first(job: Job) -> None:
    """The plan before anything is measured."""
    s = job.settings
    tokens: dict[str, float] = {}
    for task in job.tasks:
        if task.scorer != "classify":
            few = sample(task.items, min(32, len(task.items)), s.seed)
            tokens[task.name] = job.base.prepare(task, task.formats[0].name, few).tokens / len(few)
    batch = batch_tokens(job.base, s.batch_tokens)
    job.plan = first_plan(
        job.tasks, limit=s.limit, formats=s.formats, budget=s.seconds, batch_tokens=batch, tokens=tokens
    )


def _pilot(job: Job) -> None:
    """Measure the machine and a few items of every task on both models, then fix the numbers of items."""
    s = job.settings
    assert s.seconds is not None
    job.progress.status("measuring this machine")
    _ = job.tuned.loaded
    speed = _speed(job)
    job.plan = pilot_size(job.plan, speed)
    job.progress.total(sum(2 * t.tokens * t.pilot for t in job.plan.tasks))
    costs: dict[str, float] = {}
    closed: set[str] = set()
    for task in sorted(job.tasks, key=lambda t: job.plan.of(t.name).tokens):
        planned = job.plan.of(task.name)
        # Rows that were in the store say nothing of what the next ones cost.
        costs[task.name] = _measure(job, task, 0, planned.pilot) or 2 * planned.tokens / speed
        result = job.result(task)
        job.progress.row(result, final=False)
        if not result.can_lose and result.tuned - result.base < 0.1:
            closed.add(task.name)
    _allocate(job, costs, closed, speed)
    job.progress.status(job.plan.sentence())


def estimate(job: Job) -> None:
    """The plan that a budget would buy at this machine's speed, without a pilot."""
    first(job)
    if not job.plan.frozen:
        speed = _speed(job)
        job.plan = pilot_size(job.plan, speed)
        _allocate(job, {t.task: 2 * t.tokens / speed for t in job.plan.tasks}, set(), speed)


def _speed(job: Job) -> float:
    """Tokens per second; a classifier's items are few and only the pilot says what they cost."""
    return 1.0 if job.base.classifies else measure_speed(job.base.engine(job.plan.batch_tokens)).tokens_per_second


def _allocate(job: Job, costs: dict[str, float], closed: set[str], speed: float) -> None:
    assert job.plan.budget is not None
    left = job.plan.budget - job.elapsed - RESERVE - _extra_seconds(job, speed)
    if job.settings.room and not job.base.classifies:
        left *= 1 - ROOM_SHARE
    job.plan = allocate(job.plan, costs, max(left, 0.0) * 0.9, closed, job.settings.formats - 1)


def _extra_seconds(job: Job, speed: float) -> float:
    """Seconds that text and unlabelled prompts will take."""
    seconds = 0.0
    if job.text is not None:
        seconds += 2 * job.base.prepare(job.text, job.text.formats[0].name, job.text.items).tokens / speed
    if job.prompts is not None:
        seconds += 3 * 150 * len(job.prompts.items) / speed
    return 1.3 * seconds


def _measure(job: Job, task: Task, start: int, stop: int, form: str | None = None) -> float:
    """Items ``start`` to ``stop`` of the seeded order on both models; returns seconds per item on both."""
    form = form or task.formats[0].name
    before = {item.id for item in sample(task.items, start, job.settings.seed)} if start else set()
    items = [i for i in sample(task.items, stop, job.settings.seed) if i.id not in before]
    cost = 0.0
    for side in job.sides:
        job.progress.status(f"{task.name} · {form} · {side.role}")
        measured = fill(side, job.store, task, form, items, job.plan.batch_tokens, job.progress)
        job.table(side, task, form).update(measured.rows)
        cost += measured.seconds / max(measured.fresh, 1)
    return cost


def rounds(job: Job) -> None:
    """The planned items, a chunk of every task at a time, until done or the budget is spent."""
    plans = {t.task: t for t in job.plan.tasks}
    job.progress.total(_tokens_left(job))
    edges = {name: _edges(t.pilot, t.items) for name, t in plans.items()}
    reached: dict[str, int] = {}
    stopped = False
    for number in range(max(len(e) for e in edges.values()) - 1):
        for task in job.tasks:
            steps = edges[task.name]
            if number + 1 >= len(steps):
                continue
            if number > 0 and late(job):
                stopped = True
                break
            _measure(job, task, steps[number], steps[number + 1])
            reached[task.name] = steps[number + 1]
            job.progress.row(job.result(task), final=number + 2 == len(steps))
        if stopped:
            _cut(job, reached)
            break
    if job.plan.cut:
        job.warnings.append(
            "the machine was slower than when the plan was made: fewer items than planned were measured"
        )
    for task in job.tasks:
        job.progress.row(job.result(task), final=True)


def _edges(pilot: int, items: int) -> list[int]:
    """Where the rounds begin and end. Fixed places, so that comparisons that share rows share batches too."""
    places = {0, pilot, PILOT, *range(PILOT, items, CHUNK)}
    return [*sorted(p for p in places if p < items), items]


def _cut(job: Job, items: dict[str, int]) -> None:
    """The machine became slower than planned: stop here, say so, and make what was reached the plan."""
    reached = tuple(dataclasses.replace(t, items=items[t.task], format_items=0) for t in job.plan.tasks)
    job.plan = freeze(dataclasses.replace(job.plan, tasks=reached, text=False, cut=True))
    save_plan(job)


def _tokens_left(job: Job) -> float:
    total = 0.0
    for t in job.plan.tasks:
        task = _task(job, t.task)
        done = len(job.table(job.base, task, task.formats[0].name))
        total += 2 * t.tokens * (max(t.items - done, 0) + (job.settings.formats - 1) * t.format_items)
    return total


def _task(job: Job, name: str) -> Task:
    return next(t for t in job.tasks if t.name == name)


def formats(job: Job) -> None:
    """A few items under the other prompt formats; what the budget does not reach is taken out of the plan."""
    for task in job.tasks:
        if late(job):
            plans = [dataclasses.replace(t, format_items=0) if t.task == task.name else t for t in job.plan.tasks]
            job.plan = dataclasses.replace(job.plan, tasks=tuple(plans))
            save_plan(job)
        count = job.plan.of(task.name).format_items
        for form in task.formats[1 : job.settings.formats]:
            if count:
                _measure(job, task, 0, count, form.name)
    if late(job) and job.plan.text:
        job.plan = dataclasses.replace(job.plan, text=False)
        save_plan(job)


def late(job: Job) -> bool:
    """Whether the budget is spent. Never in a run that takes up a frozen plan: that is finished whatever it takes."""
    return job.plan.budget is not None and not job.resumed and job.elapsed > job.plan.budget - RESERVE
