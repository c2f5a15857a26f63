"""Small tables of scores with items, and one of means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from catchment.commands.study.record import BASE, Cell, CellResult, Checkpoint, TuningCard
from catchment.commands.study.scores import Scored, ScoreTable

Entry = tuple[str, str, int | None, str]
"""Checkpoint, tuning, seed, task."""


def item_table(
    scores: Mapping[Entry, Any],
    *,
    items: Mapping[Entry, Sequence[int]] | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    chance: float | None = 0.25,
    scorer: str = "choice",
    **fields: Any,
) -> ScoreTable:
    """A table whose cells have the scores given; items are numbered from 0 where nothing else is said."""
    scored: dict[Cell, Scored] = {}
    for entry, values in scores.items():
        revision, tuning, seed, task = entry
        cell = Cell("m", revision, tuning, seed, task, "default", 0, scorer)
        array = np.asarray(values, dtype=np.float64)
        numbers = np.asarray((items or {}).get(entry, range(array.size)), dtype=np.int64)
        group = None if groups is None else np.asarray(groups[task], dtype=np.int64)
        scored[cell] = Scored(cell, float(array.mean()), array.size, None, numbers, array, group, chance)
    revisions = list(dict.fromkeys(cell.revision for cell in scored))
    labels = dict.fromkeys(cell.tuning for cell in scored if cell.tuning != BASE)
    return ScoreTable(
        name="test",
        checkpoints=tuple(Checkpoint("m", r, 1e9 * 2.0**i, i) for i, r in enumerate(revisions)),
        tunings=tuple(TuningCard(label, label, "full", "") for label in labels),
        tasks=tuple(dict.fromkeys(cell.task for cell in scored)),
        formats=("default",),
        cells=tuple(CellResult(cell, "done", s.n) for cell, s in scored.items()),
        scored=scored,
        **fields,
    )


def answers(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong
