"""Intervals of mean scores, from items where there are any, else from standard errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from catchment.commands.study.scores import Scored
from catchment.records import Interval
from catchment.statistics import mean_interval

LEVEL = 0.95
UNKNOWN = "unknown"
"""Method of an interval that no number of the table bounds: the whole range of a score, or of a change."""
ROUNDING = 1e-12
"""A variance of scores below this is that of equal scores, computed in float64."""
ENOUGH = 30
"""Graded items from which the normal distribution of their mean is relied on for a band of a figure."""


def is_binary(scores: NDArray[np.float64]) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def with_error(scored: Scored) -> Scored:
    """The same with its standard error over items, where it has items and says none."""
    scores = scored.scores
    if scored.se is not None or scores is None or scores.size < 2:
        return scored
    n, mean = scores.size, scored.mean
    variance = max((float(scores @ scores) - n * mean**2) / (n - 1), 0.0)
    return dataclasses.replace(scored, se=math.sqrt(variance / n) if variance > ROUNDING else 0.0)


def standard_error(seeds: Sequence[Scored]) -> float | None:
    """Item standard error of the mean over seeds; the items are shared, so that seeds do not make it smaller."""
    known = [s.se for s in seeds if s.se is not None]
    return sum(known) / len(known) if known and len(known) == len(seeds) else None


def score_interval(seeds: Sequence[Scored]) -> Interval:
    """95% interval of a mean score over items, and over seeds where there are several.

    One seed: Wilson for 0/1 scores, ``mean +- t se`` for graded ones, betting where these are few; for a table of means
    ``mean +- z se``. Several: ``mean +- t sqrt(se^2 + s^2 / k)`` with s the standard deviation over k seeds and
    k - 1 degrees of freedom, which counts the item noise within s twice: it is never too narrow for that reason.
    """
    if len(seeds) > 1:
        return _over_seeds(seeds)
    (scored,) = seeds
    if scored.scores is not None and scored.scores.size:
        scores = scored.scores
        if is_binary(scores):
            return _proportion(int(scores.sum()), scores.size)
        if scores.size < ENOUGH or not scored.se:
            return mean_interval(scores, LEVEL)
        return clipped(scored.mean, _student(scores.size - 1) * scored.se, "t", (0.0, 1.0))
    if scored.se is None:
        return Interval(scored.mean, 0.0, 1.0, 1.0, UNKNOWN)
    return clipped(scored.mean, normal(1 - LEVEL) * scored.se, "normal", (0.0, 1.0))


def clipped(estimate: float, half: float, method: str, bounds: tuple[float, float], level: float = LEVEL) -> Interval:
    return Interval(estimate, max(estimate - half, bounds[0]), min(estimate + half, bounds[1]), level, method)


def normal(error: float) -> float:
    """The z that the absolute value of a standard normal exceeds with probability ``error``."""
    return -NormalDist().inv_cdf(error / 2)


@lru_cache(maxsize=4096)
def _student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


@lru_cache(maxsize=65536)
def _proportion(successes: int, n: int) -> Interval:
    """A report of many cells meets the same counts again and again."""
    return mean_interval(np.repeat([1.0, 0.0], [successes, n - successes]), LEVEL)


def _over_seeds(seeds: Sequence[Scored]) -> Interval:
    means = np.array([s.mean for s in seeds])
    error = standard_error(seeds)
    half = _student(means.size - 1) * math.sqrt((error or 0.0) ** 2 + float(means.var(ddof=1)) / means.size)
    return clipped(float(means.mean()), half, "t over seeds" if error is None else "t over items and seeds", (0.0, 1.0))
