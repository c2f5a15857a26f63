"""Quantiles and tails. ``scipy.special`` takes 0.3 s to import, so it waits until one of these is called."""

from __future__ import annotations

import math
from statistics import NormalDist


def normal_quantile(error: float) -> float:
    """The z that a standard normal exceeds with probability ``error``.

    >>> round(normal_quantile(0.025), 2)
    1.96
    """
    return -NormalDist().inv_cdf(error)


def normal_tail(z: float) -> float:
    """The probability with which a standard normal exceeds z.

    >>> round(normal_tail(1.96), 3)
    0.025
    """
    return math.erfc(z / math.sqrt(2)) / 2


def student_quantile(error: float, freedom: float) -> float:
    """The t that Student's distribution exceeds with probability ``error``.

    >>> round(student_quantile(0.025, 9), 3)
    2.262
    """
    from scipy.special import stdtrit

    return float(-stdtrit(freedom, error))


def chi_square_quantile(probability: float, freedom: float) -> float:
    """The x with P(chi-square with ``freedom`` degrees of freedom <= x) = ``probability``.

    >>> round(chi_square_quantile(0.95, 1), 2)
    3.84
    """
    from scipy.special import gammaincinv

    return 2 * float(gammaincinv(freedom / 2, probability))


def beta_quantile(a: float, b: float, probability: float) -> float:
    """The x with P(Beta(a, b) <= x) = ``probability``.

    >>> round(beta_quantile(2, 3, 0.5), 3)
    0.386
    """
    from scipy.special import betaincinv

    return float(betaincinv(a, b, probability))


def binomial_tail(successes: int, n: int, rate: float) -> float:
    """P(X <= successes) for X ~ Binomial(n, rate).

    >>> round(binomial_tail(1, 2, 0.5), 3)
    0.75
    """
    from scipy.special import bdtr

    return float(bdtr(successes, n, rate))
