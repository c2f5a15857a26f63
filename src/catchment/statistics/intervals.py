"""Confidence intervals over the item population: what a score, and a difference of two scores, may truly be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from catchment.errors import InputError
from catchment.records import Interval
from catchment.statistics import checks
from catchment.statistics.betting import betting_lower
from catchment.statistics.binomial import tango_lower, wilson
from catchment.statistics.checks import Floats
from catchment.statistics.quantiles import normal_quantile, student_quantile


def flips(base: Floats, tuned: Floats) -> tuple[int, int]:
    """(lost, gained): items right for one model and wrong for the other; a score of at least 1/2 counts as right.

    >>> flips(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0]))
    (1, 1)
    """
    was, now = base >= 0.5, tuned >= 0.5
    return int((was & ~now).sum()), int((now & ~was).sum())


def paired_interval(base: ArrayLike, tuned: ArrayLike, *, level: float = 0.95, family: int = 1) -> Interval:
    """Interval for the mean of tuned - base over the population the items were drawn from.

    When every score is 0 or 1: Tango's score interval for the difference of paired proportions. Otherwise: the
    betting interval for differences in [-1, 1], which covers at every n. Neither has width zero, even when the two
    models agree on every item.

    Args:
        base, tuned: Shape (n,), scores in [0, 1], the same items in the same order.
        level: Probability with which all ``family`` intervals hold together.
        family: How many intervals are read together; each is computed at ``1 - (1 - level)/family`` (Bonferroni),
            which is the level the returned interval names.

    Raises:
        InputError: Empty, unequal lengths, NaN, or a score outside [0, 1].

    Source: Tango 1998, Statistics in Medicine 17:891-908; Waudby-Smith & Ramdas 2024, arXiv 2010.09686.

    >>> same = paired_interval([1, 0, 1, 1] * 50, [1, 0, 1, 1] * 50)
    >>> round(same.low, 4), round(same.high, 4)
    (-0.0188, 0.0188)
    """
    before, after = _pair(base, tuned)
    error = checks.error_rate(level, family)
    difference = after - before
    if checks.is_binary(before) and checks.is_binary(after):
        lost, gained = flips(before, after)
        z, n, method = normal_quantile(error / 2), difference.size, "tango"
        low, high = tango_lower(lost, gained, n, z), -tango_lower(gained, lost, n, z)
    else:
        low, method = lower_bound(before, after, error / 2), "betting"
        high = -lower_bound(after, before, error / 2)
    return Interval(float(difference.mean()), low, high, 1 - error, method, int(family))


def lower_bound(base: Floats, tuned: Floats, error: float) -> float:
    """One-sided lower bound for the mean of tuned - base; wrong with probability ``error``. The method is chosen
    as in :func:`paired_interval`.

    >>> round(lower_bound(np.ones(100), np.ones(100), error=0.05), 4)
    -0.0263
    """
    if checks.is_binary(base) and checks.is_binary(tuned):
        lost, gained = flips(base, tuned)
        return tango_lower(lost, gained, base.size, normal_quantile(error))
    return 2 * betting_lower((1 + tuned - base) / 2, error) - 1


def mean_interval(scores: ArrayLike, level: float = 0.95) -> Interval:
    """Interval for the mean score of one model: Wilson when every score is 0 or 1, betting otherwise.

    Args:
        scores: Shape (n,), in [0, 1].
        level: Coverage of this one interval.

    Raises:
        InputError: Empty, NaN, or a score outside [0, 1].

    >>> half = mean_interval([1, 0] * 50)
    >>> round(half.low, 3), round(half.high, 3)
    (0.404, 0.596)
    """
    values = checks.scores(scores, "scores")
    error = checks.error_rate(level, 1)
    if checks.is_binary(values):
        return wilson(float(values.sum()), values.size, level)
    low, high = betting_lower(values, error / 2), 1 - betting_lower(1 - values, error / 2)
    return Interval(float(values.mean()), low, high, level, "betting")


def unbounded_paired_interval(base: ArrayLike, tuned: ArrayLike, level: float = 0.95, family: int = 1) -> Interval:
    """Interval for the mean of tuned - base where scores have no bounds, such as bits per byte: Student's t.

    ``mean(d) +- t_{n-1} sd(d) / sqrt(n)``. Unlike the others it trusts the central limit theorem: with few or very
    unequal items it may be too narrow, and for two models that agree exactly it has width zero.

    Raises:
        InputError: Fewer than two items, unequal lengths, NaN or infinity.

    >>> interval = unbounded_paired_interval([1.0, 2.0, 3.0, 4.0], [1.5, 2.4, 3.5, 4.6])
    >>> round(interval.low, 2), round(interval.high, 2)
    (0.37, 0.63)
    """
    before, after = checks.finite(base, "base"), checks.finite(tuned, "tuned")
    checks.same_length(before, after)
    error = checks.error_rate(level, family)
    d = after - before
    if d.size < 2:
        raise InputError("1 item; expected at least 2, because one difference has no spread. Add passages.")
    half = student_quantile(error / 2, d.size - 1) * float(d.std(ddof=1) / np.sqrt(d.size))
    mean = float(d.mean())
    return Interval(mean, mean - half, mean + half, 1 - error, "t", int(family))


def _pair(base: ArrayLike, tuned: ArrayLike) -> tuple[Floats, Floats]:
    before, after = checks.scores(base, "base"), checks.scores(tuned, "tuned")
    checks.same_length(before, after)
    return before, after
