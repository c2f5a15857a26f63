"""Two models of a study with one and the same outputs: what depends on either is refused."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.record import BASE
from catchment.commands.study.row_gates import _twins
from tests.unit.commands.study.tables import Entry, answers, item_table


def test_a_tuned_model_with_the_probabilities_of_another() -> None:
    cells: dict[Entry, Any] = {
        ("1", who, None, "qa"): answers(20 + k, 20 - k) for k, who in enumerate((BASE, "a", "b", "c"))
    }
    table = item_table(cells)
    rng = np.random.default_rng(0)
    shared = rng.random(40)
    probabilities = {BASE: rng.random(40), "a": shared, "b": rng.random(40), "c": shared.copy()}
    scored = {
        cell: dataclasses.replace(s, companions=probabilities[cell.tuning]) for cell, s in table.scored.items()
    }  # fmt: skip
    stands: list[Any] = [
        SimpleNamespace(
            cell=cell, key=cell.tuning, unit=SimpleNamespace(place=SimpleNamespace(name="m"), name=cell.tuning)
        )
        for cell in scored
    ]
    flags = tuple(_twins(SimpleNamespace(), stands, scored))  # type: ignore[arg-type]
    assert [(f.tuning, f.where) for f in flags] == [("a", "a and c"), ("c", "a and c")]
    study = analyse(dataclasses.replace(table, scored=scored, flags=flags))
    assert {c.tuning: c.refused for c in study.changes} == {"a": True, "b": False, "c": True}
