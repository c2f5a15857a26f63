"""Measuring items of one task on both models."""

from __future__ import annotations

import dataclasses

from catchment.capabilities import Task, sample
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.state import State
from catchment.measuring import OutOfTimeError, fill


def measure_items(
    pair: Pair, state: State, task: Task, start: int, stop: int, form: str | None = None
) -> tuple[State, bool]:
    """Items ``start`` to ``stop`` of the seeded order on both models, and whether all were done. None of them counts
    where the clock ended before: those that were done are short ones, and no sample."""
    default = task.formats[0].name
    form = form or default
    before = {item.id for item in sample(task.items, start, pair.settings.seed)} if start else set()
    items = [item for item in sample(task.items, stop, pair.settings.seed) if item.id not in before]
    parts, began = [], pair.clock.elapsed
    try:
        for subject in pair.subjects:
            pair.progress.status(f"{task.name} · {form} · {subject.role}")
            parts.append(fill(subject, pair.store, task, form, items, state.plan.batch_tokens, pair.progress))
    except OutOfTimeError:
        begun = [len(items) if number <= len(parts) else 0 for number in range(2)]
        prices = state.prices and state.prices.fell_short(task.name, begun, pair.clock.elapsed - began)
        return dataclasses.replace(state, prices=prices), False
    fresh, seconds = [part.fresh for part in parts], sum(part.seconds for part in parts)
    return dataclasses.replace(
        state,
        tables=state.tables.with_rows(task, form, *(part.rows for part in parts)),
        prices=state.prices and state.prices.learn(task.name, fresh, seconds),
        reached={**state.reached, task.name: stop} if form == default else state.reached,
    ), True
