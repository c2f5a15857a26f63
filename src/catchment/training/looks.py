"""What a fence's look says of a drop, and how sure it may be after looking again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from catchment.records import FenceEvidence, FenceOutcome
from catchment.statistics import decide_mean


def spend(alpha: float, look: int, tasks: int) -> float:
    """Error of one task at the ``look``-th look, from 1: ``alpha * 6 / (pi^2 look^2) / tasks``.

    Summed over tasks and all looks that may ever come it is alpha.

    >>> round(spend(0.05, 1, 1), 4)
    0.0304
    """
    return alpha * 6 / (math.pi**2 * look**2) / tasks


def verdict(
    drops: Sequence[float], max_drop: float, near: float, error: float, *, last: bool
) -> tuple[FenceOutcome, FenceEvidence] | None:
    """Where a drop stands after these items; ``None``: not clear yet, and more items are to come.

    "broken (shown)" while the true drop is at most ``max_drop`` has a probability of at most ``error / 2``, and so has
    an early "inside (shown)" while it is above ``near * max_drop``, whenever one stops (see
    :func:`~catchment.statistics.decide_mean`).

    Args:
        drops: Base - now per item, in the order drawn, in [-1, 1].
        last: All items are in: the mean decides what is not shown.

    >>> verdict([0.5, 0.6] * 50, max_drop=0.02, near=0.75, error=0.05, last=False)
    ('broken', 'shown')
    >>> verdict([0.0, 0.1], max_drop=0.02, near=0.75, error=0.05, last=True)
    ('broken', 'estimated')
    """
    if decide_mean(drops, max_drop, error / 2) == "outside":
        return "broken", "shown"
    clear = decide_mean(drops, near * max_drop, error / 2) == "inside"
    if not last:
        return ("inside", "shown") if clear else None
    mean = math.fsum(drops) / len(drops)
    if above(mean, max_drop):
        return "broken", "estimated"
    if above(mean, near * max_drop):
        return "near", "estimated"
    return "inside", "shown" if clear else "estimated"


def above(drop: float, bound: float) -> bool:
    return drop > bound + 1e-12  # 2 of 200 are not above 0.5 * 0.02
