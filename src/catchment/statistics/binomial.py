"""Intervals for proportions: one proportion (Wilson, Clopper-Pearson) and two paired ones (Tango)."""

from __future__ import annotations

import math

from catchment.errors import InputError
from catchment.records import Interval
from catchment.statistics.checks import open_unit
from catchment.statistics.quantiles import beta_quantile, normal_quantile

_HALVINGS = 60  # of [-1, 1]: the root is good to the last bit of a float64


def wilson(successes: float, n: int, level: float) -> Interval:
    """Wilson's score interval for one proportion: {p : |x/n - p| <= z sqrt(p (1 - p) / n)} (Wilson 1927).

    >>> interval = wilson(9, 10, level=0.95)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.596, 0.982)
    """
    z = normal_quantile((1 - level) / 2)
    rate, weight = successes / n, z * z / n
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / n + weight / (4 * n))
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == n else min(centre + half, 1.0)
    return Interval(rate, low, high, level, "wilson")


def clopper_pearson(x: int, n: int, level: float = 0.95, sided: int = 2) -> Interval:
    """Exact interval for one proportion (Clopper & Pearson 1934); covers at least ``level``, always.

    ``low`` solves P(X >= x | low) = a and ``high`` solves P(X <= x | high) = a, with a = (1 - level)/2 for
    ``sided=2`` and a = 1 - level for ``sided=1``. With ``sided=1`` each end alone is a bound at ``level``: read one of
    them, chosen before the data. It is the same as the two-sided interval at level 1 - 2 (1 - level).

    Raises:
        InputError: When not 0 <= x <= n with n >= 1, the level is not between 0 and 1, or sided is not 1 or 2.

    >>> round(clopper_pearson(100, 100, 0.99, sided=1).low, 4)
    0.955
    """
    if n < 1 or not 0 <= x <= n or int(x) != x or int(n) != n:
        raise InputError(f"{x} successes of {n}; expected whole numbers with 0 <= successes <= n and n >= 1.")
    if sided not in (1, 2):
        raise InputError(f"sided is {sided}; expected 2 for an interval, or 1 where only one of its ends is read.")
    tail = (1 - open_unit(level, "level")) / sided
    low = 0.0 if x == 0 else beta_quantile(x, n - x + 1, tail)
    high = 1.0 if x == n else beta_quantile(x + 1, n - x, 1 - tail)
    return Interval(x / n, low, high, level, "clopper-pearson" if sided == 2 else "clopper-pearson one-sided")


def tango_statistic(lost: float, gained: float, n: float, difference: float) -> float:
    """Score statistic of "the true difference of the paired proportions is D" (Tango 1998, eq. 10).

    With b items lost, c gained and d = c - b: ``T = (d - n D) / sqrt(n (2 p + D (1 - D)))``, where p is the
    maximum-likelihood rate of losses under D: the larger root of ``2 n p^2 + B p - b D (1 - D) = 0`` with
    ``B = (2 n - c + b) D - b - c``. T falls in D, and is about standard normal when D is the truth.

    Args:
        lost, gained: Items that flipped one way and the other; need not be whole numbers.
        n: Items in all.
        difference: D, strictly between -1 and 1.

    >>> tango_statistic(5, 5, 100, 0.0), tango_statistic(0, 9, 100, 0.0)
    (0.0, 3.0)
    """
    linear = (2 * n - gained + lost) * difference - lost - gained
    product = lost * difference * (1 - difference)  # minus the constant term
    root = math.sqrt(max(linear**2 + 8 * n * product, 0.0))
    # two forms of the same root: neither subtracts numbers of like size
    rate = 2 * product / (root + linear) if linear > 0 else (root - linear) / (4 * n)
    rate = max(rate, -difference, 0.0)  # the rates of losses, p, and of gains, p + D, are not negative
    variance = n * (2 * rate + difference * (1 - difference))
    return (gained - lost - n * difference) / math.sqrt(max(variance, 1e-300))


def tango_lower(lost: float, gained: float, n: float, z: float) -> float:
    """Lower score bound for the difference of paired proportions: the D with T(D) = z, by bisection, in 0.1 ms.

    The upper bound is ``-tango_lower(gained, lost, n, z)``. Never degenerate: without any flip the bound is
    ``-z^2 / (n + z^2)``. For the two-sided interval at level L take ``z = normal_quantile((1 - L) / 2)``.
    Not exact: at 95%, with 0.5% of 800 items flipping and all of them lost, it covers 93.1%, the lowest value seen in
    our grid of 50 to 800 items and 0.5 to 30% flips.

    >>> round(tango_lower(0, 0, 100, 1.96), 4), round(-(1.96**2) / (100 + 1.96**2), 4)
    (-0.037, -0.037)
    """
    low, high = -1.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if tango_statistic(lost, gained, n, middle) > z:
            low = middle
        else:
            high = middle
    return (low + high) / 2
