"""Which tasks get no more items after the pilot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from catchment.capabilities import Item, Task
from catchment.workflows import rounds


@pytest.mark.parametrize(
    ("base", "tuned", "hopeless"),
    [(16, 16, True), (16, 20, True), (16, 12, True), (16, 32, False), (16, 2, False), (40, 40, False)],
)
def test_a_task_at_chance_is_left_where_nothing_points_to_a_change(base: int, tuned: int, hopeless: bool) -> None:
    """Of 64 items with four answers: 16 are chance. More items may show that the base is above it, and then a loss."""
    task = Task("t", tuple(Item(f"{i}?", gold=str(i)) for i in range(64)), "exact")
    table = {str(i): SimpleNamespace(score=float(i < base)) for i in range(64)}
    job: Any = SimpleNamespace(base=None, table=lambda *_: table)
    result: Any = SimpleNamespace(chance=0.25, base=base / 64, tuned=tuned / 64)
    assert rounds._hopeless(job, task, result) is hopeless
