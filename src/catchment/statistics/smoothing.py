"""Bounds on scores that are smoothed by Gaussian noise on the weights, and on shares of directions.

``p`` is the smoothed score ``E S(theta + sigma z)``, S in [0, 1], z standard normal in the subspace; ``distance`` is
the L2 length of a move *within that subspace*, ``sigma`` the noise per weight. Numbering as in arXiv 2505.17646 v3.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from catchment.errors import InputError
from catchment.records import Strict
from catchment.statistics import checks
from catchment.statistics.binomial import clopper_pearson

_NORMAL = NormalDist()


def weak_law(p: float, distance: float, sigma: float) -> float:
    """Lower bound ``p - distance/(sqrt(2 pi) sigma)`` on the smoothed score after a move (Thm 4.2), not below 0.

    >>> round(weak_law(0.9, 1.0, 1.0), 3)
    0.501
    """
    _move(p, distance, sigma)
    return max(p - distance / (math.sqrt(2 * math.pi) * sigma), 0.0)


def strong_law(p: float, distance: float, sigma: float) -> float:
    """Lower bound ``Phi(Phi^-1(p) - distance/sigma)`` on the smoothed score after a move (Thm 4.3).

    The best possible: a half-space reaches it. For a certificate ``p`` is a lower confidence bound, not an estimate.
    It bounds the *smoothed* score of the moved weights, not their own.

    >>> round(strong_law(0.9, 1.0, 1.0), 3)
    0.611
    """
    _move(p, distance, sigma)
    if p in (0.0, 1.0):  # the score is constant but for a set of noise of measure zero, whatever the centre
        return float(p)
    return _NORMAL.cdf(_NORMAL.inv_cdf(p) - distance / sigma)


def certified_radius(p: float, sigma: float, q: float = 0.5) -> float:
    """``R(q) = sigma (Phi^-1(p) - Phi^-1(q))``: any move shorter than R keeps the smoothed score above q.

    0 when p <= q; infinite when p is exactly 1, which no confidence bound is.

    >>> round(certified_radius(0.99, 0.003), 4)
    0.007
    """
    _move(p, 0.0, sigma)
    checks.open_unit(q, "q")
    if p <= q:
        return 0.0
    return math.inf if p == 1 else sigma * (_NORMAL.inv_cdf(p) - _NORMAL.inv_cdf(q))


def hoeffding(k: int, error: float) -> float:
    """Half-width ``sqrt(ln(1/error)/(2 k))`` of the one-sided bound for a mean of k independent draws in [0, 1].

    >>> [round(hoeffding(k, 0.05), 3) for k in (10, 100, 1000)]
    [0.387, 0.122, 0.039]
    """
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise InputError(f"k is {k}; expected the number of independent draws, 1 or more.")
    return math.sqrt(-math.log(checks.open_unit(error, "error")) / (2 * k))


def strict(hits: int, directions: int, scale: float, items_each: int, level: float = 0.99) -> Strict:
    """Share of random directions at one scale on which nothing was lost, with its exact two-sided interval.

    A direction counts as one trial however many items it was scored on, so that shared noise does no harm. "Nothing
    lost" means: on these ``items_each`` items. More of them make it stricter, so compare only at equal numbers.

    Raises:
        InputError: Not 0 <= hits <= directions with at least one direction, a scale or items_each not above 0.

    >>> round(strict(51, 51, scale=0.01, items_each=50).interval.low, 3)
    0.901
    """
    if not scale > 0 or items_each < 1:
        raise InputError(f"scale is {scale} and items_each {items_each}; expected a scale above 0 and at least 1 item.")
    return Strict(scale, directions, hits, items_each, clopper_pearson(hits, directions, level))


def _move(p: float, distance: float, sigma: float) -> None:
    if not 0 <= p <= 1:
        raise InputError(f"p is {p}; expected a smoothed score between 0 and 1.")
    if not 0 <= distance < math.inf or not 0 < sigma < math.inf:
        raise InputError(f"distance is {distance} and sigma {sigma}; expected a length >= 0 and a noise > 0.")
