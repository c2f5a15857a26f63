"""The first plan of a comparison, what items cost, and a pilot of every task within a budget."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from catchment.capabilities import AllTooLongError, Task, sample, settle_path
from catchment.commands.compare.allocation import PILOT, STAGES, Plan, allocate, first_plan, hopeless
from catchment.commands.compare.items import measure_items
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.prices import LITTLE_MORE, Load, Prices, load_of, time_models
from catchment.commands.compare.results import result_of
from catchment.commands.compare.state import State
from catchment.commands.compare.tables import Tables, item_order
from catchment.errors import InputError
from catchment.measuring import OutOfTimeError, batch_tokens

PILOT_SHARE = 1 / 3
"""Of the time left that the pilot may take."""


def begin(pair: Pair, frozen: Plan | None) -> State:
    """Take up a frozen plan, or make a first one: final without a budget; with one from the speed of both models,
    which is timed on a few tokens, and said at once."""
    tables = Tables({task.name: item_order(task, pair.settings.seed) for task in pair.tasks})
    if frozen is not None:
        return State(frozen, tables)
    plan, loads = _first(pair)
    if plan.budget is None:
        return State(plan, tables)
    prices = _timed(pair, plan, loads, plan.budget)
    plan = dataclasses.replace(plan, batch_tokens=prices.batch_tokens, speed=1 / prices.paces[0].read)
    state = State(plan, tables, prices)
    pair.progress.plan(allocated(pair, state, pair.clock.left).sentence())
    return state


def _first(pair: Pair) -> tuple[Plan, dict[str, Load]]:
    """The plan before anything is measured, and what an item of each task asks for."""
    s = pair.settings
    loads, tokens = {}, {}
    for task in pair.tasks:
        loads[task.name], tokens[task.name] = load_of(pair.base, task, s.seed)
    batch = batch_tokens(pair.base, s.batch_tokens)
    plan = first_plan(
        pair.tasks, limit=s.limit, formats=s.formats, budget=s.seconds, batch_tokens=batch, tokens=tokens
    )  # fmt: skip
    return plan, loads


def _timed(pair: Pair, plan: Plan, loads: dict[str, Load], budget: float) -> Prices:
    pair.progress.status("timing both models")
    _ = pair.tuned.loaded
    try:
        return time_models(pair, plan, loads, budget)
    except OutOfTimeError:
        raise too_short(pair, plan, None) from None


def too_short(pair: Pair, plan: Plan, prices: Prices | None) -> InputError:
    """What is said where a budget ended before anything was measured."""
    seconds = pair.clock.elapsed
    few = sum(prices.seconds(t.task, min(STAGES[0], t.available)) for t in plan.tasks) if prices else seconds
    return InputError(
        f"--budget {pair.settings.budget}: it ended before the first item of any task was measured on both models, "
        f"{seconds:,.0f} s after the start, reading the models included; expected about "
        f"{2 * (seconds + few):,.0f} s or more."
    )


def allocated(pair: Pair, state: State, left: float) -> Plan:
    """The plan with the items that so many seconds buy."""
    prices, budget = state.prices, state.plan.budget
    assert prices is not None
    assert budget is not None
    plan = state.plan.with_tasks(
        pilot={t.task: state.reached.get(t.task, 0) for t in state.plan.tasks},
        chunk={t.task: prices.chunk(t, budget) for t in state.plan.tasks},
    )
    costs = {t.task: prices.each(t, budget) for t in plan.tasks}
    return allocate(plan, costs, 0.9 * max(left, 0.0), state.closed, pair.settings.formats - 1)


def pilot(pair: Pair, state: State) -> State:
    """A few items of every task before many of any, on both models, in a third of the time left. A plan that is frozen
    or has no budget needs none."""
    prices = state.prices
    if prices is None:
        return state
    pair.progress.total(sum(2 * t.tokens * min(PILOT, t.available) for t in state.plan.tasks))
    _settle_paths(pair, state.plan)
    with pair.clock.within(PILOT_SHARE * pair.clock.left):
        for size in STAGES[_first_stage(state.plan, prices, pair.clock.left) :]:
            if state.reached and _stage_seconds(state, size) > pair.clock.left:
                break
            state, whole = _stage(pair, state, size)
            if not whole:
                break
    closed = [task.name for task in state.tables.measured(pair.tasks) if _is_hopeless(pair, state, task)]
    return dataclasses.replace(state, closed=frozenset(closed))


def _is_hopeless(pair: Pair, state: State, task: Task) -> bool:
    if state.reached[task.name] < min(PILOT, state.plan.of(task.name).available):
        return False
    result = result_of(pair, state, task)
    scores = [row.score for row in state.tables.of("base", task).values()]
    return hopeless(scores, result.chance, result.tuned - result.base)


def _settle_paths(pair: Pair, plan: Plan) -> None:
    """Let both engines choose their path before anything is timed with them: the check takes some passes, once."""
    if pair.base.classifies:
        return
    task = pair.tasks[0]
    with suppress(OutOfTimeError):
        for subject in pair.subjects:
            few = sample(task.items, min(STAGES[0], len(task.items)), pair.settings.seed)
            with suppress(AllTooLongError):
                prepared = subject.prepare(task, task.formats[0].name, few)
                settle_path(subject.engine(plan.batch_tokens), prepared)


def _first_stage(plan: Plan, prices: Prices, left: float) -> int:
    """The largest stage that costs little, or hardly more than the first, if the prices are right: smaller ones before
    it would only make smaller batches."""

    def seconds(number: int) -> float:
        return sum(prices.at_most(t.task, min(STAGES[number], t.available)) for t in plan.tasks)

    most = max(left / 3, min(LITTLE_MORE * seconds(0), left))
    return max((number for number in range(len(STAGES)) if seconds(number) <= most), default=0)


def _stage_seconds(state: State, size: int) -> float:
    """Of the tasks that were begun."""
    assert state.prices is not None
    more = {name: min(size, state.plan.of(name).available) - n for name, n in state.reached.items()}
    return sum(state.prices.seconds(name, n) for name, n in more.items() if n > 0)


def _stage(pair: Pair, state: State, size: int) -> tuple[State, bool]:
    """Every task up to so many items, the cheapest first; and whether the time of the pilot was enough."""
    prices = state.prices
    assert prices is not None
    for task in sorted(pair.tasks, key=lambda t: prices.seconds(t.name, size)):
        start, stop = state.reached.get(task.name, 0), min(size, state.plan.of(task.name).available)
        assert state.prices is not None
        if stop <= start or state.prices.seconds(task.name, stop - start) > pair.clock.left:
            continue  # what does not fit into the pilot may fit into what comes after it
        state, whole = measure_items(pair, state, task, start, stop)
        if not whole:
            return state, False
        if all(state.tables.both(task)):
            pair.progress.row(result_of(pair, state, task), final=False)
    return state, True


def estimate(pair: Pair) -> Plan:
    """The plan that a budget would buy at this machine's speed, without a pilot."""
    state = begin(pair, None)
    return state.plan if state.plan.frozen else allocated(pair, state, pair.clock.left)
