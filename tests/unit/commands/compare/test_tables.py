"""Rows of a comparison: their order, and that adding to tables leaves the old ones as they were."""

from __future__ import annotations

import random

import pytest

from catchment.capabilities import Item, Task, sample
from catchment.commands.compare.allocation import CHUNKS, PILOT
from catchment.commands.compare.tables import Tables, item_order
from catchment.records import Row


def task_of(n: int) -> Task:
    return Task("t", tuple(Item(f"prompt {k}", gold="a", id=f"i{k}") for k in range(n)), "exact", max_new_tokens=4)


def rows_of(names: list[str]) -> dict[str, Row]:
    return {name: Row(name, 1.0, "a") for name in names}


@pytest.mark.parametrize("n", [1, PILOT - 1, PILOT, PILOT + 1, PILOT + CHUNKS[0], 700])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_order_is_that_of_samples_that_grow(n: int, seed: int) -> None:
    """The items of a pilot in the task's order, then those that each larger sample adds."""
    task, order = task_of(n), dict[str, None]()
    for stop in (*range(PILOT, n, CHUNKS[0]), n):
        order |= dict.fromkeys(item.id for item in sample(task.items, stop, seed))
    assert item_order(task, seed) == tuple(order)


def test_rows_stand_in_one_order_however_they_came() -> None:
    task = task_of(200)
    empty = Tables({"t": item_order(task, 0)})
    names = [item.id for item in task.items]
    whole = empty.with_rows(task, "plain", rows_of(names), rows_of(names))
    for seed in range(3):
        mixed = random.Random(seed).sample(names, len(names))
        tables = empty
        for part in (mixed[:50], mixed[50:51], mixed[51:]):
            tables = tables.with_rows(task, "plain", rows_of(part), rows_of(part))
        assert [list(table) for table in tables.both(task, "plain")] == [
            list(table) for table in whole.both(task, "plain")
        ]
    assert list(whole.of("base", task, "plain")) == list(item_order(task, 0))


def test_tables_are_not_written_to() -> None:
    task = task_of(8)
    form = task.formats[0].name
    empty = Tables({"t": item_order(task, 0)})
    some = empty.with_rows(task, form, rows_of(["i0"]), rows_of(["i0"]))
    more = some.with_rows(task, form, rows_of(["i1"]), rows_of(["i1"])).with_rows(task, "other", rows_of(["i2"]), {})
    assert (empty.both(task), set(some.of("base", task)), set(more.of("tuned", task))) == (
        ({}, {}),
        {"i0"},
        {"i0", "i1"},
    )
    assert (empty.measured([task]), some.measured([task])) == ([], [task])
    assert more.both(task, "other") == (rows_of(["i2"]), {})
    assert more.without(task, ["other"]).both(task, "other") == ({}, {})
    assert set(more.without(task, ["other"]).of("base", task)) == {"i0", "i1"}
