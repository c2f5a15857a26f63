"""What a comparison measures beside its tasks: the drift of the weights, bits per byte of a text, and agreement on
unlabelled prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress

from catchment import models
from catchment.capabilities import Item, Task, agreement_rows, sample
from catchment.commands.compare.allocation import STAGES, Plan
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.state import State
from catchment.commands.compare.tables import Rows
from catchment.errors import ModelError
from catchment.measuring import Clock, OutOfTimeError, agreement_result, fill, text_result
from catchment.records import AgreementResult, Drift, Row, TextResult, from_json, to_json
from catchment.runs import cell_key, write_atomic

TEXT_SHARE, PROMPTS_SHARE = 0.25, 0.4
"""Of the time that is left when they are begun."""
LEAST = 2
"""Passages or prompts that show a spread."""


@dataclasses.dataclass(frozen=True)
class Extras:
    """What came out; empty where nothing was asked for or measured."""

    texts: tuple[TextResult, ...] = ()
    agreements: tuple[AgreementResult, ...] = ()


def measure_drift(pair: Pair) -> tuple[Drift | None, list[str]]:
    """How far the weights moved, and why it is not known where it is not. What lies in OUT is not measured again."""
    path = None if pair.out is None else pair.out / "drift.json"
    if path is not None and path.is_file():
        with suppress(ValueError):
            earlier = from_json(Drift, path.read_text(encoding="utf-8"))
            if earlier.ruler is not None:  # what an older version wrote is measured again
                return earlier, []
    if pair.base.card.quantization or pair.tuned.card.quantization:
        return None, []
    pair.progress.status("drift of the weights")
    try:
        drift = models.drift(pair.base.loaded.model, pair.tuned.loaded.model)
    except ModelError as error:
        return None, [f"no drift: {error}"]
    if path is not None:
        write_atomic(path, to_json(drift))
    return drift, []


def measure_extras(pair: Pair, state: State) -> tuple[State, Extras]:
    """Text and prompts, each within its share of a budget, and the state with what was reached in its plan."""
    plan, texts = _texts(pair, state.plan)
    plan, agreements = _agreements(pair, plan)
    return dataclasses.replace(state, plan=plan), Extras(texts, agreements)


def short_extras(pair: Pair, plan: Plan) -> list[str]:
    """What a reader must know of what the budget left out."""
    lines = []
    if pair.text is not None and plan.text_items is not None:
        lines += _short(f"bits per byte of {pair.text.name}", plan.text_items, len(pair.text.items), "passage")
    if pair.prompts is not None and plan.prompt_items is not None:
        asked = len(_prompts(pair, pair.prompts))
        lines += _short(f"agreement on {pair.prompts.name}", plan.prompt_items, asked, "prompt")
    return lines


def _short(name: str, reached: int, asked: int, what: str) -> list[str]:
    if reached >= asked:
        return []
    if reached < LEAST:
        return [f"{name}: not measured: the budget ended before its first {what}s"]
    return [f"{name}: measured on {reached:,} of {asked:,} {what}s, because the budget ended"]


def _prompts(pair: Pair, task: Task) -> Sequence[Item]:
    return sample(task.items, pair.settings.limit, pair.settings.seed)


def in_steps(
    clock: Clock, total: int, share: float, measure: Callable[[int], tuple[Rows, ...]]
) -> tuple[int, tuple[Rows, ...]]:
    """Measure the first items of a seeded order, more and more of them, until all are or the share of the time left is
    used up. Returns how many, and their rows. Without a budget, or on a frozen plan, at once.

    Args:
        measure: Measures the first n items; those that were measured before are in the store.
    """
    if clock.budget is None or clock.resumed:
        try:
            return total, measure(total)
        except OutOfTimeError:
            return 0, ()
    rows: tuple[Rows, ...] = ()
    reached, began = 0, clock.elapsed
    with clock.within(share * clock.left):
        while reached < total:
            each = (clock.elapsed - began) / reached if reached else 0.0
            fits = int(0.9 * clock.left / each) if each > 0 else total
            stop = min(total, max(4 * reached, STAGES[0]), reached + fits)
            if stop <= reached:
                break
            try:
                rows = measure(stop)
            except OutOfTimeError:
                break
            reached = stop
    return reached, rows


def _texts(pair: Pair, plan: Plan) -> tuple[Plan, tuple[TextResult, ...]]:
    task, clock = pair.text, pair.clock
    if task is None:
        return plan, ()
    form = task.formats[0].name

    def measure(n: int) -> tuple[Rows, ...]:
        items = sample(task.items, n, pair.settings.seed)
        rows = []
        for subject in pair.subjects:
            pair.progress.status(f"bits per byte · {subject.role}")
            rows.append(fill(subject, pair.store, task, form, items, plan.batch_tokens, pair.progress).rows)
        return tuple(rows)

    planned = len(task.items) if plan.text_items is None else plan.text_items
    rows: tuple[Rows, ...] = ()
    reached = planned
    if planned >= LEAST or clock.budget is None:
        reached, rows = in_steps(clock, planned, TEXT_SHARE, measure)
    if clock.budget is not None:
        plan = dataclasses.replace(plan, text_items=reached, text=reached >= LEAST)
        if reached < LEAST:
            return plan, ()
    base, tuned = rows
    return plan, (text_result(task.name, base, tuned, alpha=pair.settings.alpha),)


def _agreements(pair: Pair, plan: Plan) -> tuple[Plan, tuple[AgreementResult, ...]]:
    """Unlabelled prompts: both models at once, on the base's greedy answers."""
    task = pair.prompts
    if task is None:
        return plan, ()

    def measure(n: int) -> tuple[Rows, ...]:
        return (_agreement(pair, plan.batch_tokens, task, sample(task.items, n, pair.settings.seed)),)

    planned = len(_prompts(pair, task)) if plan.prompt_items is None else plan.prompt_items
    reached, rows = in_steps(pair.clock, planned, PROMPTS_SHARE, measure) if planned else (0, ())
    table = rows[0] if rows else {}
    if pair.clock.budget is not None:
        plan = dataclasses.replace(plan, prompt_items=reached if table else 0)
    if not table:
        return plan, ()
    return plan, (agreement_result(task.name, table, alpha=pair.settings.alpha),)


def _agreement(pair: Pair, batch_tokens: int, task: Task, items: Sequence[Item]) -> dict[str, Row]:
    form = task.formats[0].name
    conditions = {**pair.base.conditions(task, form), "against": pair.tuned.conditions(task, form)}
    cell = pair.store.cell(cell_key(conditions), conditions)
    have = cell.rows()
    if any(item.id not in have for item in items):
        pair.clock.check()
        pair.progress.status(f"agreement · {task.name}")
        prepared = pair.base.prepare(task, form, items)
        a, b = (subject.engine(batch_tokens) for subject in pair.subjects)
        for row in agreement_rows(a, b, prepared, done=set(have), on_rows=lambda rows, _: cell.append(rows)):
            have[row.item] = row
    return {item.id: have[item.id] for item in items if item.id in have}
