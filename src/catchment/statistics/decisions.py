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
FEW_ITEMS = 32
"""Items up to which the number that would decide does not rest on their spread alone."""
LOW = "the base scores too low"
FEW = "too few items"


@dataclass(frozen=True)
class Decision:
    """A verdict on one task.

    Attributes:
        interval: For tuned - base, two-sided, simultaneous over the family.
        verdict, reason: What is claimed, and why, in plain words.
        admitted: Whether the base does the task well enough for "kept" to mean something.
        can_lose: Whether the base's own interval lies above chance, so that a loss can be shown.
        flips_lost, flips_gained: Items that crossed a score of 1/2 downwards and upwards.
        decide_n: For "undecided": items in all that would decide with a probability of 80%.
        note: What is to be read beside the verdict, in one clause; empty where the verdict says it all.
    """

    interval: Interval
    verdict: Verdict
    reason: str
    admitted: bool
    can_lose: bool
    flips_lost: int
    flips_gained: int
    decide_n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class _Base:
    """What the base's own scores allow to be claimed. ``refusal``: why "kept" may not be; ``note``: in few words."""

    can_lose: bool
    refusal: str = ""
    note: str = ""

    @property
    def admitted(self) -> bool:
        return not self.refusal


# long: what each verdict claims is said in one place
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

    - *gained*: the two-sided interval at level 1 - alpha/m lies above 0, and so does the tuned model's own interval
      above chance: from below chance up to chance is a change, and no capability;
    - *kept*: D <= -margin is refused, one-sided, at alpha/m, and the base is admitted. One-sided is enough, because for
      such a D only "kept" and the stricter "gained" would be wrong. A measurable drop inside the margin is "kept", and
      the reason says so;
    - *lost*: the two-sided interval lies below 0, the base's own 95% interval lies above chance, and it is not "kept".
      Nothing more is asked: a loss that is shown is always said;
    - *undecided*: none of these, and the base is admitted; ``decide_n`` is the smaller of the n that would show "kept"
      at the flip rate seen if nothing was truly lost, and the n that would show the difference seen if it is the true
      one (80% power);
    - *not measurable*: what remains: the base is not admitted, and neither a gain nor a loss is shown. The interval is
      given all the same.

    Admitted means: base score at least chance + 0.15 (``generated``: and at least 0.5) with its 95% interval above
    chance.

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
    own = _base(before, chance, generated)
    verdict, reason = _verdict(before, after, interval, own, chance=chance, margin=margin, error=error)
    decide_n = None
    if verdict == "undecided":
        decide_n = _decide_n(before, after, margin, error)
        reason += f" About {decide_n} items would decide."
    note = _note(verdict, interval, own)
    return Decision(interval, verdict, reason, own.admitted, own.can_lose, *flips(before, after), decide_n, note)


def admission(base: ArrayLike, chance: float, generated: bool = False) -> tuple[bool, str]:
    """Whether a model does a task well enough for "kept" to mean something, and if not, why.

    Score at least chance + 0.15 (``generated``: and at least 0.5), with its 95% interval above chance.

    Raises:
        InputError: Empty, NaN, or scores outside [0, 1].

    >>> admission([1, 0, 0, 0] * 50, chance=0.25)[0]
    False
    """
    own = _base(checks.scores(base, "base"), chance, generated)
    return own.admitted, own.refusal


def _base(base: Floats, chance: float, generated: bool) -> _Base:
    own = mean_interval(base)
    needed = max(chance + ABOVE_CHANCE, GENERATED_FLOOR if generated else 0.0)
    said = f"the base scores {own.estimate:.3f} [{own.low:.3f}, {own.high:.3f}] on {_items(base)}"
    can_lose = own.low > chance
    reached = own.estimate >= needed - 1e-12
    if reached and can_lose:
        return _Base(can_lose)
    if reached:
        return _Base(can_lose, f"{said}: too few to be clearly above chance {chance:.3f}", FEW)
    rule = "generated answers" if needed > chance + ABOVE_CHANCE else f"chance {chance:.3f} + {ABOVE_CHANCE}"
    if own.high >= needed:
        return _Base(can_lose, f"{said}: too few to tell whether it reaches the {needed:.3f} needed ({rule})", FEW)
    return _Base(can_lose, f"{said}, below the {needed:.3f} needed ({rule})", LOW)


def _verdict(
    base: Floats, tuned: Floats, interval: Interval, own: _Base, *, chance: float, margin: float, error: float
) -> tuple[Verdict, str]:
    seen = f"{_said(interval)} over {_items(base)} ({_moved(base, tuned)})"
    level = mean_interval(tuned, 1 - error)
    if interval.low > 0 and level.low > chance:
        now = f"the tuned model scores {level.estimate:.3f} [{level.low:.3f}, {level.high:.3f}]"
        above = "" if own.admitted else f"; {now}, above chance {chance:.3f}, and {own.refusal}"
        return "gained", f"{seen}: the whole interval is above 0{above}."
    if own.admitted:
        bound = lower_bound(base, tuned, error)
        if bound > -margin and _enough_items(base, tuned, margin, error):
            drop = f"a drop of {margin:g} is excluded (at most {max(-bound, 0.0):.3f} at {1 - error:.4g} confidence)"
            lower = "measurably lower, but within the margin; " if interval.high < 0 else ""
            return "kept", f"{seen}: {lower}{drop}."
    if interval.high < 0 and own.can_lose:
        return "lost", f"{seen}: the whole interval is below 0{_beside(own, margin)}."
    if own.admitted:
        return "undecided", f"{seen}: neither a change nor a drop of {margin:g} is excluded."
    return "not measurable", f"{seen}: {_unclaimed(interval, own, chance)}."


def _beside(own: _Base, margin: float) -> str:
    if own.admitted:
        return f", and a drop of {margin:g} is not excluded"
    return f"; {own.refusal}: enough to show a loss, though not to call it kept"


def _unclaimed(interval: Interval, own: _Base, chance: float) -> str:
    """Why a task whose base is not admitted has no verdict."""
    if interval.high < 0:
        return f"lower, but {own.refusal}, and not clearly above chance {chance:.3f}, so that no capability was lost"
    if interval.low > 0:
        return f"higher, but the tuned model is not clearly above chance {chance:.3f}, and {own.refusal}"
    return f"neither a gain nor a loss is shown, and {own.refusal}, so that it cannot be called kept"


def _note(verdict: Verdict, interval: Interval, own: _Base) -> str:
    if verdict == "kept":
        return "measurably lower, within the margin" if interval.high < 0 else ""
    if verdict == "gained" and not own.can_lose:
        return "the base could not do this task"
    return own.note if verdict == "not measurable" else ""


def _moved(base: Floats, tuned: Floats) -> str:
    """How many items changed: 0/1 scores flip, graded ones move."""
    if checks.is_binary(base) and checks.is_binary(tuned):
        lost, gained = flips(base, tuned)
        return f"{lost} lost, {gained} gained"
    return f"{int((tuned < base).sum())} lower, {int((tuned > base).sum())} higher"


def _items(scores: Floats) -> str:
    return "1 item" if scores.size == 1 else f"{scores.size} items"


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
    """See :func:`decide`. A candidate that the data at hand have already disappointed (not above n) is dropped; of few
    items, whose spread says little, the same ones are counted again instead."""
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
        shown = math.ceil(spread_n(max(moment - mean**2, 0.0), mean, quantile))
        candidates.append(_repeated_n(base, tuned, error) if shown <= n <= FEW_ITEMS else shown)
    return min((c for c in candidates if c > n), default=n + 1)


def _repeated_n(base: Floats, tuned: Floats, error: float) -> int:
    """How many items would show the difference if all others were as these; 0: not eight times as many."""
    for times in range(2, 9):
        interval = paired_interval(np.tile(base, times), np.tile(tuned, times), level=1 - error)
        if interval.low > 0 or interval.high < 0:
            return times * base.size
    return 0
