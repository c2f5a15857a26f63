"""Estimates over directions, by bootstrap: bands of a mean score, and of the scale at which a mean drop crosses tau.

Items scored under one direction share it, so the direction is what is drawn again, with all its items. These
are estimates with coverage near the stated level; what is decided is decided by ``sequences``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from catchment.errors import InputError
from catchment.records import Interval
from catchment.statistics import checks
from catchment.statistics.binomial import wilson
from catchment.statistics.checks import Floats
from catchment.statistics.quantiles import normal_quantile, normal_tail, student_quantile

SMALLEST_ERROR = 0.1  # of the standard error seen: a redrawn sample without its odd direction claims none
LARGEST_STRETCH = 3.0  # of the normal half-width
Pairs = Sequence[tuple[float, float]]


def cluster_band(
    values: ArrayLike | Pairs,
    level: float,
    seed: int,
    repeats: int = 2000,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Interval:
    """Interval for the mean of scores that are correlated within directions, by the studentised cluster bootstrap.

    With S_d and n_d the sum and the number of the scores under direction d, the estimate is
    ``r = sum S_d / sum n_d`` and ``se^2 = D/(D - 1) sum (S_d - r n_d)^2 / (sum n_d)^2``. Directions are drawn again
    with replacement; the interval is ``[r - q_{1 - a/2} se, r - q_{a/2} se]`` with q the quantiles of
    ``(r* - r)/se*``. Studentised, because with 20 directions of 8 items the percentile interval covered 91% where 95%
    was said, and this one 96%.

    Over directions *and* items where each direction has a fresh random subset of items; where all directions score
    the same items, over directions only.

    When all directions have exactly the same mean, the bootstrap knows nothing; then, for bounded scores, Wilson's
    interval over the items as if they were independent ("wilson, directions agree"), for unbounded ones no width.

    Args:
        values: Array (D, ...) of scores, as many for each direction (NaN: not measured), or D pairs (sum, count).
        level: Of this one interval.
        seed: Of the redrawing.
        repeats: Redrawn samples.
        bounds: Of one score; the interval ends there. ``None`` for scores without bounds, such as bits per byte.

    Raises:
        InputError: Fewer than two directions, one without scores, scores outside the bounds, infinities.

    Cost: ``repeats * D`` multiplications; 5 ms for 20 directions.

    >>> scores = np.random.default_rng(0).random((20, 8))
    >>> interval = cluster_band(scores, level=0.95, seed=0)
    >>> [round(end, 2) for end in (interval.low, interval.estimate, interval.high)]
    [0.48, 0.53, 0.58]
    """
    checks.open_unit(level, "level")
    sums, counts = _clusters(values)
    _bounded(sums / counts, bounds)
    size = sums.size
    mean, error = (float(x) for x in _ratio(np.ones((1, size)), sums, counts)[:, 0])
    if error <= 1e-12 * max(abs(mean), 1.0):
        return _agreeing(mean, round(counts.sum()), level, bounds)
    redrawn, errors = _ratio(_weights(size, repeats, seed), sums, counts)
    pivots = (redrawn - mean) / np.maximum(errors, SMALLEST_ERROR * error)
    tail = (1 - level) / 2
    reach = LARGEST_STRETCH * max(student_quantile(tail, size - 1), normal_quantile(tail))
    below, above = np.clip(np.quantile(pivots, [1 - tail, tail]), -reach, reach)
    low, high = bounds or (-math.inf, math.inf)
    return Interval(
        mean,
        max(mean - float(below) * error, low),
        min(mean - float(above) * error, high),
        level,
        "cluster bootstrap over directions",
    )


def crossing(scales: ArrayLike, drops: ArrayLike, tau: float) -> float | None:
    """The first scale at which the mean drop exceeds ``tau``, on straight lines through (0, 0) and the points.

    Interpolation is linear in the scale: it starts at 0, where a logarithm has no value. ``None``: no point is above
    tau. A point that is NaN was not measured and is left out.

    Raises:
        InputError: Scales that do not rise from above 0, as many drops as scales not given, tau below 0.

    >>> crossing([1.0, 2.0, 4.0], [0.0, 0.04, 0.08], tau=0.05)
    2.5
    """
    steps, curves = _curves(scales, np.asarray(drops, dtype=np.float64)[None, ...], tau)
    scale = float(_first_crossings(steps, curves, tau)[0])
    return scale if scale < math.inf else None


# long: what the interval claims, and where it ends, is said in one place
def crossing_interval(
    scales: ArrayLike,
    drops_per_direction: ArrayLike,
    tau: float,
    level: float,
    seed: int,
    repeats: int = 2000,
    *,
    shared: bool = True,
) -> Interval | None:
    """Interval for :func:`crossing` of the mean curve, over directions; ``None`` when the mean curve does not cross.

    Directions (rows) are drawn again with replacement, the mean drop at each scale is taken over those that were
    measured there, and the interval is made of percentiles of the crossings. The percentiles are those of the
    normal error of ``-t_{D-1} sqrt(D/(D-1))``, which makes up for what a percentile interval lacks at small D
    (Hesterberg 2015, "expanded percentile"). An estimate: straight lines join the scales, and at 95% it covered 92 to
    93% in simulations with 8 to 20 directions of very unequal slopes.

    The ends of the ladder are not crossed: ``low`` is 0 when it would lie below the smallest scale, where nothing was
    measured, and ``high`` is then at least that scale; ``high`` is the largest scale when some of the redrawn curves in
    question never cross.

    Args:
        scales: Shape (R,), rising, above 0.
        drops_per_direction: Shape (D, R), NaN where a direction was not measured.
        tau, level, seed, repeats: Tolerance; coverage aimed at; of the redrawing.
        shared: A row is one direction at all scales. ``False``: every scale has directions of its own, which are then
            redrawn scale by scale, and D is the number of directions at the scales around the crossing.

    Raises:
        InputError: Shapes that do not match, fewer than two directions, a scale without any measurement.

    >>> scales = 0.1 * 2.0 ** np.arange(8)
    >>> slopes = np.random.default_rng(0).uniform(0.025, 0.075, (12, 1))
    >>> interval = crossing_interval(scales, slopes * scales, tau=0.05, level=0.95, seed=0)
    >>> [round(end, 2) for end in (interval.low, interval.estimate, interval.high)]
    [0.81, 0.97, 1.26]
    """
    checks.open_unit(level, "level")
    steps, rows = _curves(scales, np.asarray(drops_per_direction, dtype=np.float64), tau)
    size = rows.shape[0]
    measured = ~np.isnan(rows)
    if size < 2 or not measured.any(axis=0).all():
        raise InputError(
            f"{size} directions, {int(measured.any(axis=0).sum())} of {steps.size} scales measured; expected at least "
            "2 directions and a measurement at every scale. Leave unmeasured scales out."
        )
    estimate = crossing(steps, np.nanmean(rows, axis=0), tau)
    if estimate is None:
        return None
    each = measured.sum(axis=0)
    if shared:
        curves, few = _redrawn_rows(rows, repeats, seed), int(each.min())
    else:
        after = int(np.searchsorted(steps, estimate))
        curves, few = _redrawn_columns(rows, repeats, seed), int(each[max(after - 1, 0) : after + 1].min())
    crossings = np.sort(_first_crossings(steps, curves, tau))
    free = max(few if few > 1 else size, 2)
    tail = normal_tail(student_quantile((1 - level) / 2, free - 1) * math.sqrt(free / (free - 1)))
    low = float(crossings[math.floor(tail * (repeats - 1))])
    high = float(crossings[math.ceil((1 - tail) * (repeats - 1))])
    if low < steps[0]:  # nothing was measured below the first scale, so nothing says where in that gap
        low, high = 0.0, max(high, float(steps[0]))
    return Interval(estimate, low, min(high, float(steps[-1])), level, "percentile bootstrap over directions")


def _redrawn_rows(rows: Floats, repeats: int, seed: int) -> Floats:
    """Mean curves (repeats, R) of directions that are drawn again with replacement; NaN where none was measured."""
    measured = ~np.isnan(rows)
    weights = _weights(rows.shape[0], repeats, seed)
    counts = weights @ measured
    return np.where(counts > 0, weights @ np.where(measured, rows, 0.0) / np.maximum(counts, 1), np.nan)


def _redrawn_columns(rows: Floats, repeats: int, seed: int) -> Floats:
    """Mean curves (repeats, R) whose directions are drawn again at every scale by itself."""
    columns = [column[~np.isnan(column)] for column in rows.T]
    redrawn = [_weights(c.size, repeats, seed + j) @ c / c.size for j, c in enumerate(columns)]
    return np.stack(redrawn, axis=1)


def _clusters(values: ArrayLike | Pairs) -> tuple[Floats, Floats]:
    """Sum and number of scores per direction."""
    if isinstance(values, np.ndarray):
        rows = values.reshape(len(values), -1).astype(np.float64) if values.ndim else values.reshape(0, 0)
        counts = (~np.isnan(rows)).sum(axis=1).astype(np.float64)
        sums = np.where(np.isnan(rows), 0.0, rows).sum(axis=1)
    else:
        pairs = np.asarray(values, dtype=np.float64)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise InputError(
                f"values has shape {pairs.shape}; expected a (sum, count) pair per direction, or a numpy array "
                "(directions, scores)."
            )
        sums, counts = pairs[:, 0], pairs[:, 1]
    if sums.size < 2:
        raise InputError(f"{sums.size} direction; expected at least 2, because one says nothing about the rest.")
    if not np.isfinite(sums).all() or not (counts > 0).all():
        place = int(np.flatnonzero(~(np.isfinite(sums) & (counts > 0)))[0])
        raise InputError(
            f"direction {place} has {counts[place]:g} scores with sum {sums[place]:g}; expected at least one finite "
            "score. Leave the direction out if it was not measured."
        )
    return sums, counts


def _bounded(means: Floats, bounds: tuple[float, float] | None) -> None:
    if bounds is not None and ((means < bounds[0] - 1e-6) | (means > bounds[1] + 1e-6)).any():
        raise InputError(
            f"the means of directions run from {means.min():g} to {means.max():g}; expected scores in {list(bounds)}. "
            "Say bounds=None for scores without bounds."
        )


def _agreeing(mean: float, items: int, level: float, bounds: tuple[float, float] | None) -> Interval:
    if bounds is None:
        return Interval(mean, mean, mean, level, "directions agree")
    low, width = bounds[0], bounds[1] - bounds[0]
    share = min(max((mean - low) / width, 0.0), 1.0)
    interval = wilson(share * items, items, level)
    return Interval(mean, low + width * interval.low, low + width * interval.high, level, "wilson, directions agree")


def _weights(size: int, repeats: int, seed: int) -> Floats:
    """How often each direction is drawn in each of the redrawn samples: (repeats, size)."""
    if repeats < 100:
        raise InputError(f"repeats is {repeats}; expected at least 100 redrawn samples, such as 2000.")
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=repeats).astype(np.float64)


def _ratio(weights: Floats, sums: Floats, counts: Floats) -> NDArray[np.float64]:
    """Ratio estimate and its standard error for each row of weights: (2, rows)."""
    size = sums.size
    total = weights @ counts
    ratio = weights @ sums / total
    rest = (weights * (sums - ratio[:, None] * counts) ** 2).sum(axis=1)
    return np.stack([ratio, np.sqrt(rest * size / (size - 1)) / total])


def _curves(scales: ArrayLike, drops: Floats, tau: float) -> tuple[Floats, Floats]:
    steps = checks.finite(scales, "scales")
    if steps[0] <= 0 or (np.diff(steps) <= 0).any():
        raise InputError(f"scales are {steps.tolist()}; expected rising scales above 0. Sort them, leave 0 out.")
    if drops.ndim != 2 or drops.shape[1] != steps.size:
        raise InputError(f"drops have shape {drops.shape}; expected one per scale, {steps.size}, for each direction.")
    if not 0 <= tau < 1:
        raise InputError(f"tau is {tau}; expected a tolerated drop of at least 0 and below 1.")
    return steps, drops


def _first_crossings(scales: Floats, curves: Floats, tau: float) -> Floats:
    """For each curve (row) the first crossing of tau, infinite if there is none; NaN points are skipped."""
    rows = curves.shape[0]
    crossings = np.full(rows, math.inf)
    at, drop = np.zeros(rows), np.zeros(rows)
    for scale, column in zip(scales, curves.T, strict=True):
        there = ~np.isnan(column)
        first = there & (column > tau) & np.isinf(crossings)
        rise = np.where(first, column - drop, 1.0)
        crossings = np.where(first, at + (tau - drop) / rise * (scale - at), crossings)
        at, drop = np.where(there, scale, at), np.where(there, column, drop)
    return crossings
