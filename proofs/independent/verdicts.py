"""A second opinion on a paired comparison, that shares no code with ``catchment.statistics``.

Exact McNemar on the items that flipped, a percentile bootstrap over items, Clopper-Pearson for a single score, and
the rules of ``catchment.statistics.decide`` written again from its description.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, binomtest

RESAMPLES = 10_000
FEW_FLIPS = 10
"""Below this a bootstrap has too little to resample (with no flip at all its interval has width zero), so that "kept"
also needs the exact binomial bound on the items lost."""


@dataclass(frozen=True)
class Opinion:
    """What the independent statistic says. ``low`` and ``high`` bound tuned - base at level 1 - alpha/family;
    ``floor`` is the one-sided lower bound at alpha/family; ``p`` is McNemar's two-sided p."""

    n: int
    base: float
    tuned: float
    lost: int
    gained: int
    low: float
    high: float
    floor: float
    p: float
    verdict: str


def bootstrap(difference: np.ndarray, quantiles: list[float], seed: int = 0) -> list[float]:
    """Percentiles of the mean over items drawn with replacement. difference: shape (n,)."""
    rng = np.random.default_rng(seed)
    means = [difference[rng.integers(0, difference.size, difference.size)].mean() for _ in range(RESAMPLES)]
    return [float(q) for q in np.quantile(means, quantiles)]


def exact_interval(right: int, n: int, error: float) -> tuple[float, float]:
    """Clopper-Pearson for one score."""
    found = binomtest(right, n).proportion_ci(1 - error, method="exact")
    return float(found.low), float(found.high)


def opinion(
    base: list[int], tuned: list[int], *, chance: float, generated: bool, margin: float, alpha: float, family: int
) -> Opinion:
    """The verdict on one task from 0/1 scores of the same items in the same order."""
    x, y = np.array(base), np.array(tuned)
    n, error = x.size, alpha / family
    lost, gained = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    low, high, floor = bootstrap((y - x).astype(float), [error / 2, 1 - error / 2, error])
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    up, down = low > 0 and p < error, high < 0 and p < error
    kept = floor > -margin and (lost + gained >= FEW_FLIPS or binom.cdf(lost, n, margin) <= error)
    needed = max(chance + 0.15, 0.5 if generated else 0.0)
    above = exact_interval(int(x.sum()), n, 0.05)[0] > chance
    able = x.mean() >= needed and above
    if up and exact_interval(int(y.sum()), n, error)[0] > chance:
        verdict = "gained"
    elif able and kept:
        verdict = "kept"
    elif above and down:
        verdict = "lost"
    else:
        verdict = "undecided" if able else "not measurable"
    return Opinion(n, float(x.mean()), float(y.mean()), lost, gained, low, high, floor, p, verdict)
