"""Intervals over seeds and items: against analysis of variance, by invariance, and how often they cover.

The limit of every coverage test is the stated level minus three Monte-Carlo standard errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from catchment.errors import InputError
from catchment.records import Interval
from catchment.statistics import hierarchical_interval, paired_interval, seed_noise
from tests.unit.statistics.simulate import above

Scores = NDArray[np.float64]
LEVEL = 0.9


def _groups(number: int, unequal: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.repeat(np.arange(number), rng.integers(1, 8, number) if unequal else 1)


def _normal(seeds: int, groups: NDArray[np.int64], spread: float, rng: np.random.Generator) -> Scores:
    """Seed, item, group and interaction effects of variance spread^2, 1, 1/2, 1; true mean 0."""
    of_group = math.sqrt(0.5) * rng.standard_normal(groups.max() + 1)[groups]
    crossed = rng.standard_normal(groups.size) + of_group + rng.standard_normal((seeds, groups.size))
    return np.asarray(spread * rng.standard_normal((seeds, 1)) + crossed)


def _flips(
    seeds: int, groups: NDArray[np.int64], spread: float, correlation: float, rng: np.random.Generator
) -> tuple[Scores, Scores, float]:
    """0/1 scores from a threshold on normal ability, of which seeds shift a part: base, tuned, true difference."""

    def latent() -> Scores:
        return np.sqrt(0.5) * (rng.standard_normal(groups.size) + rng.standard_normal(groups.max() + 1)[groups])

    before, own = latent(), latent()
    noise = rng.standard_normal((seeds, groups.size))
    after = correlation * before + np.sqrt((1 - correlation**2) / 2) * (own + noise)
    shift = spread * rng.standard_normal((seeds, 1))
    truth = stats.norm.cdf(stats.norm.ppf(0.65) / math.sqrt(1 + spread**2)) - 0.7
    return (before < stats.norm.ppf(0.7)) * 1.0, (after + shift < stats.norm.ppf(0.65)) * 1.0, float(truth)


def _two_way(difference: Scores, level: float) -> tuple[float, float]:
    """From the table of a two-way analysis of variance: mean squares of seeds and of items over the number of cells."""
    seeds, items = difference.shape
    tail, mean = (1 - level) / 2, difference.mean()
    by_seed = items * ((difference.mean(axis=1) - mean) ** 2).sum() / (seeds - 1)
    by_item = seeds * ((difference.mean(axis=0) - mean) ** 2).sum() / (items - 1)
    quantiles = stats.t.isf(tail, [seeds - 1, items - 1]) ** 2
    half = math.sqrt((quantiles @ [by_seed, by_item]) / difference.size)
    return mean - half, mean + half


def test_the_interval_is_that_of_the_analysis_of_variance() -> None:
    difference = _normal(4, np.arange(30), 0.3, np.random.default_rng(0))
    interval = hierarchical_interval(np.zeros(30), difference, level=0.8, bounded=False)
    assert interval.estimate == pytest.approx(difference.mean())
    assert (interval.low, interval.high) == pytest.approx(_two_way(difference, 0.8))
    assert interval.method == "4 seeds (t) and 30 items (t)"


def test_one_seed_is_the_paired_interval_and_says_so() -> None:
    rng = np.random.default_rng(1)
    for base, tuned in ((rng.random(80) < 0.7, rng.random(80) < 0.6), (rng.random(80), rng.random(80))):
        one = hierarchical_interval(base, tuned, family=3)
        pair = paired_interval(base, tuned, family=3)
        assert (one.low, one.high, one.level) == pytest.approx((pair.low, pair.high, pair.level))
        assert one.family == 3
        assert one.method == f"items only, one seed: 80 items ({pair.method})"


def test_items_written_twice_are_no_new_evidence_when_grouped() -> None:
    rng = np.random.default_rng(2)
    base, tuned, _ = _flips(3, np.arange(60), 0.1, 0.8, rng)
    labels = np.array([f"passage {i}" for i in range(60)])
    once = hierarchical_interval(base, tuned)
    twice = hierarchical_interval(np.tile(base, 2), np.tile(tuned, (1, 2)), groups=np.tile(labels, 2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert twice.method == "3 seeds (t) and 60 groups of items (score)"
    apart = hierarchical_interval(np.tile(base, 2), np.tile(tuned, (1, 2)))
    assert apart.high - apart.low < 0.9 * (twice.high - twice.low)


@pytest.mark.parametrize("scale", [1.0, 0.9])
def test_the_order_of_seeds_and_items_and_the_names_of_groups_do_not_matter(scale: float) -> None:
    rng = np.random.default_rng(3)
    groups = _groups(20, True, rng)
    base, tuned, _ = _flips(3, groups, 0.2, 0.8, rng)
    first = hierarchical_interval(scale * base, scale * tuned, groups=groups)
    order = rng.permutation(groups.size)
    again = hierarchical_interval(scale * base[order], scale * tuned[[2, 0, 1]][:, order], groups=groups[order])
    assert (again.low, again.high) == pytest.approx((first.low, first.high))
    swapped = hierarchical_interval(np.tile(scale * tuned[:1], (3, 1)), scale * np.tile(base, (3, 1)), groups=groups)
    back = hierarchical_interval(scale * np.tile(base, (3, 1)), scale * np.tile(tuned[:1], (3, 1)), groups=groups)
    if scale == 1.0:  # the betting bounds visit differences in an order, so they mirror only about
        assert (swapped.low, swapped.high) == pytest.approx((-back.high, -back.low))


def test_agreement_of_all_does_not_give_certainty() -> None:
    """No flips at all: Tango's bound z^2 / (n + z^2) with Student's quantile, n the items or the groups."""
    same = np.ones((3, 100))
    t = stats.t.isf(0.025, [99, 19]) ** 2
    assert hierarchical_interval(same[0], same).high == pytest.approx(t[0] / (100 + t[0]))
    groups = np.repeat(np.arange(20), 5)
    assert hierarchical_interval(same[0], same, groups=groups).high == pytest.approx(t[1] / (20 + t[1]))
    assert hierarchical_interval(0.9 * same[0], 0.9 * same, groups=groups).high > 0.05


def test_the_pooled_floor_takes_the_place_of_the_cells_own_seeds() -> None:
    rng = np.random.default_rng(4)
    cells = rng.normal(0.5, 0.03, (20, 3))
    noise = seed_noise(list(cells))
    base, tuned, _ = _flips(1, np.arange(100), 0.0, 0.8, rng)
    alone, pooled = hierarchical_interval(base, tuned), hierarchical_interval(base, tuned, floor=noise)
    half = stats.t.isf(0.025, 40) * math.sqrt(cells.var(axis=1, ddof=1).mean())
    mean = alone.estimate
    expected = mean - math.hypot(mean - alone.low, half), mean + math.hypot(alone.high - mean, half)
    assert (pooled.low, pooled.high) == pytest.approx(expected)
    assert pooled.method == "1 seeds (t, pooled noise of 20 cells) and 100 items (tango)"


def _missed(repeats: int, interval: Callable[[], tuple[Interval, float]]) -> float:
    pairs = [interval() for _ in range(repeats)]
    return sum(not i.low <= truth <= i.high for i, truth in pairs) / repeats


def _normal_missed(seeds: int, number: int, unequal: bool, spread: float, repeats: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    groups = _groups(number, unequal, rng)

    def one() -> tuple[Interval, float]:
        tuned = _normal(seeds, groups, spread, rng)
        return hierarchical_interval(np.zeros(groups.size), tuned, groups=groups, level=LEVEL, bounded=False), 0.0

    return _missed(repeats, one)


def _flips_missed(
    seeds: int, number: int, unequal: bool, spread: float, correlation: float, repeats: int, seed: int
) -> float:
    rng = np.random.default_rng(seed)
    groups = _groups(number, unequal, rng)

    def one() -> tuple[Interval, float]:
        base, tuned, truth = _flips(seeds, groups, spread, correlation, rng)
        return hierarchical_interval(base, tuned, groups=groups if unequal else None, level=LEVEL), truth

    return _missed(repeats, one)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0])
def test_intervals_cover_normal_effects(seeds: int, spread: float) -> None:
    assert _normal_missed(seeds, 60, True, spread, 400, seed=seeds) < above(1 - LEVEL, 400)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("unequal", [False, True])
def test_intervals_cover_flips(seeds: int, unequal: bool) -> None:
    spread = 0.3 if seeds > 1 else 0.0
    for correlation in (0.99, 0.8):
        missed = _flips_missed(seeds, 40 if unequal else 100, unequal, spread, correlation, 150, seed=seeds)
        assert missed < above(1 - LEVEL, 150)


def test_the_harness_fails_an_interval_over_items_only() -> None:
    """One seed drawn from a population of seeds: the interval over items covers that seed, not the population."""
    assert _normal_missed(1, 60, True, 1.0, 200, seed=0) > 0.5
    rng = np.random.default_rng(5)
    groups = np.arange(60)
    bootstrap = [_pigeonhole(_normal(3, groups, 1.0, rng), rng) for _ in range(200)]
    assert np.mean([not low <= 0 <= high for low, high in bootstrap]) > above(1 - LEVEL, 200)


def _pigeonhole(difference: Scores, rng: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the mean with seeds and items redrawn independently (Owen 2007)."""
    seeds, items = difference.shape
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size=200) / n for n in (seeds, items)]
    low, high = np.quantile(((drawn[0] @ difference) * drawn[1]).sum(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_intervals_cover_graded_scores_with_rare_losses(seeds: int) -> None:
    """2% of the items lose 0.9 in all seeds, the others move by a little: Student's t has no idea of the loss."""
    rng = np.random.default_rng(seeds)

    def one() -> tuple[Interval, float]:
        base = np.full(60, 0.95)
        rare = np.where(rng.random(20) < 0.02, -0.9, 0.0).repeat(3)
        tuned = base + rare + rng.uniform(-0.02, 0.02, (seeds, 60))
        return hierarchical_interval(base, tuned, groups=np.arange(20).repeat(3), level=LEVEL), -0.018

    assert _missed(200, one) < above(1 - LEVEL, 200)


@pytest.mark.soak
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [50, 200, 400])
def test_intervals_cover_in_bulk(seeds: int, number: int) -> None:
    """1,000 data sets for each size and equality of groups, variance of seeds and correlation of the models. The score
    bounds are not exact: their limit is one point lower."""
    for unequal, spread in itertools.product((False, True), (0.0, 0.05, 0.4) if seeds > 1 else (0.0,)):
        size = number // 4 if unequal else number
        if seeds > 1:
            assert _normal_missed(seeds, size, unequal, spread, 1000, 1) < above(1 - LEVEL, 1000)
        for correlation in (0.999, 0.9, 0.5):
            missed = _flips_missed(seeds, size, unequal, spread, correlation, 1000, 2)
            assert missed < above(1.01 - LEVEL, 1000), (unequal, spread, correlation)


@pytest.mark.soak
def test_two_seeds_of_a_skewed_population_cover_less() -> None:
    """A standard deviation of 0.28 around an accuracy of 0.61: what the docstring admits, 86% instead of 90%."""
    missed = _flips_missed(2, 200, False, 1.0, 0.999, 2000, 2)
    assert above(1 - LEVEL, 2000) < missed < above(0.15, 2000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hierarchical_interval([0.5, 0.5], [[0.5, 0.5, 0.5]]), r"base has shape \(1, 2\)"),
        (lambda: hierarchical_interval([[0.5, 0.5]] * 2, [[0.5, 0.5]] * 3), "one base or one for each seed"),
        (lambda: hierarchical_interval([0.5], [[0.5], [0.4]]), "1 of items"),
        (lambda: hierarchical_interval([0.5, 0.5], [0.5, 0.4], groups=["a", "a"]), "1 of groups"),
        (lambda: hierarchical_interval([0.5, 0.5], [0.5, 0.4], groups=["a"]), "one label per item"),
        (lambda: hierarchical_interval([0.5, 0.5], [0.5, 1.4]), r"tuned\[1\] is 1.4"),
        (lambda: hierarchical_interval([0.5, 0.5], [0.5, math.nan], bounded=False), r"tuned\[1\] is nan"),
        (lambda: hierarchical_interval([0.5, 0.5], np.zeros((1, 1, 2))), "expected .items,. or"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Interval], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
