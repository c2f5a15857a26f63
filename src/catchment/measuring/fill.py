"""Filling the cells of a model under test: what is in the store is never measured again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
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
    begin = time.perf_counter()
    try:
        if task.scorer == "classify":
            loaded = subject.loaded
            begin = time.perf_counter()  # loading does not count
            classifiers.evaluate(loaded.model, loaded.tokenizer, task, items, done=set(have), on_rows=keep)
        else:
            engine = subject.engine(batch_tokens)
            with suppress(AllTooLongError):  # these few; that some item fits was seen when the plan was made
                prepared = subject.prepare(task, form, items)
                begin = time.perf_counter()
                run(engine, prepared, done=set(have), on_rows=keep)
    finally:
        subject.hear(cell)
    seconds = time.perf_counter() - begin
    return Measured({item.id: have[item.id] for item in items if item.id in have}, seconds, len(missing))
