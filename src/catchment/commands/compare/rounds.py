"""Measuring by the plan: its numbers fixed, rounds over all tasks, prompt formats."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

from catchment.capabilities import Task
from catchment.commands.compare.allocation import STAGES, edges, freeze
from catchment.commands.compare.items import measure_items
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.pilot import allocated, too_short
from catchment.commands.compare.results import result_of
from catchment.commands.compare.room import ROOM_SHARE, room_items
from catchment.commands.compare.state import State, accept, forget_plan

CHEAP = 0.2
"""Of the time left, over all tasks: what takes no more is measured first."""
REFINED, WORTH = 3, 0.1
"""How often the numbers of items are raised at most, and the share of the budget that must be left for it."""


def settle(pair: Pair, state: State) -> State:
    """Fix the numbers of items for the time that is left, and freeze the plan."""
    if state.plan.budget is None or pair.clock.resumed:
        return accept(pair, state, state.plan)
    room = ROOM_SHARE * pair.clock.left
    wanted = pair.settings.room and not pair.base.classifies and room_items(state, pair.tasks, room) > 0
    left = max(pair.clock.left - (room if wanted else 0.0), 0.0)
    state = dataclasses.replace(state, end=pair.clock.elapsed + left)
    plan = allocated(pair, state, left)
    pair.progress.plan(plan.sentence())
    return accept(pair, state, plan)


def measure_rounds(pair: Pair, state: State) -> State:
    """The planned items, a chunk of every task at a time, until done or the budget is spent. Where time is left at
    their end, the numbers are raised.

    Raises:
        InputError: The budget ended before any task had a row of both models.
    """
    pair.progress.total(_tokens_left(pair, state))
    for _ in range(1 + REFINED):
        state, whole = _round(pair, state)
        if not whole:
            state = _cut(pair, state)
        raised = _raised(pair, state)
        if raised is None:
            break
        state = raised
    measured = state.tables.measured(pair.tasks)
    for task in measured:
        pair.progress.row(result_of(pair, state, task), final=True)
    if not measured:
        forget_plan(pair)
        raise too_short(pair, state.plan, state.prices)
    return state


def _round(pair: Pair, state: State) -> tuple[State, bool]:
    """Every planned item, and whether all were reached. A task whose items do not fit is left, and the others go on."""
    left: set[str] = set()
    for task, start, stop in _steps(pair, state):
        reached = state.reached.get(task.name, 0)
        if task.name in left or stop <= reached:
            continue
        state, whole = measure_items(pair, state, task, max(start, reached), stop)
        if not whole:
            left.add(task.name)
        elif state.tables.of("base", task):
            result = result_of(pair, state, task)
            pair.progress.row(result, final=stop == state.plan.of(task.name).items)
    return state, not left


def _steps(pair: Pair, state: State) -> list[tuple[Task, int, int]]:
    """The chunks of all tasks. Few items of every task come before many of any, and of as many the cheaper ones first;
    but tasks that take hardly any time come before all."""
    steps = []
    for number, task in enumerate(pair.tasks):
        chunks = list(pairwise(edges(state.plan.of(task.name), state.plan.budget is not None)))
        prices = [state.prices.seconds(task.name, stop - start) if state.prices else 0.0 for start, stop in chunks]
        dear = sum(prices) > CHEAP * pair.clock.left / len(pair.tasks)
        steps += [(dear, stop, price, number, start) for (start, stop), price in zip(chunks, prices, strict=True)]
    return [(pair.tasks[number], start, stop) for _, stop, _, number, start in sorted(steps)]


def _raised(pair: Pair, state: State) -> State | None:
    """The state with more items planned, where items took less time than foretold."""
    budget, left = state.plan.budget, state.end - pair.clock.elapsed
    if budget is None or pair.clock.resumed or state.plan.cut or left < WORTH * budget:
        return None
    plan = allocated(pair, state, left)
    tasks = zip(plan.tasks, state.plan.tasks, strict=True)
    if all(new.items < old.items + min(STAGES[0], max(old.items, 1)) for new, old in tasks):
        return None
    state = accept(pair, state, plan)
    pair.progress.plan(plan.sentence())
    pair.progress.total(_tokens_left(pair, state))
    return state


def _cut(pair: Pair, state: State) -> State:
    """The budget ended before the planned items did: what was reached is the plan from now on."""
    reached = {t.task: state.reached.get(t.task, 0) for t in state.plan.tasks}
    return accept(pair, state, freeze(dataclasses.replace(state.plan.with_tasks(items=reached), cut=True)))


def _tokens_left(pair: Pair, state: State) -> float:
    total, formats = 0.0, pair.settings.formats - 1
    for task in pair.tasks:
        planned = state.plan.of(task.name)
        left = max(planned.items - len(state.tables.of("base", task)), 0)
        total += 2 * planned.tokens * (left + formats * planned.format_items)
    return total


def measure_formats(pair: Pair, state: State) -> State:
    """A few items under the other prompt formats; what the budget does not reach is taken out of the plan."""
    for task in pair.tasks:
        count = state.plan.of(task.name).format_items
        if count:
            state, whole = _formats(pair, state, task, count)
            if not whole:
                state = accept(pair, state, state.plan.with_tasks(format_items={task.name: 0}))
    return state


def _formats(pair: Pair, state: State, task: Task, count: int) -> tuple[State, bool]:
    """Every format of a task, and whether all were measured; otherwise none counts."""
    forms = [form.name for form in task.formats[1 : pair.settings.formats]]
    for form in forms:
        state, whole = measure_items(pair, state, task, 0, count, form)
        if not whole:
            return dataclasses.replace(state, tables=state.tables.without(task, forms)), False
    return state, True
