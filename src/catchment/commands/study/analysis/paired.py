"""Tuned against base on the same items: the interval of the change, and what may be claimed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from catchment.commands.study.analysis.intervals import is_binary
from catchment.commands.study.scores import Scored
from catchment.records import Interval
from catchment.statistics import NoiseFloor, admission, decide, hierarchical_interval, mean_interval

Floats = NDArray[np.float64]
Items = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """How changes are judged: error and margin as in :func:`catchment.statistics.decide`, over ``family`` changes."""

    alpha: float
    margin: float
    family: int

    @property
    def error(self) -> float:
        return self.alpha / self.family


@dataclass(frozen=True)
class Judged:
    """A change with its interval and verdict; ``base`` and ``tuned`` are means over the ``n`` items that all have,
    ``lacking`` how many items some of the models lack."""

    interval: Interval
    verdict: str
    base: float
    tuned: float
    n: int
    lacking: int = 0


@dataclass(frozen=True)
class _Aligned:
    """Scores on shared items: base (n,), tuned (seeds, n)."""

    base: Floats
    tuned: Floats
    groups: Items | None
    lacking: int


def judge(
    base: Scored, seeds: Sequence[Scored], rule: Rule, *, chance: float, generated: bool, floor: NoiseFloor | None
) -> Judged | None:
    """The change of one task by one tuning; ``None`` where the models share no item.

    One seed, items that do not hang together: :func:`catchment.statistics.decide`. Otherwise the same rules with the
    interval over items, groups and seeds in place of the one over items. Noise of seeds is the larger of this cell's
    own and that of ``floor``, with the degrees of freedom of ``floor``.
    """
    shared = _align(base, seeds)
    if not shared.base.size:
        return None
    if len(seeds) == 1 and shared.groups is None:
        interval, verdict = _decided(shared.base, shared.tuned[0], rule, chance, generated)
    else:
        interval, verdict = _over_seeds(shared, rule, chance, generated, floor)
    tuned = float(shared.tuned.mean())
    return Judged(interval, verdict, float(shared.base.mean()), tuned, shared.base.size, shared.lacking)


def _align(base: Scored, seeds: Sequence[Scored]) -> _Aligned:
    items, scores = _rows(base)
    tuned = [_rows(s) for s in seeds]
    if all(own is items or np.array_equal(own, items) for own, _ in tuned):
        return _Aligned(scores, np.stack([own for _, own in tuned]), base.groups, 0)
    every = [items, *(own for own, _ in tuned)]
    shared: Items = reduce(np.intersect1d, every)
    order = _places(items, shared)
    stacked = np.stack([own[_places(its, shared)] for its, own in tuned])
    groups = None if base.groups is None else base.groups[order]
    return _Aligned(scores[order], stacked, groups, int(np.unique(np.concatenate(every)).size - shared.size))


def _rows(scored: Scored) -> tuple[Items, Floats]:
    if scored.items is None or scored.scores is None:
        raise AssertionError(f"{scored.cell} has no items")
    return scored.items, scored.scores


def _places(items: Items, shared: Items) -> NDArray[np.intp]:
    """Where the shared items, in order, stand."""
    order = np.argsort(items, kind="stable")
    return order[np.searchsorted(items, shared, sorter=order)]


def _decided(base: Floats, tuned: Floats, rule: Rule, chance: float, generated: bool) -> tuple[Interval, str]:
    if is_binary(base) and is_binary(tuned):
        both, right, now = int((base * tuned).sum()), int(base.sum()), int(tuned.sum())
        return _decided_counts(both, right - both, now - both, base.size - right - now + both, rule, chance, generated)
    decision = decide(
        base, tuned, chance=chance, margin=rule.margin, alpha=rule.alpha, family=rule.family, generated=generated
    )
    return decision.interval, decision.verdict


@lru_cache(maxsize=200_000)
def _decided_counts(
    both: int, lost: int, gained: int, neither: int, rule: Rule, chance: float, generated: bool
) -> tuple[Interval, str]:
    """A decision on 0/1 scores depends on these counts alone; a report of many cells meets them again and again."""
    counts = [both, lost, gained, neither]
    base, tuned = np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)
    decision = decide(
        base, tuned, chance=chance, margin=rule.margin, alpha=rule.alpha, family=rule.family, generated=generated
    )
    return decision.interval, decision.verdict


def _over_seeds(
    shared: _Aligned, rule: Rule, chance: float, generated: bool, floor: NoiseFloor | None
) -> tuple[Interval, str]:
    noise = None if floor is None or len(shared.tuned) < 2 else _at_least(floor, shared.tuned - shared.base)

    def interval_of(base: Floats, alpha: float) -> Interval:
        return hierarchical_interval(
            base, shared.tuned, groups=shared.groups, level=1 - alpha, family=rule.family, floor=noise
        )

    interval = interval_of(shared.base, rule.alpha)
    if interval.low > 0 and interval_of(np.zeros_like(shared.base), rule.alpha).low > chance:
        return interval, "gained"
    admitted, can_lose = _base(shared, chance, generated)
    if admitted and interval.estimate > -rule.margin:
        one_sided = interval.low if interval.low > -rule.margin else interval_of(shared.base, 2 * rule.alpha).low
        if one_sided > -rule.margin:
            return interval, "kept"
    if interval.high < 0 and can_lose:
        return interval, "lost"
    return interval, "undecided" if admitted else "not measurable"


def _base(shared: _Aligned, chance: float, generated: bool) -> tuple[bool, bool]:
    """Whether the base is admitted, and whether it is above chance; over groups where items hang together."""
    if shared.groups is None and is_binary(shared.base):
        return _base_counts(int(shared.base.sum()), shared.base.size, chance, generated)
    admitted = admission(shared.base, chance, generated)[0]
    if shared.groups is None:
        return admitted, mean_interval(shared.base).low > chance
    own = hierarchical_interval(np.zeros_like(shared.base), shared.base, groups=shared.groups)
    return admitted and own.low > chance, own.low > chance


@lru_cache(maxsize=65536)
def _base_counts(right: int, n: int, chance: float, generated: bool) -> tuple[bool, bool]:
    base = np.repeat([1.0, 0.0], [right, n - right])
    return admission(base, chance, generated)[0], mean_interval(base).low > chance


def _at_least(floor: NoiseFloor, difference: Floats) -> NoiseFloor:
    """The pooled noise of seeds, or this cell's own where that is larger."""
    own = float(difference.mean(axis=1).std(ddof=1))
    sd = dataclasses.replace(floor.sd, estimate=max(floor.sd.estimate, own))
    return dataclasses.replace(floor, sd=sd)
