"""How many items a verdict takes, and what a number of items buys. For plans: nothing here is a claim about data."""

from __future__ import annotations

import math

from catchment.errors import InputError
from catchment.statistics import checks
from catchment.statistics.betting import LARGEST_BET
from catchment.statistics.binomial import tango_lower
from catchment.statistics.quantiles import normal_quantile


def required_n(flip_rate: float, margin: float = 0.02, alpha: float = 0.05, family: int = 1, power: float = 0.8) -> int:
    """Items needed to call a 0/1 task "kept" with probability ``power`` when nothing was truly lost.

    ``n = (z_{1 - alpha/family} + z_power)^2 flip_rate / margin^2``, and never fewer than
    ``ln(alpha/family) / ln(1 - margin)``: with fewer items even no flip at all does not exclude a drop of ``margin``.

    A normal approximation: the power reached is about right from 5% flips on, and 0.66 instead of 0.8 at 2%.

    Args:
        flip_rate: Share of items on which the two models differ, in [0, 1].
        margin: Drop that must be excluded.

    >>> [required_n(f) for f in (0.02, 0.05, 0.10)]
    [310, 773, 1546]
    """
    if not 0 <= flip_rate <= 1:
        raise InputError(f"flip_rate is {flip_rate}; expected a share of items between 0 and 1.")
    error = checks.error_rate(1 - checks.open_unit(alpha, "alpha"), family)
    floor = math.log(error) / math.log1p(-checks.open_unit(margin, "margin"))
    z = normal_quantile(error)
    return math.ceil(max(floor, spread_n(flip_rate, margin, z, checks.open_unit(power, "power"))))


def required_n_bounded(second_moment: float, margin: float, error: float, power: float = 0.8) -> int:
    """Like :func:`required_n` for scores between 0 and 1, judged by the betting bound; ``second_moment`` is the
    mean of (tuned - base)^2. The betting bound takes ``sqrt(2 ln(1/error))`` where the normal one takes z.

    >>> required_n_bounded(0.01, margin=0.02, error=0.05)
    271
    """
    floor = -math.log(error) / math.log1p(LARGEST_BET * margin / (1 - margin))
    return math.ceil(max(floor, spread_n(second_moment, margin, math.sqrt(-2 * math.log(error)), power)))


def spread_n(second_moment: float, gap: float, quantile: float, power: float = 0.8) -> float:
    """``(quantile + z_power)^2 second_moment / gap^2``: items that tell apart two means at a distance of ``gap``.

    >>> round(spread_n(0.05, gap=0.02, quantile=1.645))
    773
    """
    return (quantile + normal_quantile(1 - power)) ** 2 * second_moment / gap**2


def expected_half_width(n: int, flip_rate: float, level: float = 0.95, family: int = 1) -> float:
    """Half-width of :func:`paired_interval` for n items with 0/1 scores and as many flips one way as the other.

    Without flips ``z^2 / (n + z^2)``; with many, about ``z sqrt(flip_rate / n)``.

    >>> round(expected_half_width(400, 0.05), 3)
    0.024
    """
    if n < 1 or not 0 <= flip_rate <= 1:
        raise InputError(f"n is {n} and flip_rate {flip_rate}; expected n >= 1 and a share of items between 0 and 1.")
    error = checks.error_rate(level, family)
    each = n * flip_rate / 2
    return -tango_lower(each, each, n, normal_quantile(error / 2))
