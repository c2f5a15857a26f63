"""Chance-adjusted scores, retention, sensitivity, ratio of change: by hand, by properties, and on released scores."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from catchment.errors import InputError
from catchment.statistics import chance_adjusted, ratio_of_change, retention, sensitivity

TESTS = Path(__file__).parents[2]
RELEASED = "amuro_char_released_scores.csv"
STEPS = ("1000", "18000", "342000", "424000", "505000", "592000", "738000", "main")
Scores = dict[tuple[str, str, str], float]


def test_chance_adjusted_scores_keep_their_shape() -> None:
    assert chance_adjusted(0.25, 0.25) == 0.0
    assert chance_adjusted(1.0, 0.25) == 1.0
    assert chance_adjusted(0.0, 0.5) == -1.0
    adjusted = chance_adjusted([[0.5, math.nan]], 0.0)
    np.testing.assert_array_equal(adjusted, [[0.5, math.nan]])


def test_sensitivity_and_retention_are_invariant_to_what_they_should_be() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(5)
    assert sensitivity(rng.permutation(scores)) == sensitivity(scores)
    assert sensitivity(scores / 2 + 0.1) == pytest.approx(sensitivity(scores) / 2)
    assert retention(0.3, 0.9, 0.25) == pytest.approx(chance_adjusted(0.3, 0.25) / chance_adjusted(0.9, 0.25))
    assert retention(0.2, 0.9, 0.25) == pytest.approx(-0.05 / 0.65)
    assert retention(0.9, 0.2, 0.25) is None


def test_ratio_of_change_by_hand() -> None:
    """Ratios 1, -1/2, 1/4, 0: mean 3/16, deviations from it (13, -11, 1, -3)/16, so sd^2 = 300/256/3."""
    change = ratio_of_change([0.1, 0.4, 0.4, 0.1], [0.2, 0.2, 0.5, 0.1], near_zero=0.2)
    assert change.mean == pytest.approx(3 / 16)
    assert change.sd == pytest.approx(math.sqrt(100) / 16)
    assert change.t == pytest.approx(0.6)
    assert change.median == pytest.approx(1 / 8)
    assert change.pooled == pytest.approx(0.0)
    assert change.log_ratio == pytest.approx(math.log(1.25) / 4)
    assert change.raw == pytest.approx(0.0)
    assert change.near_zero == (0, 3)
    assert (change.largest, change.without_largest) == (0, pytest.approx(-1 / 12))
    assert change.undefined == ()


def test_the_most_influential_cell_is_the_one_whose_removal_moves_the_mean_most() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        base, tuned = rng.uniform(0.05, 1, (2, 9))
        change = ratio_of_change(base, tuned)
        without = [ratio_of_change(np.delete(base, i), np.delete(tuned, i)).mean for i in range(9)]
        moves = [abs(mean - change.mean) for mean in without if mean is not None and change.mean is not None]
        assert change.largest == int(np.argmax(moves))
        assert change.without_largest == pytest.approx(without[change.largest])


def test_a_base_of_zero_is_listed_and_leaves_no_mean() -> None:
    change = ratio_of_change([0.0, 0.5], [0.1, 0.6])
    assert change.undefined == change.near_zero == (0,)
    assert (change.mean, change.sd, change.t, change.median, change.log_ratio) == (None,) * 5
    assert (change.largest, change.without_largest) == (None, None)
    assert (change.n, change.pooled, change.raw) == (2, pytest.approx(0.4), pytest.approx(0.1))
    assert ratio_of_change([0.0], [0.1]).pooled is None
    gone = ratio_of_change([0.5, 0.5], [0.0, 0.25])
    assert (gone.mean, gone.log_ratio) == (-0.75, None)


def test_one_cell_and_equal_ratios_have_no_t() -> None:
    one = ratio_of_change([0.5], [0.75])
    assert (one.mean, one.median, one.sd, one.t, one.largest) == (0.5, 0.5, None, None, None)
    equal = ratio_of_change([0.5, 0.25], [0.75, 0.375])
    assert (equal.sd, equal.t) == (0.0, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chance_adjusted(0.5, 1.0), "chance is 1.0"),
        (lambda: chance_adjusted([0.5, 1.5], 0.0), "a score is 1.5"),
        (lambda: retention(0.5, math.nan, 0.0), r"scores\[1\] is nan"),
        (lambda: sensitivity([0.5]), "at least 2 formats"),
        (lambda: ratio_of_change([0.5, -0.1], [0.5, 0.1]), r"base\[1\] is -0.1"),
        (lambda: ratio_of_change([0.5], [0.5, 0.1]), "same items"),
        (lambda: ratio_of_change([0.5], [0.5], near_zero=0.0), "near_zero is 0.0"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()


@pytest.fixture(scope="module")
def released() -> Scores:
    path = next(iter(sorted(TESTS.rglob(RELEASED))), None)
    if path is None:
        pytest.skip(f"{RELEASED} is not among the test data")
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["format"] == "default"]
    return {(row["checkpoint"], row["train"], row["eval"]): float(row["score"]) for row in rows}


def _cells(
    scores: Scores, trains: tuple[str, ...], evals: tuple[str, ...], steps: tuple[str, ...] = STEPS
) -> tuple[list[float], list[float]]:
    cells = [(step, train, test) for step in steps for train in trains for test in evals]
    return [scores[step, "BASE", test] for step, _, test in cells], [scores[cell] for cell in cells]


def test_released_scores_give_the_published_ratio_and_its_variants(released: Scores) -> None:
    """Golden values of the file's own description, to the printed digit."""
    to_generation = ("mnli", "paws"), ("xsum", "socialiqa")
    change = ratio_of_change(*_cells(released, *to_generation))
    assert change.n == 32
    statistics = (change.mean, change.sd, change.median, change.pooled)
    assert statistics == pytest.approx((-0.6146, 1.0616, -0.9857, -0.6915), abs=5e-5)
    assert change.largest is not None
    assert (change.largest, change.near_zero.count(change.largest)) == (14, 1)  # paws -> xsum at 424000
    others = tuple(step for step in STEPS if step != "424000")
    assert ratio_of_change(*_cells(released, *to_generation, others)).mean == pytest.approx(-0.8011, abs=5e-5)
    back = ratio_of_change(*_cells(released, ("xsum", "socialiqa"), ("paws", "mnli_matched")))
    statistics = (back.mean, back.sd, back.median, back.pooled)
    assert statistics == pytest.approx((0.0031, 0.0345, 0.0001, 0.0046), abs=5e-5)
    assert back.t == pytest.approx(0.50, abs=0.01)


def test_released_scores_give_the_published_changes_out_of_domain(released: Scores) -> None:
    ratios = {
        pair: ratio_of_change(*_cells(released, (pair[0],), (pair[1],)))
        for pair in (("mnli", "rte"), ("mnli", "gpt3nli"), ("xsum", "cnn"), ("socialiqa", "sciq"))
    }
    changes = [(change.mean, change.raw) for change in ratios.values()]
    expected = [(0.540, 0.182), (0.906, 0.310), (-0.055, -0.003), (0.233, -0.028)]
    np.testing.assert_allclose(np.array(changes, dtype=float), expected, atol=5e-4)
