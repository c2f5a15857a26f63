"""Quantiles and tails. ``scipy.special`` takes 0.3 s to import, so it waits until one of these is called."""

from __future__ import annotations

from statistics import NormalDist


def normal_quantile(error: float) -> float:
    """The z that a standard normal exceeds with probability ``error``."""
    return -NormalDist().inv_cdf(error)


def student_quantile(error: float, freedom: int) -> float:
    """The t that Student's distribution exceeds with probability ``error``."""
    from scipy.special import stdtrit

    return float(-stdtrit(freedom, error))


def beta_quantile(a: float, b: float, probability: float) -> float:
    """The x with P(Beta(a, b) <= x) = ``probability``."""
    from scipy.special import betaincinv

    return float(betaincinv(a, b, probability))


def binomial_tail(successes: int, n: int, rate: float) -> float:
    """P(X <= successes) for X ~ Binomial(n, rate)."""
    from scipy.special import bdtr

    return float(bdtr(successes, n, rate))
