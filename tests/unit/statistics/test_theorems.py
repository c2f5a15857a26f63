"""Smoothed scores: the two laws against closed forms and Monte Carlo; all sizes and radii of the paper's note."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import ndtr

from catchment.errors import InputError
from catchment.statistics import certified_radius, clopper_pearson, hoeffding, strict, strong_law, weak_law

Score = Callable[[np.ndarray], np.ndarray]


def _half_space(w: np.ndarray, b: float) -> Score:
    return lambda points: (points @ w >= b).astype(float)


def _smoothed(score: Score, centre: np.ndarray, sigma: float, seed: int, draws: int = 100_000) -> float:
    noise = np.random.default_rng(seed).standard_normal((draws, centre.size))
    return float(score(centre + sigma * noise).mean())


def test_the_smoothed_score_of_a_half_space_is_normal() -> None:
    """Phi((w.theta - b)/(sigma |w|)), within 4 standard errors: what the next test takes as given."""
    w, theta, sigma = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -0.2]), 0.7
    exact = ndtr((w @ theta + 0.4) / (sigma * np.linalg.norm(w)))
    assert _smoothed(_half_space(w, -0.4), theta, sigma, seed=0) == pytest.approx(exact, abs=4 * 0.5 / math.sqrt(1e5))


@pytest.mark.parametrize("distance", [0.0, 0.1, 0.8, 2.5])
def test_the_strong_law_is_tight_on_a_half_space(distance: float) -> None:
    """Along -w the bound is reached exactly; along every other direction it is not crossed; weak never above strong."""
    rng = np.random.default_rng(1)
    w, theta, sigma, b = rng.standard_normal(6), rng.standard_normal(6), 0.6, -1.0
    length = float(np.linalg.norm(w))

    def exact(point: np.ndarray) -> float:
        return float(ndtr((w @ point - b) / (sigma * length)))

    p = exact(theta)
    bound = strong_law(p, distance, sigma)
    assert exact(theta - distance * w / length) == pytest.approx(bound, abs=1e-12)
    for _ in range(50):
        step = rng.standard_normal(6)
        assert exact(theta + distance * step / np.linalg.norm(step)) >= bound - 1e-12
    assert weak_law(p, distance, sigma) <= bound + 1e-12


def _random_scores() -> dict[str, Score]:
    rng = np.random.default_rng(2)
    a, c = rng.standard_normal((3, 4)), rng.standard_normal((12, 4))
    signs = rng.random(12) < 0.5
    return {
        "wave": lambda x: 0.5 + 0.5 * np.sin(3 * x @ a[0]) * np.cos(2 * x @ a[1]),
        "ball": lambda x: ((x**2).sum(1) < 3.0).astype(float),
        "cells": lambda x: signs[((x[:, None, :] - c) ** 2).sum(2).argmin(1)].astype(float),
        "slab": lambda x: (np.abs(x @ a[2]) < 0.8).astype(float),
        "fraction": lambda x: 1 / (1 + np.exp(-5 * x @ a[1])),
    }


@pytest.mark.parametrize("name", _random_scores())
def test_no_bounded_score_breaks_the_laws(name: str) -> None:
    """Both ends by Monte Carlo; 4 standard errors of each are granted (20 comparisons per score)."""
    score, rng = _random_scores()[name], np.random.default_rng(3)
    draws, tightest = 20_000, 1.0
    slack = 4 * 0.5 / math.sqrt(draws)
    for k in range(10):
        theta, step = rng.standard_normal((2, 4))
        sigma, distance = float(rng.uniform(0.3, 1.5)), float(rng.uniform(0.05, 1.2))
        p = _smoothed(score, theta, sigma, 2 * k, draws)
        moved = _smoothed(score, theta + distance * step / np.linalg.norm(step), sigma, 2 * k + 1, draws)
        low = min(max(p - slack, 0.0), 1.0)
        assert moved + slack >= strong_law(low, distance, sigma)
        assert moved + slack >= weak_law(low, distance, sigma)
        tightest = min(tightest, moved - strong_law(p, distance, sigma))
    assert tightest < 0.45  # the bounds were not all vacuous


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9, 0.99])
def test_the_weak_law_is_the_slope_of_the_strong_one_at_one_half(p: float) -> None:
    """The steepest slope of Phi is 1/sqrt(2 pi), at 0: reached at p = 1/2 and for short moves only."""
    slope = (p - strong_law(p, 1e-6, 1.0)) / 1e-6
    assert slope <= 1 / math.sqrt(2 * math.pi) + 1e-6
    assert (p - weak_law(p, 1e-6, 1.0)) / 1e-6 == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-6)
    if p == 0.5:
        assert slope == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-5)


@pytest.mark.parametrize(("sigma", "radius"), [(0.003, 0.0070), (0.0045, 0.0105), (0.01, 0.0233)])
def test_certified_radii(sigma: float, radius: float) -> None:
    found = certified_radius(0.99, sigma)
    assert found == pytest.approx(radius, abs=5e-5)
    assert strong_law(0.99, found, sigma) == pytest.approx(0.5)
    assert strong_law(0.99, certified_radius(0.99, sigma, q=0.8), sigma) == pytest.approx(0.8)


def test_ends_of_the_laws() -> None:
    assert certified_radius(0.4, 1.0) == 0.0
    assert certified_radius(1.0, 1.0) == math.inf
    assert (strong_law(1.0, 5.0, 1.0), strong_law(0.0, 5.0, 1.0)) == (1.0, 0.0)
    assert weak_law(0.2, 5.0, 1.0) == 0.0


@pytest.mark.parametrize(
    ("bound", "one_sided", "two_sided"), [(0.90, 44, 51), (0.95, 90, 104), (0.99, 459, 528), (0.999, 4603, 5296)]
)
def test_directions_that_must_all_succeed_at_99_percent(bound: float, one_sided: int, two_sided: int) -> None:
    def low(n: int, sided: int) -> float:
        return clopper_pearson(n, n, 0.99, sided=sided).low

    assert low(one_sided - 1, 1) < bound < low(one_sided, 1)
    assert low(two_sided - 1, 2) < bound < low(two_sided, 2)
    assert strict(two_sided, two_sided, scale=0.01, items_each=50).interval.low > bound


@pytest.mark.parametrize(("bound", "n"), [(0.90, 29), (0.95, 59), (0.99, 299), (0.999, 2995)])
def test_directions_that_must_all_succeed_at_95_percent_one_sided(bound: float, n: int) -> None:
    assert clopper_pearson(n - 1, n - 1, 0.95, sided=1).low < bound < clopper_pearson(n, n, 0.95, sided=1).low


@pytest.mark.parametrize(("n", "ceiling", "z"), [(100, 0.9550, 1.70), (1000, 0.9954, 2.60), (10000, 0.99954, 3.31)])
def test_ceilings_when_all_succeed(n: int, ceiling: float, z: float) -> None:
    """Also as radii in sigmas: Phi^-1 of the ceiling."""
    low = clopper_pearson(n, n, 0.99, sided=1).low
    assert low == pytest.approx(ceiling, abs=5e-5 if n < 10000 else 5e-6)
    assert certified_radius(low, 1.0) == pytest.approx(z, abs=6e-3)


@pytest.mark.parametrize(("k", "half"), [(10, 0.387), (30, 0.223), (100, 0.122), (1000, 0.039)])
def test_hoeffding_half_widths(k: int, half: float) -> None:
    assert hoeffding(k, 0.05) == pytest.approx(half, abs=5e-4)


def test_strict_keeps_what_it_was_given() -> None:
    found = strict(18, 20, scale=0.02, items_each=100, level=0.95)
    assert (found.scale, found.directions, found.hits, found.items_each) == (0.02, 20, 18, 100)
    assert found.interval.estimate == 0.9
    assert (found.interval.low, found.interval.high) == (
        pytest.approx(0.6830, abs=5e-5),
        pytest.approx(0.9877, abs=5e-5),
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: strict(1, 2, scale=0.0, items_each=1), "scale is 0"),
        (lambda: strict(3, 2, scale=0.1, items_each=1), "3 successes of 2"),
        (lambda: hoeffding(0, 0.05), "k is 0"),
        (lambda: strong_law(1.1, 0.1, 1.0), "p is 1.1"),
        (lambda: weak_law(0.9, 0.1, 0.0), "sigma 0"),
        (lambda: certified_radius(0.9, 1.0, q=1.0), "q is 1"),
    ],
)
def test_bad_settings_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
