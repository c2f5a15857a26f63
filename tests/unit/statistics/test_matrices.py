"""Forgetting matrix and transfer: by hand, and what is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from catchment.errors import InputError
from catchment.statistics import Transfer, forgetting_matrix, transfer

BASE = {"nli": 0.5, "nli2": 0.25, "sum": 0.125, "qa": 0.75}
TUNED = {("nli", "nli"): 0.875, ("nli", "nli2"): 0.75, ("nli", "sum"): 0.0, ("nli", "qa"): 0.625, ("sum", "nli"): 0.375}
NAMES = {"trains": ("nli", "sum"), "evals": ("nli", "nli2", "sum", "qa")}


def test_the_matrix_and_its_transfer_by_hand() -> None:
    matrix = forgetting_matrix(TUNED, BASE, **NAMES, in_domain={"nli": ["nli", "nli2"], "sum": ["sum"]})
    nan = math.nan
    np.testing.assert_array_equal(matrix.change, [[0.375, 0.5, -0.125, -0.125], [-0.125, nan, nan, nan]])
    assert matrix.missing == (("sum", "nli2"), ("sum", "sum"), ("sum", "qa"))
    assert transfer(matrix) == (Transfer("nli", -0.125, 2, 2), Transfer("sum", -0.125, 1, 3))


def test_the_domain_is_the_task_of_the_same_name_unless_said() -> None:
    assert transfer(forgetting_matrix(TUNED, BASE, **NAMES))[0] == Transfer("nli", pytest.approx(0.25 / 3), 3, 3)


def test_a_missing_base_score_makes_its_column_missing() -> None:
    base = {name: score for name, score in BASE.items() if name != "qa"}
    matrix = forgetting_matrix(TUNED, base, **NAMES)
    assert ("nli", "qa") in matrix.missing
    assert transfer(matrix)[0].measured == 2


def test_a_row_without_scores_has_no_transfer() -> None:
    matrix = forgetting_matrix({}, BASE, trains=["nli"], evals=["nli", "qa"])
    assert transfer(matrix) == (Transfer("nli", None, 0, 1),)
    assert len(matrix.missing) == 2


def test_every_cell_is_measured_or_listed() -> None:
    rng = np.random.default_rng(0)
    names = [f"task{i}" for i in range(6)]
    tuned = {(t, d): float(rng.random()) for t in names for d in names if rng.random() < 0.6}
    matrix = forgetting_matrix(tuned, dict.fromkeys(names, 0.5), trains=names, evals=names)
    assert {(t, d) for t in names for d in names} == set(matrix.missing) | set(tuned)
    assert not set(matrix.missing) & set(tuned)
    for row in transfer(matrix):
        outside = [score - 0.5 for (t, d), score in tuned.items() if t == row.train != d]
        assert row.mean == pytest.approx(np.mean(outside))
        assert (row.measured, row.expected) == (len(outside), 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trains": ("nli", "nli")}, "'nli' twice"),
        ({"evals": ()}, "evals is empty"),
        ({"evals": ("nli",)}, "'nli2' is not in the matrix"),
        ({"in_domain": {"nil": ["nli"]}}, "'nil' is not in the matrix"),
        ({"base": {"nli": math.inf}}, "infinite"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        forgetting_matrix(**{"tuned": TUNED, "base": BASE, **NAMES, **change})  # type: ignore[arg-type]
