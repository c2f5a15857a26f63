"""The orders and splits that the commands draw items by, written down before they became one function: another order
is another sample and another cell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from catchment.commands.compare import recover
from catchment.commands.compare import room as rooms
from catchment.commands.compare.allocation import Plan
from catchment.commands.compare.state import State
from catchment.commands.compare.tables import Tables
from catchment.commands.scan.admission import ground_of
from catchment.commands.scan.worst import split
from tests.unit.capabilities.test_order import GROUND, ITEMS, NAMES, TASK, ids

ROWS = GROUND.base
PREPARED = SimpleNamespace(task=TASK, encoded=[SimpleNamespace(item=item) for item in ITEMS])


def test_halves_of_recover() -> None:
    halves = [[ids(part) for part in recover.halves(TASK, dict(ROWS), seed)] for seed in (0, 7)]
    assert halves == [
        [["d", "g", "7", "x/1", "z z"], ["a", "b", "c", "e", "f", "h", "é:2"]],
        [["a", "b", "e", "f", "x/1", "z z"], ["c", "d", "g", "h", "7", "é:2"]],
    ]


@pytest.mark.parametrize(
    ("seed", "order"),
    [
        (0, ["e", "g", "x/1", "d", "h", "é:2", "c", "7", "a", "f", "z z", "b"]),
        (7, ["x/1", "z z", "a", "d", "é:2", "7", "e", "g", "h", "c", "f", "b"]),
    ],
)
def test_items_of_a_room(seed: int, order: list[str]) -> None:
    pair: Any = SimpleNamespace(
        settings=SimpleNamespace(seed=seed), base=SimpleNamespace(prepare=lambda *_: PREPARED)
    )  # fmt: skip
    tables = Tables({TASK.name: NAMES}).with_rows(TASK, TASK.formats[0].name, ROWS, ROWS)
    state = State(Plan((), None, 1024, room_items=len(NAMES)), tables)
    assert list(rooms._ground(pair, state, TASK).items) == order


@pytest.mark.parametrize(
    ("seed", "order"),
    [
        (0, ["g", "é:2", "f", "c", "x/1", "b", "e", "7", "d", "a", "z z", "h"]),
        (7, ["é:2", "c", "x/1", "b", "7", "z z", "a", "e", "d", "g", "h", "f"]),
    ],
)
def test_items_of_a_scan(seed: int, order: list[str]) -> None:
    settings: Any = SimpleNamespace(seed=seed, tau_absolute=0.1, tau=None)
    assert list(ground_of(PREPARED, ROWS, settings).items) == order  # type: ignore[arg-type]


def test_items_to_attack_with_and_to_judge_on() -> None:
    assert split(GROUND, 5) == (["c", "x/1", "é:2", "d", "b"], ["e", "h", "z z", "a", "g", "f", "7"])
