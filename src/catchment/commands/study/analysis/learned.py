"""Learned or not: whether a base is above chance, false discoveries controlled over the study's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

from catchment.commands.study.analysis.index import Index, Key, Refusals
from catchment.commands.study.analysis.intervals import is_binary
from catchment.commands.study.record import BASE
from catchment.commands.study.scores import Scored
from catchment.statistics import chance_p_value, discoveries

Learned = Mapping[tuple[str, str, str], bool]
"""By model, checkpoint and task whether the base is above chance."""


def learned(index: Index, refusals: Refusals) -> Learned:
    """For each base and task with a known chance above 0.

    Each is tested, exactly where its items are right or wrong and each is one, else by its standard error over items;
    the share of false ones among those called learned is at most alpha (Benjamini-Hochberg).
    """
    tested = {
        key: p
        for key in index.keys
        if key.tuning == BASE and not refusals.cell(key) and (p := _p_value(index.seeds(key))) is not None
    }
    if not tested:
        return {}
    results = discoveries(list(tested.values()), index.table.alpha)
    return {_place(key): result.discovered for key, result in zip(tested, results, strict=True)}


def _place(key: Key) -> tuple[str, str, str]:
    return key.model, key.revision, key.task


def _p_value(seeds: Sequence[Scored]) -> float | None:
    """That the score is above guessing, one-sided; ``None`` where it cannot be tested."""
    scored = seeds[0]
    if not scored.chance or scored.chance >= 1:
        return None
    if scored.scores is not None and scored.groups is None and is_binary(scored.scores):
        return chance_p_value(scored.scores, scored.chance)
    if scored.groups is not None or not scored.se:
        return None
    return NormalDist().cdf((scored.chance - scored.mean) / scored.se)
