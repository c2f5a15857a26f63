"""Confidence sequences for the mean of bounded draws: valid however long one looks, and whenever one stops.

Someone bets, draw by draw, that the mean is above m; bets use earlier draws only. If the mean is at most m, the
capital is a supermartingale that starts at 1, so it *ever* reaches 1/e with probability at most e (Ville). Scaled to
[0, 1], ``y = (x - low)/(high - low)`` and ``t = (m - low)/(high - low)``, one bettor's capital is
``prod_i (1 + l_i (y_i - t))`` with ``0 <= l_i < 1/t``. The capital used is a weighted mean over five bettors, again
a supermartingale, at most ln(1/weight) behind each of them:

- four fixed bets ``l = share/t``. The share of 0.99 decides draws that hardly vary in nearly the smallest number that
  any valid rule can do with; the smaller ones survive rare large draws;
- one plug-in bet ``l_i = sqrt(2 ln(1/e) / (v_{i-1} i ln(1 + i)))``, at most ``0.95/t``, with v the variance of the
  draws before (Waudby-Smith & Ramdas 2024, arXiv 2010.09686, eq. 26 for confidence sequences). It knows no final n.

Every factor falls in m, so the m that are refused form an interval, and one bisection finds its end.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from catchment.errors import InputError
from catchment.records import Interval, Outcome
from catchment.statistics import checks
from catchment.statistics.betting import variance_before
from catchment.statistics.checks import Floats

# chosen on simulated draws of other shapes and sizes than the tests use; validity does not depend on them
SHARES = (0.99, 0.6, 0.3, 0.15)  # of the largest bet; a bet of all of it would be ruined by one draw
PLUG_IN_SHARE = 0.95
WEIGHTS = (0.5, 0.08, 0.06, 0.06, 0.3)  # of the four shares and the plug-in bet
_HALVINGS = 40  # of [low, high]: to 1e-12 of the range
_MOST_UNITS = 10**8


def decide_mean(values: ArrayLike, tau: float, error: float, low: float = -1.0, high: float = 1.0) -> Outcome:
    """Whether the mean of i.i.d. draws is shown to be at most ``tau``, shown to be above it, or neither yet.

    "inside": the capital that bets on a mean below tau has reached 1/error; "outside": the one that bets on a mean
    above tau has. The first to get there decides, so what was decided on the first draws stays decided when more
    follow, and the answer may be asked for after every draw.

    Only one of the two statements can be wrong, "inside" if the mean is above tau and "outside" if it is not; it is
    wrong with probability at most ``error``, at every n, and at any stopping rule.

    Args:
        values: Shape (n,), in the order drawn, in [low, high]. None at all is "undecided".
        tau: What the mean is held against, with low < tau < high.
        error: Probability of a wrong statement, in (0, 1).
        low, high: Bounds known before the draws, not read off them. Tighter bounds decide sooner: a drop of scores
            cannot exceed the largest score of the base on any item.

    Raises:
        InputError: A value outside the bounds or NaN, tau not between them, an error not in (0, 1).

    Cost: 10 passes over n numbers; 0.1 ms for 500.

    >>> decide_mean([0.0] * 120, tau=0.05, error=0.05 / 8), decide_mean([0.4, 0.5] * 12, tau=0.05, error=0.05 / 8)
    ('inside', 'outside')
    """
    draws, middle = _unit(values, low, high, empty=True), _place(tau, low, high)
    checks.open_unit(error, "error")
    if not draws.size:
        return "undecided"
    above = _first_reach(_log_capital(draws, middle, error), error)
    below = _first_reach(_log_capital(1 - draws, 1 - middle, error), error)
    if above == below:  # neither: a draw that makes one of the two grow shrinks the other
        return "undecided"
    return "outside" if above < below else "inside"


def mean_sequence(values: ArrayLike, error: float, low: float = -1.0, high: float = 1.0) -> Interval:
    """Two-sided interval for the mean that holds at all n at once with probability at least 1 - error.

    The intersection of the intervals after each draw, so it never widens as draws are added; ``error/2`` goes to each
    end. It agrees with :func:`decide_mean` at ``error/2``: that one says "inside" when ``high`` is below tau.
    ``estimate`` is the plain mean of the draws. With probability at most ``error`` the intersection
    is empty; then ``low`` and ``high`` are both the lower end.

    Args: as for :func:`decide_mean`; at least one value. Cost: 400 passes over n numbers; 5 ms for 500.

    Raises:
        InputError: No value, a value outside the bounds or NaN, an error not in (0, 1).

    >>> interval = mean_sequence([0.0] * 200, error=0.05)
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.02, 0.02)
    """
    draws = _unit(values, low, high, empty=False)
    side = checks.open_unit(error, "error") / 2
    width = high - low
    lower = low + width * _largest_refused(draws, side)
    upper = high - width * _largest_refused(1 - draws, side)
    mean = low + width * float(draws.mean())
    return Interval(mean, lower, max(lower, upper), 1 - error, "betting sequence")


def units_needed(tau: float, error: float, high: float = 1.0) -> int:
    """Draws of exactly 0 that :func:`decide_mean` takes to say "inside", with ``low = -1``; other draws take more.

    No valid rule takes fewer than ``ln(error)/ln(1 - tau/high)``, because that many zeros are as likely as ``error``
    when a draw is ``high`` with probability tau/high; this one takes about 8% more. For plans.

    Raises:
        InputError: Not 0 < tau < high, or an error not in (0, 1).

    >>> units_needed(0.05, 0.05 / 8)
    106
    """
    if not 0 < tau < high:
        raise InputError(f"tau is {tau} and high {high}; expected 0 < tau < high, such as tau=0.05, high=1.")
    fewest = math.log(checks.open_unit(error, "error")) / math.log1p(-tau / high)
    n = 16 + 2 * math.ceil(fewest)
    while n < _MOST_UNITS:
        zeros = _unit(np.zeros(n), -1.0, high, empty=False)
        reached = _first_reach(_log_capital(1 - zeros, 1 - _place(tau, -1.0, high), error), error)
        if reached < n:
            return int(reached) + 1
        n *= 2
    raise InputError(f"tau is {tau} of {high}; it takes more than {_MOST_UNITS} units. Choose a larger tau.")


def _unit(values: ArrayLike, low: float, high: float, empty: bool) -> Floats:
    """The draws scaled to [0, 1]."""
    if not low < high:
        raise InputError(f"low is {low} and high {high}; expected low < high, such as -1 and 1.")
    if empty and np.size(values) == 0:
        return np.zeros(0)
    array = (checks.finite(values, "values") - low) / (high - low)
    outside = np.flatnonzero((array < -1e-9) | (array > 1 + 1e-9))
    if outside.size:
        place = int(outside[0])
        raise InputError(
            f"values[{place}] is {low + (high - low) * array[place]:g}; expected a value in [{low:g}, {high:g}]. "
            "Are the bounds those of a drop of the scores?"
        )
    return np.clip(array, 0, 1)


def _place(tau: float, low: float, high: float) -> float:
    if not low < tau < high:
        raise InputError(
            f"tau is {tau} and values lie in [{low:g}, {high:g}]; expected a tau between these bounds, because beyond "
            "them nothing is left to decide. Choose a tau smaller than the largest possible drop."
        )
    return (tau - low) / (high - low)


def _log_capital(draws: Floats, middle: float, error: float) -> Floats:
    """Log of the capital, after each draw, of who bets that the mean of draws in [0, 1] is above ``middle``."""
    i = np.arange(1, draws.size + 1)
    plug_in = np.sqrt(2 * math.log(1 / error) / (variance_before(draws) * i * np.log1p(i)))
    gain = draws - middle
    total = np.full(draws.size, -np.inf)
    bets: list[float | Floats] = [share / middle for share in SHARES]
    bets.append(np.minimum(plug_in, PLUG_IN_SHARE / middle))
    for weight, bet in zip(WEIGHTS, bets, strict=True):
        total = np.logaddexp(total, math.log(weight) + np.cumsum(np.log1p(bet * gain)))
    return total


def _first_reach(log_capital: Floats, error: float) -> int:
    """Index of the first draw after which the capital is at least 1/error; the number of draws if there is none."""
    reached = log_capital >= math.log(1 / error)
    return int(reached.argmax()) if reached.any() else log_capital.size


def _largest_refused(draws: Floats, error: float) -> float:
    """The largest m such that a mean of at most m was refused after one of the draws; 0 if there is none."""
    low, high = 0.0, 1.0
    goal = math.log(1 / error)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _log_capital(draws, middle, error).max() >= goal:
            low = middle
        else:
            high = middle
    return low
