"""Verdicts: gained, lost, kept, undecided or not measurable, each with its reason in words and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from catchment.errors import InputError
from catchment.records import Interval, Verdict
from catchment.statistics import checks
from catchment.statistics.checks import Floats
from catchment.statistics.intervals import flips, lower_bound, mean_interval, paired_interval
from catchment.statistics.quantiles import binomial_tail, normal_quantile
from catchment.statistics.sizes import required_n, required_n_bounded, spread_n

ABOVE_CHANCE = 0.15
GENERATED_FLOOR = 0.5


@dataclass(frozen=True)
class Decision:
    """A verdict on one task.

    Attributes:
        interval: For tuned - base, two-sided, simultaneous over the family.
        verdict, reason: What is claimed, and why, in plain words.
        admitted: Whether the base can do the task at all, so that a loss could be seen.
        flips_lost, flips_gained: Items that crossed a score of 1/2 downwards and upwards.
        decide_n: For "undecided": items in all that would decide with a probability of 80%.
    """

    interval: Interval
    verdict: Verdict
    reason: str
    admitted: bool
    flips_lost: int
    flips_gained: int
    decide_n: int | None = None


def decide(
    base: ArrayLike,
    tuned: ArrayLike,
    *,
    chance: float,
    margin: float = 0.02,
    alpha: float = 0.05,
    family: int = 1,
    generated: bool = False,
) -> Decision:
    """Say what happened to one task.

    With D the true mean of tuned - base over the item population, and m = ``family``:

    - *gained*: the two-sided interval at level 1 - alpha/m lies above 0;
    - *kept*: D <= -margin is refused, one-sided, at alpha/m. One-sided is enough, because for such a D only "kept"
      and the stricter "gained" would be wrong. A measurable drop inside the margin is "kept", and the reason says so;
    - *lost*: the two-sided interval lies below 0, and D <= -margin is not refused;
    - *undecided*: none of these; ``decide_n`` is the smaller of the n that would show "kept" at the flip rate seen
      if nothing was truly lost, and the n that would show the difference seen if it is the true one (80% power);
    - *not measurable*: the base is not admitted. Admitted means: base score at least chance + 0.15 (``generated``: at
      least 0.5) with its 95% interval above chance. A base that cannot do a task has nothing to lose or keep; it can
      gain, if the tuned model's own interval is above chance.

    Each task's verdict is wrong with probability at most alpha/m, so any of m is wrong with at most alpha. For 0/1
    scores this rests on score tests, which are not exact: at alpha = 0.05 the largest exact rate of a wrong "kept" in
    our grid (100 to 310 items, a true drop of exactly the margin) is 0.052.

    Args:
        base, tuned: Shape (n,), scores in [0, 1], the same items in the same order.
        chance: Score of guessing, in [0, 1).
        margin: Drop that does not matter, in (0, 1).
        alpha: Error over the whole family.
        family: How many tasks are judged together.
        generated: Answers are generated (also refusals), so that chance means nothing.

    Raises:
        InputError: Empty, unequal lengths, NaN, scores outside [0, 1], or a setting out of range.

    >>> decide([1] * 190 + [0] * 10, [1] * 190 + [0] * 10, chance=0.25).verdict
    'kept'
    """
    before, after = checks.scores(base, "base"), checks.scores(tuned, "tuned")
    checks.same_length(before, after)
    if not 0 <= chance < 1:
        raise InputError(f"chance is {chance}; expected the score of guessing, at least 0 and below 1.")
    checks.open_unit(margin, "margin")
    error = checks.error_rate(1 - checks.open_unit(alpha, "alpha"), family)
    interval = paired_interval(before, after, level=1 - alpha, family=family)
    admitted, refusal = _admission(before, chance, generated)
    decide_n = None
    if admitted:
        verdict, reason = _verdict(before, after, interval, margin, error)
        if verdict == "undecided":
            decide_n = _decide_n(before, after, margin, error)
            reason += f" About {decide_n} items would decide."
    else:
        verdict, reason = _without_base(after, interval, chance, error, refusal)
    return Decision(interval, verdict, reason, admitted, *flips(before, after), decide_n)


def admission(base: ArrayLike, chance: float, generated: bool = False) -> tuple[bool, str]:
    """Whether a model is good enough at a task to have something to lose there, and if not, why.

    Score at least chance + 0.15 (``generated``: at least 0.5), with its 95% interval above chance.

    Raises:
        InputError: Empty, NaN, or scores outside [0, 1].

    >>> admission([1, 0, 0, 0] * 50, chance=0.25)[0]
    False
    """
    return _admission(checks.scores(base, "base"), chance, generated)


def _admission(base: Floats, chance: float, generated: bool) -> tuple[bool, str]:
    own = mean_interval(base)
    needed = GENERATED_FLOOR if generated else chance + ABOVE_CHANCE
    said = f"the base scores {own.estimate:.3f} [{own.low:.3f}, {own.high:.3f}] on {base.size} items"
    if own.estimate < needed - 1e-12:
        rule = "generated answers" if generated else f"chance {chance:.3f} + {ABOVE_CHANCE}"
        return False, f"{said}, below the {needed:.3f} needed ({rule})"
    if own.low <= chance:
        return False, f"{said}, not clearly above chance {chance:.3f}"
    return True, ""


def _without_base(tuned: Floats, interval: Interval, chance: float, error: float, refusal: str) -> tuple[Verdict, str]:
    own = mean_interval(tuned, 1 - error)
    if interval.low > 0 and own.low > chance:
        return "gained", (
            f"{refusal[0].upper()}{refusal[1:]}; the tuned model scores {own.estimate:.3f} "
            f"[{own.low:.3f}, {own.high:.3f}], above chance {chance:.3f}, and {_said(interval)} is above 0."
        )
    return "not measurable", f"Nothing to lose that could be seen: {refusal}."


def _verdict(base: Floats, tuned: Floats, interval: Interval, margin: float, error: float) -> tuple[Verdict, str]:
    lost, gained = flips(base, tuned)
    seen = f"{_said(interval)} over {base.size} items ({lost} lost, {gained} gained)"
    if interval.low > 0:
        return "gained", f"{seen}: the whole interval is above 0."
    bound = lower_bound(base, tuned, error)
    if bound > -margin and _enough_items(base, tuned, margin, error):
        drop = f"a drop of {margin:g} is excluded (at most {max(-bound, 0.0):.3f} at {1 - error:.4g} confidence)"
        if interval.high < 0:
            return "kept", f"{seen}: measurably lower, but within the margin; {drop}."
        return "kept", f"{seen}: {drop}."
    if interval.high < 0:
        return "lost", f"{seen}: the whole interval is below 0, and a drop of {margin:g} is not excluded."
    return "undecided", f"{seen}: neither a change nor a drop of {margin:g} is excluded."


def _said(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _enough_items(base: Floats, tuned: Floats, margin: float, error: float) -> bool:
    """Where flips are rarest the score bound is too bold: at 133 items, alpha 0.05 and margin 0.02 it says "kept"
    without a flip, which happens with probability 0.068 though 2% are lost. So the exact binomial test of the net
    loss must agree; it only ever matters there."""
    if not (checks.is_binary(base) and checks.is_binary(tuned)):
        return True
    lost, gained = flips(base, tuned)
    return binomial_tail(max(lost - gained, 0), base.size, margin) <= error


def _decide_n(base: Floats, tuned: Floats, margin: float, error: float) -> int:
    """See :func:`decide`. A candidate that the data at hand have already disappointed (not above n) is dropped."""
    d = tuned - base
    moment, mean, n = float(np.mean(d**2)), float(d.mean()), d.size
    binary = checks.is_binary(base) and checks.is_binary(tuned)
    if binary:
        candidates = [required_n(moment, margin, error)]
        quantile = normal_quantile(error / 2)
    else:
        candidates = [required_n_bounded(moment, margin, error)]
        quantile = math.sqrt(-2 * math.log(error / 2))
    if mean != 0:
        candidates.append(math.ceil(spread_n(max(moment - mean**2, 0.0), mean, quantile)))
    return min((c for c in candidates if c > n), default=n + 1)
