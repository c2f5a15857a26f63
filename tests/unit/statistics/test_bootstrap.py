"""Bootstrap over directions: against full enumeration, by hand, and how often it covers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from catchment.errors import InputError
from catchment.statistics import cluster_band, crossing, crossing_interval

SCALES = (0.1, 0.2, 0.4, 0.8)


def _enumerated(pairs: list[tuple[float, float]], level: float) -> tuple[float, float, float]:
    """Every one of the D^D redrawn samples, with the textbook formulas of a ratio estimate."""

    def ratio(chosen: list[tuple[float, float]]) -> tuple[float, float]:
        total, items = sum(s for s, _ in chosen), sum(n for _, n in chosen)
        r, d = total / items, len(chosen)
        return r, math.sqrt(d / (d - 1) * sum((s - r * n) ** 2 for s, n in chosen)) / items

    r, se = ratio(pairs)
    pivots = []
    for chosen in itertools.product(pairs, repeat=len(pairs)):
        again, spread = ratio(list(chosen))
        pivots.append((again - r) / max(spread, 0.1 * se))
    tail = (1 - level) / 2
    high, low = np.quantile(pivots, [tail, 1 - tail], method="inverted_cdf")
    return r, r - low * se, r - high * se


def test_the_band_is_that_of_all_redrawn_samples() -> None:
    pairs = [(7.0, 10.0), (12.0, 20.0), (4.0, 5.0), (3.0, 10.0), (9.0, 10.0), (5.0, 8.0)]
    mean, low, high = _enumerated(pairs, 0.8)
    found = cluster_band(pairs, 0.8, seed=1, repeats=20000)
    assert found.estimate == pytest.approx(mean)
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)
    assert found.method == "cluster bootstrap over directions"


def test_arrays_pairs_and_missing_scores_are_the_same_data() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((12, 2, 5)) < rng.random((12, 1, 1))).astype(float)
    pairs = [(float(row.sum()), 10.0) for row in scores]
    one, two = cluster_band(scores, 0.9, seed=3), cluster_band(pairs, 0.9, seed=3)
    assert (one.low, one.high) == (pytest.approx(two.low), pytest.approx(two.high))
    scores[0, 0, 0] = math.nan
    pairs[0] = (float(np.nansum(scores[0])), 9.0)
    three = cluster_band(scores, 0.9, seed=3)
    assert three.estimate == pytest.approx(sum(s for s, _ in pairs) / 119)
    assert (three.low, three.high) != (one.low, one.high)
    assert cluster_band(scores, 0.9, seed=3) == three
    assert cluster_band(scores, 0.9, seed=4) != three


def test_directions_that_agree_do_not_give_certainty() -> None:
    """All of 20 directions right on all 8 items: Wilson on 160 items, n/(n + z^2)."""
    found = cluster_band([(8, 8)] * 20, 0.95, seed=0)
    assert found.high == 1.0
    assert found.low == pytest.approx(160 / (160 + 1.959964**2), abs=1e-6)
    assert "agree" in found.method
    nearly = cluster_band([(8, 8)] * 19 + [(7, 8)], 0.95, seed=0)
    assert nearly.low < found.low
    assert nearly.high == 1.0
    unbounded = cluster_band([(16, 8)] * 20, 0.95, seed=0, bounds=None)
    assert unbounded.low == unbounded.high == 2.0


def test_crossing_by_hand() -> None:
    """Straight lines from (0, 0); the first crossing counts; a missing point is left out."""
    assert crossing(SCALES, [0.1, 0.2, 0.3, 0.4], 0.05) == pytest.approx(0.05)
    assert crossing(SCALES, [0.0, 0.0, 0.1, 0.4], 0.05) == pytest.approx(0.3)
    assert crossing(SCALES, [0.0, 0.1, 0.0, 0.4], 0.05) == pytest.approx(0.15)
    assert crossing(SCALES, [-0.1, 0.1, 0.0, 0.4], 0.05) == pytest.approx(0.175)
    assert crossing(SCALES, [0.0, math.nan, 0.1, 0.4], 0.05) == pytest.approx(0.25)
    assert crossing(SCALES, [0.05, 0.05, 0.05, 0.05], 0.05) is None
    assert crossing(SCALES, [0.0, 0.0, 0.0, 0.06], 0.0) == pytest.approx(0.4)


def test_the_ends_of_the_ladder_are_not_crossed() -> None:
    steep = np.tile([0.2, 0.4, 0.6, 0.8], (20, 1))
    found = crossing_interval(SCALES, steep, 0.05, 0.95, seed=0)
    assert found is not None
    assert (found.estimate, found.low) == (pytest.approx(0.025), 0.0)
    assert crossing_interval(SCALES, steep * 0.01, 0.05, 0.95, seed=0) is None
    late = np.zeros((20, 4))
    late[:12, 3] = 0.1  # mean 0.06, and below 0.05 in every third redrawn sample
    found = crossing_interval(SCALES, late, 0.05, 0.95, seed=0)
    assert found is not None
    assert found.high == 0.8
    assert 0.4 < found.low < found.estimate < 0.8


def test_the_interval_of_a_crossing_is_the_expanded_percentile() -> None:
    """Straight lines drop_d(s) = c_d s cross at tau / mean(c): percentiles of resampled means, the tail from scipy."""
    slopes = np.random.default_rng(8).gamma(4.0, 0.05, 8)
    found = crossing_interval(SCALES, slopes[:, None] * np.array(SCALES), 0.05, 0.9, seed=0, repeats=60_000)
    means = slopes[np.random.default_rng(9).integers(0, 8, (60_000, 8))].mean(axis=1)
    tail = norm.sf(student.isf(0.05, 7) * math.sqrt(8 / 7))
    low, high = 0.05 / np.quantile(means, [1 - tail, tail])
    assert found is not None
    assert found.estimate == pytest.approx(0.05 / slopes.mean())
    assert found.low == pytest.approx(low, rel=0.004)
    assert found.high == pytest.approx(high, rel=0.004)


@pytest.mark.parametrize("missing", [False, True])
def test_crossings_are_covered(missing: bool) -> None:
    """Drop of direction d: min(1, c_d s^2), c lognormal, plus noise of items; truth: the same lines through the exact
    mean drops. Half the directions stop at the second scale when ``missing``."""
    rng = np.random.default_rng(4)
    repeats, directions = 300, 20
    scales = np.array(SCALES)

    def drops(count: int) -> np.ndarray:
        return np.minimum(1.0, rng.lognormal(0, 0.7, (count, 1)) * scales**2)

    truth = crossing(SCALES, drops(400_000).mean(axis=0), 0.1)
    assert truth is not None
    hits, widths = 0, []
    for r in range(repeats):
        rows = rng.binomial(16, drops(directions)) / 16
        if missing:
            rows[: directions // 2, 2:] = math.nan
        found = crossing_interval(SCALES, rows, 0.1, 0.9, seed=r, repeats=500)
        if found is None:
            continue
        hits += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert hits / repeats > 0.9 - 3 * math.sqrt(0.9 * 0.1 / repeats)
    assert np.mean(widths) < truth


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cluster_band([(1, 2)], 0.9, 0), "1 direction"),
        (lambda: cluster_band([(1, 2), (1, 0)], 0.9, 0), "direction 1 has 0 scores"),
        (lambda: cluster_band([(1, 2), (3, 2)], 0.9, 0), "bounds=None"),
        (lambda: cluster_band([1.0, 2.0], 0.9, 0), "pair per direction"),
        (lambda: cluster_band([(1, 2), (1, 3)], 90, 0), "level is 90"),
        (lambda: cluster_band([(1, 2), (1, 3)], 0.9, 0, repeats=3), "repeats is 3"),
        (lambda: crossing([0.0, 0.1], [0.0, 0.2], 0.05), "rising scales above 0"),
        (lambda: crossing([0.1, 0.2], [0.0], 0.05), "one per scale"),
        (lambda: crossing([0.1], [0.0], -0.1), "tau is -0.1"),
        (lambda: crossing_interval([0.1], [[0.2]], 0.1, 0.9, 0), "at least"),
        (lambda: crossing_interval([0.1, 0.2], [[0.2, math.nan]] * 3, 0.1, 0.9, 0), "1 of 2 scales"),
    ],
)
def test_bad_settings_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def test_a_crossing_below_the_first_scale_may_be_anywhere_below_it() -> None:
    """A pilot that was stopped after its two largest scales, where all is lost already."""
    drops = np.full((8, 2), 0.8) + 0.01 * np.arange(8)[:, None]
    found = crossing_interval([8.0, 16.0], drops, tau=0.07, level=0.95, seed=0, shared=False)
    assert found is not None
    assert found.low == 0.0
    assert found.high >= 8.0


def test_own_directions_at_every_scale_are_redrawn_scale_by_scale() -> None:
    """Few directions far from the crossing do not widen an interval that many directions near it decide."""
    draw = np.random.default_rng(0)
    scales = [1.0, 2.0, 4.0, 8.0]
    table = np.full((200, 4), np.nan)
    table[:4, 0], table[:4, 3] = 0.0, 0.9
    table[:, 1], table[:, 2] = 0.02 + 0.1 * draw.standard_normal(200), 0.12 + 0.1 * draw.standard_normal(200)
    shared = crossing_interval(scales, table, tau=0.07, level=0.95, seed=0)
    own = crossing_interval(scales, table, tau=0.07, level=0.95, seed=0, shared=False)
    assert shared is not None
    assert own is not None
    assert own.estimate == pytest.approx(shared.estimate)
    assert own.high - own.low < 0.8 * (shared.high - shared.low)
    assert own.low < 3.0 < own.high
