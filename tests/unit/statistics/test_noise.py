"""Noise floors: by hand, against scipy, and how often their intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from catchment.errors import InputError
from catchment.statistics import checkpoint_noise, seed_noise, signal_to_noise
from tests.unit.statistics.simulate import above


def test_pooled_noise_is_the_residual_variance_of_a_one_way_layout() -> None:
    """Oracle: least squares on cell indicators; the interval from scipy's chi-square."""
    rng = np.random.default_rng(0)
    cells = [rng.normal(rng.random(), 0.03, n) for n in (3, 2, 5, 1, 3)]
    noise = seed_noise(cells, level=0.9)
    design = np.repeat(np.eye(5), [3, 2, 5, 1, 3], axis=0)
    _, residual, _, _ = np.linalg.lstsq(design, np.concatenate(cells), rcond=None)
    assert noise.sd.estimate == pytest.approx(math.sqrt(residual[0] / 9))
    assert (noise.freedom, noise.cells, noise.unused) == (9, 4, (3,))
    ends = np.sqrt(residual[0] / stats.chi2.ppf([0.95, 0.05], 9))
    assert (noise.sd.low, noise.sd.high) == pytest.approx(tuple(ends))


def test_checkpoint_noise_by_hand() -> None:
    """Differences .02 .01 .03 .4: the median of their sizes is .025, and a jump does not matter."""
    noise = checkpoint_noise([[0.5, 0.52, 0.53], [0.6, 0.57], [0.1, 0.5], [0.9]])
    assert noise.sd.estimate == pytest.approx(1.4826022 * 0.025 / math.sqrt(2))
    assert (noise.freedom, noise.cells, noise.unused) == (4, 3, (3,))
    assert checkpoint_noise([[0.0, 0.5, 0.52, 0.53], [0.6, 0.57], [0.1, 0.5]], last=3).sd == noise.sd
    quantised = checkpoint_noise([[0.5, 0.5, 0.5, 0.75]])
    assert quantised.sd.estimate == pytest.approx(math.sqrt(0.25**2 / 3 / 2))
    assert "root mean square" in quantised.sd.method
    same = checkpoint_noise([[0.5, 0.5]])
    assert (same.sd.low, same.sd.high) == (0.0, 0.0)


def test_one_difference_has_the_exact_interval_of_a_half_normal() -> None:
    """|d| / (sigma sqrt(2)) is half-normal, so the ends divide |d| by its quantiles."""
    interval = checkpoint_noise([[0.5, 0.6]], level=0.9).sd
    quantiles = stats.halfnorm.ppf([0.95, 0.05]) * math.sqrt(2)
    assert (interval.low, interval.high) == pytest.approx(tuple(0.1 / quantiles), rel=0.1)


def test_a_trend_makes_the_checkpoint_floor_larger() -> None:
    curve = np.random.default_rng(3).normal(0, 0.01, 50)
    assert checkpoint_noise([curve + 0.03 * np.arange(50)]).sd.estimate > 2 * checkpoint_noise([curve]).sd.estimate


@pytest.mark.parametrize("lengths", [(2, 2, 2, 2), (8,), (2, 5, 12)])
def test_noise_intervals_cover(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(lengths))
    repeats, level, hits = 200, 0.9, np.zeros(2)
    for r in range(repeats):
        scores = [rng.normal(0.5, 0.02, m) for m in lengths]
        for i, noise in enumerate((seed_noise(scores, level), checkpoint_noise(scores, level=level, seed=r % 2))):
            hits[i] += noise.sd.low <= 0.02 <= noise.sd.high
    missed = 1 - hits / repeats
    assert (missed < above(1 - level, repeats)).all()
    assert (missed > 0.02).all()  # and not by being far too wide


def test_signal_to_noise_is_the_ratio_of_range_and_relative_deviation() -> None:
    rng = np.random.default_rng(4)
    models, tail = rng.uniform(0.2, 0.8, 12), rng.normal(0.6, 0.01, 30)
    task = signal_to_noise(models, tail)
    assert task.signal == pytest.approx(max(abs(a - b) for a in models for b in models) / np.mean(models))
    assert task.ratio == pytest.approx(task.signal / stats.variation(tail))
    assert (task.models, task.checkpoints) == (12, 30)
    scaled = signal_to_noise(3 * models, 3 * tail)
    assert scaled.ratio == pytest.approx(task.ratio)
    assert signal_to_noise([0.1, 0.2], [0.5, 0.5]).ratio is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seed_noise([[0.5], [0.6]]), "at least 2 seeds"),
        (lambda: seed_noise([[0.5, math.nan]]), r"cells\[0\]\[1\] is nan"),
        (lambda: checkpoint_noise([[0.5]]), "at least 2 checkpoints"),
        (lambda: checkpoint_noise([[0.5, 0.6]], last=1), "last is 1"),
        (lambda: signal_to_noise([0.5], [0.5, 0.6]), "scores has 1 values"),
        (lambda: signal_to_noise([0.5, 0.6], [0.0, 0.0]), "noise_scores has 2 values with mean 0"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
