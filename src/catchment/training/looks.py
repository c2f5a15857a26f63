"""What a fence's look says of a drop, and how sure it may be after looking again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from catchment.statistics import decide_mean

Outcome = Literal["inside", "near", "broken"]
Evidence = Literal["shown", "estimated"]


@dataclass(frozen=True)
class Look:
    """What one look found on one task.

    Attributes:
        n: Guard items scored; fewer than all where a clear answer came early.
        drop, low, high: Mean of base - now over these items, and the confidence sequence at this look's error.
        outcome: ``inside``; ``near``: the drop is above ``near * max_drop``; ``broken``: above ``max_drop``.
        evidence: ``shown``: by the confidence sequence. ``estimated``: the mean over all guard items is there, and
            it may be there by chance.
        factor: What the move was multiplied by; 1: it was left alone.
        after: Mean drop over all guard items at the factor; ``None`` where it was left alone.
    """

    step: int
    task: str
    n: int
    drop: float
    low: float
    high: float
    outcome: Outcome
    evidence: Evidence
    factor: float = 1.0
    after: float | None = None


def spend(alpha: float, look: int, tasks: int) -> float:
    """Error of one task at the ``look``-th look, from 1: ``alpha * 6 / (pi^2 look^2) / tasks``.

    Summed over tasks and all looks that may ever come it is alpha.

    >>> round(spend(0.05, 1, 1), 4)
    0.0304
    """
    return alpha * 6 / (math.pi**2 * look**2) / tasks


def verdict(
    drops: Sequence[float], max_drop: float, near: float, error: float, *, last: bool
) -> tuple[Outcome, Evidence] | None:
    """Where a drop stands after these items; ``None``: not clear yet, and more items are to come.

    "broken (shown)" while the true drop is at most ``max_drop`` has a probability of at most ``error / 2``, and so has
    an early "inside (shown)" while it is above ``near * max_drop``, whenever one stops (see
    :func:`~catchment.statistics.decide_mean`).

    Args:
        drops: Base - now per item, in the order drawn, in [-1, 1].
        last: All items are in: the mean decides what is not shown.
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
