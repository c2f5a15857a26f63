"""How basins stand to each other: what a bracket leaves open, and which ranks disjoint brackets decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from catchment.records import Basin, Interval

State = Literal["bracketed", "undecided", "open below", "open above", "open"]


def gap(basin: Basin) -> tuple[float, float] | None:
    """The scales inside the bracket at which the cap came before a decision: the smallest and the largest."""
    inside = [
        node.scale
        for node in basin.nodes
        if node.outcome == "undecided" and node.scale > basin.low and (basin.high is None or node.scale < basin.high)
    ]
    return (min(inside), max(inside)) if inside else None


def state_of(basin: Basin) -> State:
    """How much of a bracket was decided: both ends, one of them, none, or both with undecided scales between."""
    if basin.high is None:
        return "open above" if basin.low > 0 else "open"
    if basin.low == 0:
        return "open below"
    return "undecided" if gap(basin) else "bracketed"


def narrower(one: Basin, other: Basin) -> bool:
    """Whether the brackets are disjoint, ``one`` below ``other``: ``drop(one.high) > tau`` and
    ``drop(other.low) <= tau`` are both decided, and no crossing of ``other`` was seen below its bracket."""
    return one.high is not None and one.high <= other.low and other.earlier != "yes"


def estimate_of(basin: Basin) -> Interval | None:
    """The estimate, where a bracket with two ends holds it. Records of older versions have estimates elsewhere too,
    which straight lines from 0 made up."""
    crossed, high = basin.estimate, basin.high
    return crossed if crossed and high is not None and 0 < basin.low <= crossed.estimate <= high else None


def middle(basin: Basin) -> float:
    """Where a basin stands in a list: its estimate, or a point in or beside its bracket; never a claim."""
    crossed = estimate_of(basin)
    if crossed is not None:
        return crossed.estimate
    if basin.high is None:
        return 2 * basin.low if basin.low > 0 else math.inf
    return math.sqrt(basin.low * basin.high) if basin.low > 0 else basin.high / 2


@dataclass(frozen=True)
class Ranked:
    """A basin with the ranks that its bracket leaves open, 1 the narrowest."""

    basin: Basin
    first: int
    last: int

    @property
    def rank(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def ranked(basins: Sequence[Basin]) -> list[Ranked]:
    """Basins from narrow to wide. A rank is one number only where disjoint brackets decide it."""
    order = sorted(basins, key=lambda basin: (middle(basin), basin.task))
    return [
        Ranked(
            basin,
            1 + sum(narrower(other, basin) for other in order if other is not basin),
            len(order) - sum(narrower(basin, other) for other in order if other is not basin),
        )
        for basin in order
    ]


def together(basins: Sequence[Basin]) -> float:
    """The confidence with which all brackets hold at once, by the union bound over their levels."""
    return max(0.0, math.floor(round(1000 * (1 - sum(1 - basin.level for basin in basins)), 6)) / 1000)
