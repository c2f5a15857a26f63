"""Noise of a score that is not sampling of items: from training seeds, from adjacent checkpoints, and against signal.

The error bar of a score over items says nothing about training: in the scores released with arXiv 2408.06663 two
checkpoints about 20 steps apart differ by up to 30 such error bars after the same tuning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from catchment.errors import InputError
from catchment.records import Interval
from catchment.statistics import checks
from catchment.statistics.checks import Floats
from catchment.statistics.quantiles import chi_square_quantile

MEDIAN_TO_SD = 1.482602218505602  # 1 / Phi^-1(3/4): from the median of |x| to the standard deviation, x normal
DRAWS = 4000


@dataclass(frozen=True)
class NoiseFloor:
    """Standard deviation of one score under repetition, in the unit of the score.

    The difference of two such scores has a standard deviation of ``sqrt(2)`` times this.

    Attributes:
        sd: With its interval.
        freedom: Degrees of freedom (seeds) or number of first differences (checkpoints) behind it.
        cells: Cells or curves that contributed.
        unused: Indices of the cells or curves with a single score, which says nothing about noise.
    """

    sd: Interval
    freedom: int
    cells: int
    unused: tuple[int, ...]


def seed_noise(cells: Sequence[ArrayLike], level: float = 0.95) -> NoiseFloor:
    """Noise floor from training seeds: standard deviation pooled within cells.

    ``s^2 = sum_c sum_s (P_cs - mean_c)^2 / nu`` with ``nu = sum_c (n_c - 1)``, and the interval
    ``[s sqrt(nu / q_{1 - a/2}), s sqrt(nu / q_{a/2})]`` with q the quantiles of chi-square with nu degrees of freedom.
    Assumes one variance for all cells and normal scores. With few seeds it is wide: 2 seeds of one cell leave a
    factor of 70 between its ends. It is [0, 0] when the seeds of each cell agree exactly.

    Args:
        cells: For each cell the scores of its seeds, shape (n_c,). A cell with one seed is listed in ``unused``.
        level: Of this one interval.

    Raises:
        InputError: No cell with two seeds, NaN or infinity.

    >>> noise = seed_noise([[0.50, 0.52, 0.54], [0.70, 0.70], [0.9]])
    >>> round(noise.sd.estimate, 4), noise.freedom, noise.unused
    (0.0163, 3, (2,))
    """
    checks.open_unit(level, "level")
    scores = [checks.finite(cell, f"cells[{i}]") for i, cell in enumerate(cells)]
    freedom = sum(cell.size - 1 for cell in scores)
    if freedom < 1:
        raise InputError(f"{len(scores)} cells of one seed each; expected a cell with at least 2 seeds. Add seeds.")
    sd = math.sqrt(sum(float(((cell - cell.mean()) ** 2).sum()) for cell in scores) / freedom)
    low, high = (sd * math.sqrt(freedom / chi_square_quantile(p, freedom)) for p in ((1 + level) / 2, (1 - level) / 2))
    unused = tuple(i for i, cell in enumerate(scores) if cell.size == 1)
    interval = Interval(sd, low, high, level, f"pooled within cells, chi-square, {freedom} degrees of freedom")
    return NoiseFloor(interval, freedom, len(scores) - len(unused), unused)


def checkpoint_noise(
    curves: Sequence[ArrayLike], last: int | None = None, level: float = 0.95, seed: int = 0
) -> NoiseFloor:
    """Noise floor from adjacent checkpoints: robust standard deviation of first differences over the square root of 2.

    ``s = 1.4826 median |P_{i+1} - P_i| / sqrt(2)`` over the adjacent checkpoints of all curves. Where more than half
    of the differences are 0, as with few items, the root mean square takes the place of the median. The interval
    inverts the distribution of ``s / sigma`` for curves of these lengths with normal noise, by simulation. Assumes that
    the true score hardly moves between adjacent checkpoints: a trend makes the floor larger, never smaller, so choose
    checkpoints near the end, or the last two. The interval is [0, 0] when all differences are 0.

    Args:
        curves: For each curve its scores in the order of training, shape (m,). A curve of one checkpoint is listed in
            ``unused``.
        last: Only that many checkpoints at the end of each curve.
        level: Of this one interval.
        seed: Of the simulation.

    Raises:
        InputError: No curve with two checkpoints, ``last`` below 2, NaN or infinity.

    Cost: 4,000 draws per difference; 20 ms for 100 differences.

    >>> noise = checkpoint_noise([[0.1, 0.5, 0.52], [0.2, 0.6, 0.63], [0.3, 0.7, 0.68]], last=2)
    >>> round(noise.sd.estimate, 3), noise.freedom
    (0.021, 3)
    """
    checks.open_unit(level, "level")
    if last is not None and last < 2:
        raise InputError(f"last is {last}; expected at least 2 checkpoints, because noise is read from differences.")
    ends = [checks.finite(curve, f"curves[{i}]")[-(last or 0) :] for i, curve in enumerate(curves)]
    lengths = [end.size for end in ends if end.size > 1]
    if not lengths:
        raise InputError(f"{len(ends)} curves of one checkpoint each; expected a curve with at least 2 checkpoints.")
    differences = np.concatenate([np.diff(end) for end in ends])
    robust = bool(np.median(np.abs(differences)) > 0)
    sd = float(_spread(differences, robust))
    pivots = _spread(_simulated_differences(lengths, seed), robust)
    low, high = (sd / np.quantile(pivots, [(1 + level) / 2, (1 - level) / 2])).tolist()
    method = "median" if robust else "root mean square"
    interval = Interval(sd, low, high, level, f"{method} of {differences.size} first differences")
    unused = tuple(i for i, end in enumerate(ends) if end.size == 1)
    return NoiseFloor(interval, differences.size, len(lengths), unused)


@dataclass(frozen=True)
class SignalToNoise:
    """Signal, noise and their ratio for one task; all three without unit. ``ratio`` is ``None`` without noise."""

    signal: float
    noise: float
    ratio: float | None
    models: int
    checkpoints: int


def signal_to_noise(scores: ArrayLike, noise_scores: ArrayLike) -> SignalToNoise:
    """Signal-to-noise ratio of a task.

    ``signal = max_{j,k} |m_j - m_k| / mean(m)`` over models, ``noise = sd(x) / mean(x)`` over the final checkpoints of
    one model (sd with divisor n, as in the authors' code), ``ratio = signal / noise``.

    Args:
        scores: m, shape (models,), positive mean: one score for each model.
        noise_scores: x, shape (checkpoints,), positive mean: one model at its last checkpoints.

    Raises:
        InputError: Fewer than two scores of either kind, a mean that is not positive, NaN or infinity.

    Source: Heineman et al. 2025, arXiv 2508.13144; github.com/allenai/signal-and-noise, ``snr/metrics.py``.

    >>> task = signal_to_noise([0.4, 0.5, 0.6], [0.58, 0.62])
    >>> round(task.signal, 3), round(task.noise, 4), round(task.ratio, 1)
    (0.4, 0.0333, 12.0)
    """
    population, tail = _positive(scores, "scores"), _positive(noise_scores, "noise_scores")
    signal = float((population.max() - population.min()) / population.mean())
    noise = float(tail.std() / tail.mean())
    return SignalToNoise(signal, noise, signal / noise if noise > 0 else None, population.size, tail.size)


def _positive(values: ArrayLike, name: str) -> Floats:
    array = checks.finite(values, name)
    if array.size < 2 or array.mean() <= 0:
        raise InputError(
            f"{name} has {array.size} values with mean {array.mean():g}; expected at least 2 with a positive mean."
        )
    return array


def _spread(differences: Floats, robust: bool) -> Floats:
    """Standard deviation of a score from first differences, along the last axis."""
    if robust:
        return np.asarray(MEDIAN_TO_SD * np.median(np.abs(differences), axis=-1) / math.sqrt(2))
    return np.asarray(np.sqrt((differences**2).mean(axis=-1) / 2))


def _simulated_differences(lengths: Sequence[int], seed: int) -> Floats:
    """First differences of standard normal curves of these lengths: (draws, differences)."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.diff(rng.standard_normal((DRAWS, m)), axis=1) for m in lengths], axis=1)
