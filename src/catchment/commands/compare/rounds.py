"""Planning and measuring: a first plan, a pilot, the frozen plan, rounds over all tasks, prompt formats."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

from catchment.capabilities import AllTooLongError, Task, sample, settle_path
from catchment.commands.compare.allocation import PILOT, STAGES, Plan, allocate, edges, first_plan, freeze, hopeless
from catchment.commands.compare.job import Job
from catchment.commands.compare.prices import LITTLE_MORE, Load, Prices, load_of, time_models
from catchment.errors import InputError
from catchment.measuring import OutOfTimeError, batch_tokens, fill
from catchment.runs import write_atomic

PILOT_SHARE = 1 / 3
"""Of the time left that the pilot may take."""
ROOM_SHARE = 0.3
"""Of the time left after the pilot that is kept for the room."""
MOST_ROOM, LEAST_ROOM = 256, 32
"""Items per point of a room."""
RAY_POINTS = 6
"""Points of a room, as far as plans go."""
RECOVER_SHARE = 0.4
"""Of the time left after the pilot that is kept for ``--recover``."""
CHEAP = 0.2
"""Of the time left, over all tasks: what takes no more is measured first."""
REFINED, WORTH = 3, 0.1
"""How often the numbers of items are raised at most, and the share of the budget that must be left for it."""


@dataclasses.dataclass
class Measuring:
    """What is known while a plan is made and followed.

    Attributes:
        prices: Of items; ``None`` where a frozen plan is followed or there is no budget.
        reached: Items of each task that were measured on both models, in the seeded order.
        end: Seconds from the start at which items have to be done.
        closed: Tasks that get no more items: the base cannot do them, and neither a gain nor a loss shows.
    """

    prices: Prices | None = None
    reached: dict[str, int] = dataclasses.field(default_factory=dict)
    end: float = 0.0
    closed: set[str] = dataclasses.field(default_factory=set)


def open_plan(job: Job) -> Measuring:
    """Take up the frozen plan of OUT, or make a first one: final without a budget; with one from the speed of both
    models, which is timed on a few tokens, and said at once."""
    kept = _frozen_plan(job)
    if kept is not None:
        job.plan, job.clock.resumed = kept, True
        return Measuring()
    loads = first(job)
    if job.plan.budget is None:
        return Measuring()
    prices = _timed(job, loads)
    job.plan = dataclasses.replace(job.plan, batch_tokens=prices.batch_tokens, speed=1 / prices.paces[0].read)
    state = Measuring(prices)
    job.progress.plan(_allocated(job, state, job.clock.left).sentence())
    return state


def _timed(job: Job, loads: dict[str, Load]) -> Prices:
    assert job.plan.budget is not None
    job.progress.status("timing both models")
    _ = job.tuned.loaded
    try:
        return time_models(job, loads, job.plan.budget)
    except OutOfTimeError:
        raise too_short(job, None) from None


def too_short(job: Job, prices: Prices | None) -> InputError:
    """What is said where a budget ended before anything was measured."""
    seconds = job.clock.elapsed
    few = sum(prices.seconds(t.task, min(STAGES[0], t.available)) for t in job.plan.tasks) if prices else seconds
    return InputError(
        f"--budget {job.settings.budget}: it ended before the first item of any task was measured on both models, "
        f"{seconds:,.0f} s after the start, reading the models included; expected about "
        f"{2 * (seconds + few):,.0f} s or more."
    )


def settle(job: Job, state: Measuring) -> None:
    """Fix the numbers of items for the time that is left, and freeze the plan."""
    if job.plan.budget is not None and not job.resumed:
        if job.settings.recover is not None:
            job.clock.later = RECOVER_SHARE * max(job.clock.left, 0.0)
        room = ROOM_SHARE * job.clock.left
        wanted = job.settings.room and not job.base.classifies and room_items(job, state, job.tasks, room) > 0
        left = max(job.clock.left - (room if wanted else 0.0), 0.0)
        state.end = job.clock.elapsed + left
        job.plan = _allocated(job, state, left)
        job.progress.plan(job.plan.sentence())
    save_plan(job)


def room_items(job: Job, state: Measuring, tasks: list[Task], seconds: float) -> int:
    """Items per point of the room of these tasks that so many seconds pay for; 0 where they are too few."""
    budget, prices = job.plan.budget, state.prices
    if budget is None:
        return MOST_ROOM
    if prices is not None:
        each = RAY_POINTS * sum(prices.each(job.plan.of(task.name), budget) for task in tasks) / 2
    else:
        each = RAY_POINTS * sum(job.plan.of(task.name).tokens for task in tasks) / (job.plan.speed or 1.0)
    items = int(0.8 * seconds / max(each, 1e-9))
    return 0 if items < LEAST_ROOM // 2 else max(LEAST_ROOM, min(MOST_ROOM, items))


def _allocated(job: Job, state: Measuring, left: float) -> Plan:
    """The plan with the items that so many seconds buy."""
    prices, budget = state.prices, job.plan.budget
    assert prices is not None
    assert budget is not None
    plan = job.plan.with_tasks(
        pilot={t.task: state.reached.get(t.task, 0) for t in job.plan.tasks},
        chunk={t.task: prices.chunk(t, budget) for t in job.plan.tasks},
    )
    costs = {t.task: prices.each(t, budget) for t in plan.tasks}
    return allocate(plan, costs, 0.9 * max(left, 0.0), state.closed, job.settings.formats - 1)


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


def first(job: Job) -> dict[str, Load]:
    """The plan before anything is measured, and what an item of each task asks for."""
    s = job.settings
    loads, tokens = {}, {}
    for task in job.tasks:
        loads[task.name], tokens[task.name] = load_of(job.base, task, s.seed)
    batch = batch_tokens(job.base, s.batch_tokens)
    job.plan = first_plan(
        job.tasks, limit=s.limit, formats=s.formats, budget=s.seconds, batch_tokens=batch, tokens=tokens
    )
    return loads


def pilot(job: Job, state: Measuring) -> None:
    """A few items of every task before many of any, on both models, in a third of the time left. A plan that is frozen
    or has no budget needs none."""
    prices = state.prices
    if prices is None:
        return
    job.progress.total(sum(2 * t.tokens * min(PILOT, t.available) for t in job.plan.tasks))
    _settle_paths(job)
    with job.clock.within(PILOT_SHARE * job.clock.left):
        for stage in STAGES[_first_stage(job, prices) :]:
            if state.reached and _stage_seconds(job, state, stage) > job.clock.left:
                break
            if not _stage(job, state, stage):
                break
    for task in job.measured:
        result = job.result(task)
        whole = state.reached[task.name] >= min(PILOT, job.plan.of(task.name).available)
        scores = [row.score for row in job.table(job.base, task, task.formats[0].name).values()]
        if whole and hopeless(scores, result.chance, result.tuned - result.base):
            state.closed.add(task.name)


def _settle_paths(job: Job) -> None:
    """Let both engines choose their path before anything is timed with them: the check takes some passes, once."""
    if job.base.classifies:
        return
    task = job.tasks[0]
    with suppress(OutOfTimeError):
        for side in job.sides:
            few = sample(task.items, min(STAGES[0], len(task.items)), job.settings.seed)
            with suppress(AllTooLongError):
                prepared = side.prepare(task, task.formats[0].name, few)
                settle_path(side.engine(job.plan.batch_tokens), prepared)


def _first_stage(job: Job, prices: Prices) -> int:
    """The largest stage that costs little, or hardly more than the first, if the prices are right: smaller ones before
    it would only make smaller batches."""

    def seconds(number: int) -> float:
        return sum(prices.at_most(t.task, min(STAGES[number], t.available)) for t in job.plan.tasks)

    most = max(job.clock.left / 3, min(LITTLE_MORE * seconds(0), job.clock.left))
    return max((number for number in range(len(STAGES)) if seconds(number) <= most), default=0)


def _stage_seconds(job: Job, state: Measuring, stage: int) -> float:
    """Of the tasks that were begun."""
    assert state.prices is not None
    more = {name: min(stage, job.plan.of(name).available) - n for name, n in state.reached.items()}
    return sum(state.prices.seconds(name, n) for name, n in more.items() if n > 0)


def _stage(job: Job, state: Measuring, stage: int) -> bool:
    """Every task up to so many items, the cheapest first. ``False`` where the time of the pilot ended."""
    prices = state.prices
    assert prices is not None
    for task in sorted(job.tasks, key=lambda t: prices.seconds(t.name, stage)):
        start, stop = state.reached.get(task.name, 0), min(stage, job.plan.of(task.name).available)
        if stop <= start or prices.seconds(task.name, stop - start) > job.clock.left:
            continue  # what does not fit into the pilot may fit into what comes after it
        if not _measure(job, state, task, start, stop):
            return False
        if task in job.measured:
            job.progress.row(job.result(task), final=False)
    return True


def estimate(job: Job) -> None:
    """The plan that a budget would buy at this machine's speed, without a pilot."""
    state = open_plan(job)
    if not job.plan.frozen:
        job.plan = _allocated(job, state, job.clock.left)


def _measure(job: Job, state: Measuring, task: Task, start: int, stop: int, form: str | None = None) -> bool:
    """Items ``start`` to ``stop`` of the seeded order on both models. ``False``, and none of them counts, where the
    clock ended before: those that were done are short ones, and no sample."""
    form = form or task.formats[0].name
    before = {item.id for item in sample(task.items, start, job.settings.seed)} if start else set()
    items = [i for i in sample(task.items, stop, job.settings.seed) if i.id not in before]
    parts, began = [], job.clock.elapsed
    try:
        for side in job.sides:
            job.progress.status(f"{task.name} · {form} · {side.role}")
            parts.append(fill(side, job.store, task, form, items, job.plan.batch_tokens, job.progress))
    except OutOfTimeError:
        if state.prices is not None:
            begun = [len(items) if number <= len(parts) else 0 for number in range(2)]
            state.prices.fell_short(task.name, begun, job.clock.elapsed - began)
        return False
    for side, part in zip(job.sides, parts, strict=True):
        job.add(side, task, form, part.rows)
    if state.prices is not None:
        state.prices.learn(task.name, [part.fresh for part in parts], sum(part.seconds for part in parts))
    if form == task.formats[0].name:
        state.reached[task.name] = stop
    return True


def rounds(job: Job, state: Measuring) -> None:
    """The planned items, a chunk of every task at a time, until done or the budget is spent. Where time is left at
    their end, the numbers are raised."""
    job.progress.total(_tokens_left(job))
    for _ in range(1 + REFINED):
        if not _rounds(job, state):
            _cut(job, state)
        if not _raised(job, state):
            break
    for task in job.measured:
        job.progress.row(job.result(task), final=True)
    if not job.measured:
        (job.out / "plan.json").unlink(missing_ok=True)  # a plan of no item is not to be followed
        raise too_short(job, state.prices)


def _rounds(job: Job, state: Measuring) -> bool:
    """Whether every planned item was reached. Few items of every task come before many of any, and of as many the
    cheaper ones first; but tasks that take hardly any time come before all. A task whose items do not fit is left, and
    the others go on."""
    steps = []
    for number, task in enumerate(job.tasks):
        pairs = list(pairwise(edges(job.plan.of(task.name), job.plan.budget is not None)))
        prices = [state.prices.seconds(task.name, stop - start) if state.prices else 0.0 for start, stop in pairs]
        dear = sum(prices) > CHEAP * job.clock.left / len(job.tasks)
        steps += [(dear, stop, price, number, start) for (start, stop), price in zip(pairs, prices, strict=True)]
    left: set[str] = set()
    for _, stop, _, number, start in sorted(steps):
        task = job.tasks[number]
        if task.name in left or stop <= state.reached.get(task.name, 0):
            continue
        if not _measure(job, state, task, max(start, state.reached.get(task.name, 0)), stop):
            left.add(task.name)
        elif job.table(job.base, task, task.formats[0].name):
            job.progress.row(job.result(task), final=stop == job.plan.of(task.name).items)
    return not left


def _raised(job: Job, state: Measuring) -> bool:
    """Whether the numbers of items were raised: items took less time than foretold."""
    budget = job.plan.budget
    if budget is None or job.resumed or job.plan.cut or state.end - job.clock.elapsed < WORTH * budget:
        return False
    plan = _allocated(job, state, state.end - job.clock.elapsed)
    pairs = zip(plan.tasks, job.plan.tasks, strict=True)
    if all(new.items < old.items + min(STAGES[0], max(old.items, 1)) for new, old in pairs):
        return False
    job.plan = plan
    save_plan(job)
    job.progress.plan(plan.sentence())
    job.progress.total(_tokens_left(job))
    return True


def _cut(job: Job, state: Measuring) -> None:
    """The budget ended before the planned items did: what was reached is the plan from now on."""
    reached = {t.task: state.reached.get(t.task, 0) for t in job.plan.tasks}
    job.plan = freeze(dataclasses.replace(job.plan.with_tasks(items=reached), cut=True))
    save_plan(job)


def _tokens_left(job: Job) -> float:
    total = 0.0
    for t in job.plan.tasks:
        task = next(task for task in job.tasks if task.name == t.task)
        done = len(job.table(job.base, task, task.formats[0].name))
        total += 2 * t.tokens * (max(t.items - done, 0) + (job.settings.formats - 1) * t.format_items)
    return total


def formats(job: Job, state: Measuring) -> None:
    """A few items under the other prompt formats; what the budget does not reach is taken out of the plan."""
    for task in job.tasks:
        count = job.plan.of(task.name).format_items
        if count and not _formats(job, state, task, count):
            job.plan = job.plan.with_tasks(format_items={task.name: 0})
            save_plan(job)


def _formats(job: Job, state: Measuring, task: Task, count: int) -> bool:
    """Whether every format of a task was measured; otherwise none counts."""
    forms = task.formats[1 : job.settings.formats]
    for form in forms:
        if not _measure(job, state, task, 0, count, form.name):
            for side in job.sides:
                for other in forms:
                    job.rows.pop((side.role, task.name, other.name), None)
            return False
    return True


def said(job: Job) -> list[str]:
    """What a reader must know of a plan that the budget cut."""
    lines = [f"{name}: not measured: the budget ended before its first item" for name in unmeasured(job)]
    if job.plan.cut:
        lines.append("the budget ended before the planned items did: fewer items than planned were measured")
    return lines


def unmeasured(job: Job) -> list[str]:
    """Tasks without a row of both models."""
    return [task.name for task in job.tasks if task not in job.measured]


def late(job: Job) -> bool:
    """Whether the budget is spent."""
    return job.clock.late
