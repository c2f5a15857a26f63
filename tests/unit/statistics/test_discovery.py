"""Learned or not: tests against scipy and enumeration, their null distribution, and the rate of false discoveries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from catchment.errors import InputError
from catchment.statistics import chance_p_value, discoveries, improvement_p_value
from tests.unit.statistics.simulate import above


@pytest.mark.parametrize(("right", "n", "chance"), [(0, 5, 0.25), (5, 5, 0.25), (40, 100, 0.25), (170, 300, 0.5)])
def test_above_chance_is_the_binomial_test(right: int, n: int, chance: float) -> None:
    p = chance_p_value([1.0] * right + [0.0] * (n - right), chance)
    assert p == pytest.approx(stats.binomtest(right, n, chance, alternative="greater").pvalue)


def test_flips_are_the_exact_sign_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        base, tuned = (rng.random(60) < 0.5) * 1.0, (rng.random(60) < 0.6) * 1.0
        gained, lost = int((tuned > base).sum()), int((tuned < base).sum())
        expected = stats.binomtest(gained, gained + lost, alternative="greater").pvalue
        assert improvement_p_value(base, tuned) == pytest.approx(expected)
        drawn = improvement_p_value(0.5 * base, 0.5 * tuned, draws=4999)  # the same test by random signs
        assert drawn == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4999))


def test_graded_differences_try_all_signs() -> None:
    rng = np.random.default_rng(1)
    base, tuned = rng.random((2, 9))
    groups = np.array([0, 0, 1, 2, 3, 3, 4, 5, 6])
    sums = np.array([(tuned - base)[groups == g].sum() for g in range(7)])
    for labels, differences in ((None, tuned - base), (groups, sums)):
        signed = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=differences.size)]
        expected = np.mean(np.array(signed) >= differences.sum() - 1e-12)
        assert improvement_p_value(base, tuned, groups=labels) == pytest.approx(expected)


def test_agreement_shows_nothing_and_both_directions_are_not_both_shown() -> None:
    rng = np.random.default_rng(2)
    base, tuned = rng.random((2, 50))
    assert improvement_p_value(base, base) == improvement_p_value(np.ones(9), np.ones(9)) == 1.0
    assert improvement_p_value(base, tuned) + improvement_p_value(tuned, base) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("kind", ["chance", "flips", "graded", "groups"])
def test_p_values_are_not_too_small_under_the_null(kind: str) -> None:
    rng = np.random.default_rng(3)
    index = np.arange(40) // 4
    tests: dict[str, Callable[[], float]] = {
        "chance": lambda: chance_p_value(rng.random(60) < 0.25, 0.25),
        "flips": lambda: improvement_p_value(rng.random(40) < 0.5, rng.random(40) < 0.5),
        "graded": lambda: improvement_p_value(*rng.beta(0.3, 0.5, (2, 40)), draws=199),
        "groups": lambda: improvement_p_value(*(rng.random((2, 10)) < 0.5).repeat(4, axis=1), groups=index),
    }
    p = np.array([tests[kind]() for _ in range(800)])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() < above(level, 800)
    assert (p <= 0.2).mean() > 0.05  # and not by never refusing
    if kind == "groups":  # which items taken one by one would do
        alone = [improvement_p_value(*(rng.random((2, 10)) < 0.5).repeat(4, axis=1)) for _ in range(400)]
        assert np.mean(np.array(alone) <= 0.05) > above(0.05, 400)


def test_adjusted_p_values_by_their_definition() -> None:
    p = np.random.default_rng(4).random(12) ** 2
    rows = discoveries(p.tolist(), rate=0.3)
    ranks = stats.rankdata(p)
    for row, value in zip(rows, p, strict=True):
        bh = min(12 * q / r for q, r in zip(p, ranks, strict=True) if q >= value)
        assert row.bh == pytest.approx(min(bh, 1.0))
        assert row.by == pytest.approx(min(bh * sum(1 / k for k in range(1, 13)), 1.0))
        assert row.discovered == (row.bh <= 0.3)
    careful = discoveries(p.tolist(), rate=0.3, dependent=True)
    assert sum(row.discovered for row in careful) < sum(row.discovered for row in rows)


def _false_share(learned: int, tasks: int, dependent: bool, rng: np.random.Generator) -> tuple[float, float]:
    """Share of false ones among the discoveries, and of the learned tasks that are discovered."""
    gain = np.where(np.arange(tasks) < learned, 0.15, 0.0)
    before = rng.random((tasks, 150))
    after = rng.random((tasks, 150)) - gain[:, None]
    pairs = ((b < 0.5, a < 0.5) for b, a in zip(before, after, strict=True))
    rows = discoveries([improvement_p_value(b, a) for b, a in pairs], rate=0.1, dependent=dependent)
    right = sum(row.discovered for row in rows[:learned])
    wrong = sum(row.discovered for row in rows[learned:])
    return wrong / max(right + wrong, 1), right / max(learned, 1)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("learned", [0, 10])
def test_the_rate_of_false_discoveries_is_controlled(learned: int, dependent: bool) -> None:
    rng = np.random.default_rng(5)
    false, power = np.mean([_false_share(learned, 20, dependent, rng) for _ in range(100)], axis=0)
    assert false < above(0.1 * (20 - learned) / 20, 100)
    assert learned == 0 or power > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chance_p_value([0.5, 1.0], 0.25), "not all 0 or 1"),
        (lambda: chance_p_value([1.0], 0.0), "chance is 0.0"),
        (lambda: improvement_p_value([0.5], [0.5, 0.5]), "same items"),
        (lambda: improvement_p_value([0.5], [0.4], draws=10), "draws is 10"),
        (lambda: improvement_p_value([0.5], [0.4], groups=[1, 2]), "one label per item"),
        (lambda: discoveries([0.5, math.nan]), r"p_values\[1\] is nan"),
        (lambda: discoveries([0.5], rate=1.0), "rate is 1.0"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
