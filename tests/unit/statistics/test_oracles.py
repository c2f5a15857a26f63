"""Intervals against closed forms, published values and slow independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize
from scipy.special import ndtri

from catchment.errors import InputError
from catchment.statistics import clopper_pearson, mean_interval, paired_interval, unbounded_paired_interval
from catchment.statistics.betting import betting_lower
from tests.unit.statistics.simulate import scores, tango


def test_tango_matches_the_published_example() -> None:
    """Airway reactivity in 21 children, 1 discordant pair against 7 (Fagerland, Lydersen & Laake 2014, table 5)."""
    low, high = tango(7, 1, 21)
    assert low == pytest.approx(-0.517, abs=5e-4)
    assert high == pytest.approx(-0.026, abs=5e-4)


@pytest.mark.parametrize(("lost", "gained", "n"), [(20, 40, 160), (7, 1, 21), (9, 0, 200), (3, 5, 1500)])
def test_tango_ends_are_roots_of_the_published_quartic(lost: int, gained: int, n: int) -> None:
    """Yang, Sun & Hardin 2013 write the ends as real roots of a polynomial of degree four."""
    g, d, s = ndtri(0.975) ** 2, gained - lost, gained + lost
    quartic = [
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ]
    for end in tango(lost, gained, n):
        assert np.abs(np.roots(quartic) - end).min() < 1e-7


def _score_by_brute_force(lost: int, gained: int, n: int, difference: float) -> float:
    """The score statistic with its nuisance parameter found by numerical maximisation of the likelihood."""

    def minus_log_likelihood(p: float) -> float:
        q = p + difference
        rest = 1 - p - q
        total = 0.0
        for count, rate in ((lost, p), (gained, q), (n - lost - gained, rest)):
            if count:
                total -= count * np.log(max(rate, 1e-300))
        return total

    smallest, largest = max(0.0, -difference), (1 - difference) / 2
    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(smallest, largest), method="bounded", options={"xatol": 1e-13}
    )
    p = min((smallest, found.x), key=minus_log_likelihood)
    variance = n * (2 * p + difference - difference**2)
    return (gained - lost - n * difference) / np.sqrt(variance)


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(0, 0, 50), (0, 3, 50), (5, 0, 44), (2, 7, 100), (30, 12, 80), (1, 1, 2000), (50, 0, 50)]
)
def test_tango_inverts_the_score_test(lost: int, gained: int, n: int) -> None:
    """On a grid of differences, exactly those inside the interval are accepted by the brute-force score test."""
    low, high = tango(lost, gained, n)
    z = ndtri(0.975)
    grid = np.concatenate([low + np.array([-1e-3, -1e-5, 1e-5, 1e-3]), high + np.array([-1e-3, -1e-5, 1e-5, 1e-3])])
    checked = 0
    for at in np.concatenate([grid, np.linspace(-0.99, 0.98, 37)]):
        if -1 < at < 1:
            inside = abs(_score_by_brute_force(lost, gained, n, float(at))) <= z
            assert inside == (low <= at <= high), f"difference {at}"
            checked += 1
    assert checked >= 37


@pytest.mark.parametrize("n", [20, 200, 2000])
def test_tango_without_flips_has_the_closed_form(n: int) -> None:
    z2 = ndtri(0.975) ** 2
    low, high = tango(0, 0, n)
    assert -low == pytest.approx(z2 / (n + z2), rel=1e-9)
    assert high == pytest.approx(z2 / (n + z2), rel=1e-9)


@pytest.mark.parametrize(
    ("bound", "one_sided", "two_sided"), [(0.90, 44, 51), (0.95, 90, 104), (0.99, 459, 528), (0.999, 4603, 5296)]
)
def test_clopper_pearson_when_all_succeed(bound: float, one_sided: int, two_sided: int) -> None:
    """Smallest n whose all-success 99% lower bound is above ``bound``."""
    assert clopper_pearson(one_sided, one_sided, 0.98).low >= bound
    assert clopper_pearson(one_sided - 1, one_sided - 1, 0.98).low < bound
    assert clopper_pearson(two_sided, two_sided, 0.99).low >= bound
    assert clopper_pearson(two_sided - 1, two_sided - 1, 0.99).low < bound


@pytest.mark.parametrize(("x", "n"), [(0, 7), (3, 20), (20, 20)])
def test_one_sided_clopper_pearson_solves_the_tail_at_the_full_error(x: int, n: int) -> None:
    """By sums of binomial probabilities: P(X >= x | low) and P(X <= x | high) are 10%, each."""
    found = clopper_pearson(x, n, 0.9, sided=1)
    assert found.method == "clopper-pearson one-sided"

    def mass(p: float, counts: range) -> float:
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    if x > 0:
        assert mass(found.low, range(x, n + 1)) == pytest.approx(0.1, rel=1e-9)
    if x < n:
        assert mass(found.high, range(x + 1)) == pytest.approx(0.1, rel=1e-9)
    with pytest.raises(InputError, match="sided is 3"):
        clopper_pearson(x, n, 0.9, sided=3)


def test_clopper_pearson_closed_forms() -> None:
    assert clopper_pearson(0, 10, 0.95).high == pytest.approx(1 - 0.025**0.1, rel=1e-12)
    assert clopper_pearson(0, 10, 0.95).low == 0.0
    for n, ceiling in ((100, 0.9550), (1000, 0.9954), (10000, 0.99954)):
        assert clopper_pearson(n, n, 0.98).low == pytest.approx(ceiling, abs=5e-5)


@pytest.mark.parametrize(
    ("x", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_newcombe_1998_table_1(x: int, n: int, low: float, high: float) -> None:
    found = mean_interval([1] * x + [0] * (n - x), 0.95)
    assert found.method == "wilson"
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_betting_matches_a_slow_evaluation_of_the_capital() -> None:
    """Item by item in plain Python: the capital against the bound is exactly 1/error at the bound."""
    values = np.random.default_rng(3).beta(2, 1, 60)
    error = 0.03
    bound = betting_lower(values, error)
    capital, seen = 1.0, []
    for x in values[np.random.default_rng(0).permutation(60)]:
        means = [(0.5 + sum(seen[: i + 1])) / (i + 2) for i in range(len(seen))]
        variance = (0.25 + sum((y - m) ** 2 for y, m in zip(seen, means, strict=True))) / (len(seen) + 1)
        bet = min((2 * np.log(1 / error) / (60 * variance)) ** 0.5, 0.75 / bound)
        capital *= 1 + bet * (x - bound)
        seen.append(float(x))
    assert capital == pytest.approx(1 / error, rel=1e-6)


def test_t_interval_matches_a_table() -> None:
    """Differences 1..5: mean 3, sd sqrt(2.5), t(4; .975) = 2.776445."""
    found = unbounded_paired_interval([0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.high - found.estimate == pytest.approx(2.7764451 * np.sqrt(2.5 / 5), rel=1e-6)
    assert found.estimate == 3.0


def test_bonferroni_is_named_in_the_interval() -> None:
    base, tuned = scores(6, 2, 300)
    eight = paired_interval(base, tuned, level=0.95, family=8)
    assert eight.level == pytest.approx(1 - 0.05 / 8)
    assert eight.family == 8
    alone = paired_interval(base, tuned, level=1 - 0.05 / 8)
    assert (eight.low, eight.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


@pytest.mark.parametrize(
    ("base", "tuned", "says"),
    [
        ([], [], "at least one item"),
        ([1, 0], [1], "same items"),
        ([1, float("nan")], [1, 0], r"base\[1\] is nan"),
        ([1, 0], [1, 1.5], r"tuned\[1\] is 1.5"),
        ([[1, 0]], [[1, 0]], "shape"),
    ],
)
def test_bad_scores_are_refused(base: list, tuned: list, says: str) -> None:
    with pytest.raises(InputError, match=says):
        paired_interval(base, tuned)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="level is 95"):
        paired_interval([1], [1], level=95)
    with pytest.raises(InputError, match="family is 0"):
        paired_interval([1], [1], family=0)
    with pytest.raises(InputError, match="at least 2"):
        unbounded_paired_interval([1.0], [1.0])
    with pytest.raises(InputError, match="11 successes of 10"):
        clopper_pearson(11, 10)
