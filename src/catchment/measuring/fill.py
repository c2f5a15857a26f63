"""Filling the cells of a model under test: what is in the store is never measured again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from catchment.capabilities import AllTooLongError, Item, Task, classifiers, run
from catchment.measuring.progress import Progress
from catchment.measuring.subject import Subject
from catchment.records import Row
from catchment.runs import Store


@dataclass(frozen=True)
class Measured:
    """Rows of the items asked for, and the seconds spent on those that were not in the store."""

    rows: dict[str, Row]
    seconds: float
    fresh: int


def fill(
    subject: Subject,
    store: Store,
    task: Task,
    form: str,
    items: Sequence[Item],
    batch_tokens: int | None,
    progress: Progress,
) -> Measured:
    """Measure the items that the store does not have; every batch is stored when it is done.

    Raises:
        OutOfTimeError: The subject's clock ended before every item was measured. What was measured is stored.
    """
    cell = subject.cell(store, task, form)
    have = cell.rows()
    missing = [item.id for item in items if item.id not in have]
    if not missing:
        subject.hear(cell)
        return Measured({item.id: have[item.id] for item in items}, 0.0, 0)

    def keep(rows: list[Row], tokens: int) -> None:
        subject.loaded.unchanged()
        cell.note(subject.engine_notes)
        cell.append(rows)
        have.update({row.item: row for row in rows})
        progress.advance(tokens)
        if any(name not in have for name in missing):
            subject.check()

    subject.check()
    work = _classified if task.scorer == "classify" else _scored
    try:
        begin = work(subject, task, form, items, batch_tokens, set(have), keep)
    finally:
        subject.hear(cell)
    seconds = time.perf_counter() - begin
    return Measured({item.id: have[item.id] for item in items if item.id in have}, seconds, len(missing))


Keep = Callable[[list[Row], int], None]


def _classified(
    subject: Subject, task: Task, form: str, items: Sequence[Item], batch_tokens: int | None, done: set[str], keep: Keep
) -> float:
    """Returns when measuring began: the model was loaded then."""
    loaded = subject.loaded
    begin = time.perf_counter()
    classifiers.evaluate(loaded.model, loaded.tokenizer, task, items, done=done, on_rows=keep)
    return begin


def _scored(
    subject: Subject, task: Task, form: str, items: Sequence[Item], batch_tokens: int | None, done: set[str], keep: Keep
) -> float:
    engine = subject.engine(batch_tokens)
    try:
        prepared = subject.prepare(task, form, items)
    except AllTooLongError:  # these few; that some item of the task fits was seen when the plan was made
        return time.perf_counter()
    begin = time.perf_counter()
    run(engine, prepared, done=done, on_rows=keep)
    return begin
