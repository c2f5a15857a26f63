"""What a comparison measures beside its tasks: bits per byte of a text, and agreement on unlabelled prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from catchment.capabilities import Item, Task, agreement_rows, sample
from catchment.commands.compare.allocation import STAGES
from catchment.commands.compare.job import Job
from catchment.measuring import OutOfTimeError, fill, verdicts
from catchment.records import AgreementResult, Row, TextResult
from catchment.runs import cell_key

TEXT_SHARE, PROMPTS_SHARE = 0.25, 0.4
"""Of the time that is left when they are begun."""
LEAST = 2
"""Passages or prompts that show a spread."""


@dataclasses.dataclass(frozen=True)
class Extras:
    """What came out; empty where nothing was asked for or measured."""

    texts: tuple[TextResult, ...] = ()
    agreements: tuple[AgreementResult, ...] = ()


def measure_extras(job: Job) -> Extras:
    """Both, each within its share of a budget; what was reached is written into the plan."""
    return Extras(_texts(job), _agreements(job))


def said(job: Job) -> list[str]:
    """What a reader must know of what the budget left out."""
    lines = []
    if job.text is not None and job.plan.text_items is not None:
        lines += _short(f"bits per byte of {job.text.name}", job.plan.text_items, len(job.text.items), "passage")
    if job.prompts is not None and job.plan.prompt_items is not None:
        asked = len(_prompts(job, job.prompts))
        lines += _short(f"agreement on {job.prompts.name}", job.plan.prompt_items, asked, "prompt")
    return lines


def _short(name: str, reached: int, asked: int, what: str) -> list[str]:
    if reached >= asked:
        return []
    if reached < LEAST:
        return [f"{name}: not measured: the budget ended before its first {what}s"]
    return [f"{name}: measured on {reached:,} of {asked:,} {what}s, because the budget ended"]


def _prompts(job: Job, task: Task) -> Sequence[Item]:
    return sample(task.items, job.settings.limit, job.settings.seed)


def in_steps(job: Job, total: int, share: float, measure: Callable[[int], None]) -> int:
    """Measure the first items of a seeded order, more and more of them, until all are or the share of the time left is
    used up. Returns how many. Without a budget, or on a frozen plan, at once.

    Args:
        measure: Measures the first n items; those that were measured before are in the store.
    """
    clock = job.clock
    if clock.budget is None or clock.resumed:
        try:
            measure(total)
        except OutOfTimeError:
            return 0
        return total
    reached, began = 0, clock.elapsed
    with clock.within(share * clock.left):
        while reached < total:
            each = (clock.elapsed - began) / reached if reached else 0.0
            fits = int(0.9 * clock.left / each) if each > 0 else total
            stop = min(total, max(4 * reached, STAGES[0]), reached + fits)
            try:
                if stop > reached:
                    measure(stop)
            except OutOfTimeError:
                break
            if stop <= reached:
                break
            reached = stop
    return reached


def _texts(job: Job) -> tuple[TextResult, ...]:
    task = job.text
    if task is None:
        return ()
    tables: list[dict[str, Row]] = [{}, {}]

    def measure(n: int) -> None:
        items = sample(task.items, n, job.settings.seed)
        rows = []
        for side in job.sides:
            job.progress.status(f"bits per byte · {side.role}")
            form = task.formats[0].name
            rows.append(fill(side, job.store, task, form, items, job.plan.batch_tokens, job.progress).rows)
        tables[:] = rows

    planned = len(task.items) if job.plan.text_items is None else job.plan.text_items
    reached = in_steps(job, planned, TEXT_SHARE, measure) if planned >= LEAST or job.clock.budget is None else planned
    if job.clock.budget is not None:
        job.plan = dataclasses.replace(job.plan, text_items=reached, text=reached >= LEAST)
    if reached < LEAST and job.clock.budget is not None:
        return ()
    return (verdicts.text_result(task.name, *tables, alpha=job.settings.alpha),)


def _agreements(job: Job) -> tuple[AgreementResult, ...]:
    """Unlabelled prompts: both models at once, on the base's greedy answers."""
    task = job.prompts
    if task is None:
        return ()
    table: dict[str, Row] = {}
    asked = len(_prompts(job, task))

    def measure(n: int) -> None:
        rows = _agreement(job, task, sample(task.items, n, job.settings.seed))
        table.clear()
        table.update(rows)

    planned = asked if job.plan.prompt_items is None else job.plan.prompt_items
    reached = in_steps(job, planned, PROMPTS_SHARE, measure) if planned else 0
    if job.clock.budget is not None:
        job.plan = dataclasses.replace(job.plan, prompt_items=reached if table else 0)
    if not table:
        return ()
    return (verdicts.agreement_result(task.name, table, alpha=job.settings.alpha),)


def _agreement(job: Job, task: Task, items: Sequence[Item]) -> dict[str, Row]:
    form = task.formats[0].name
    conditions = {**job.base.conditions(task, form), "against": job.tuned.conditions(task, form)}
    cell = job.store.cell(cell_key(conditions), conditions)
    have = cell.rows()
    if any(item.id not in have for item in items):
        job.clock.check()
        job.progress.status(f"agreement · {task.name}")
        prepared = job.base.prepare(task, form, items)
        a, b = (side.engine(job.plan.batch_tokens) for side in job.sides)
        for row in agreement_rows(a, b, prepared, done=set(have), on_rows=lambda rows, _: cell.append(rows)):
            have[row.item] = row
    return {item.id: have[item.id] for item in items if item.id in have}
