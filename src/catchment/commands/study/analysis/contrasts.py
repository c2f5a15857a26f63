"""Contrasts: changes, and ratios of change, over named lists of pairs (tuning, task)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from catchment.commands.study.analysis.index import Index, Key, Refusals
from catchment.commands.study.record import Change, Contrast, Ratio
from catchment.commands.study.scores import Pairs
from catchment.statistics import RatioOfChange, ratio_of_change

NEAR_ZERO = 0.05
"""A base score below which a ratio of change is governed by its denominator."""


class PairCell(NamedTuple):
    """A pair at one checkpoint, with its scores."""

    revision: str
    tuning: str
    task: str
    base: float
    tuned: float

    def __str__(self) -> str:
        ratio = f", ratio {self.tuned / self.base - 1:+.3g}" if self.base > 0 else ""
        return f"{self.tuning} -> {self.task} at {self.revision}: base {self.base:.4f}, tuned {self.tuned:.4f}{ratio}"


Changes = Mapping[Key, Change]


def contrasts(index: Index, rows: Sequence[Change], refusals: Refusals) -> list[Contrast]:
    """Every list of pairs, for every model."""
    changes = {Key(c.model, c.revision, c.tuning, c.task): c for c in rows}
    return [
        contrast(index, changes, model, pairs, refusals)
        for pairs in index.table.contrasts
        for model in index.checkpoints
    ]


def contrast(index: Index, changes: Changes, model: str, pairs: Pairs, refusals: Refusals) -> Contrast:
    """Mean change and mean ratio of change over a list of pairs, per checkpoint and over all.

    A pair that names data stands for all tunings on it, each a pair of its own.
    """
    listed = [(label, task) for name, task in pairs.pairs for label in index.labels(name)]
    revisions = [point.revision for point in index.checkpoints[model]]
    cells, missing = _cells(index, changes, model, listed, revisions)
    unique = list(dict.fromkeys(listed))
    unique_cells = _cells(index, changes, model, unique, revisions)[0]
    everything = [cell for revision in revisions for cell in cells[revision]]
    return Contrast(
        name=pairs.name,
        model=model,
        pairs=tuple(listed),
        by_checkpoint=_means(cells, len(listed)),
        ratio_by_checkpoint=_ratios(cells, len(listed)),
        ratio=_ratio(everything) if everything else None,
        mean=sum(c.tuned - c.base for c in everything) / len(everything) if everything else None,
        unique=_means(unique_cells, len(unique)) if len(unique) < len(listed) else (),
        missing=tuple(missing),
        refused=tuple(task for task in dict.fromkeys(task for _, task in listed) if refusals.task(task)),
    )


def twice(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs that a list names more than once."""
    return [pair for pair, times in Counter(pairs).items() if times > 1]


Cells = dict[str, list[PairCell]]


def _cells(
    index: Index, changes: Changes, model: str, pairs: Sequence[tuple[str, str]], revisions: Sequence[str]
) -> tuple[Cells, list[str]]:
    cells: Cells = {revision: [] for revision in revisions}
    missing = []
    for revision in revisions:
        for label, task in pairs:
            key = Key(model, revision, label, task)
            change = changes.get(key)
            if change is None:
                lacking = "tuned" if index.mean(key) is None else "base"
                missing.append(f"{label} -> {task} at {revision}: no {lacking} score")
            else:
                cells[revision].append(PairCell(revision, label, task, change.base, change.tuned))
    return cells, missing


def _means(cells: Cells, size: int) -> tuple[tuple[str, float | None], ...]:
    return tuple(
        (revision, sum(c.tuned - c.base for c in row) / size if row and len(row) == size else None)
        for revision, row in cells.items()
    )


def _ratios(cells: Cells, size: int) -> tuple[tuple[str, float | None], ...]:
    return tuple(
        (revision, _of(row).mean if row and len(row) == size else None) for revision, row in cells.items()
    )  # fmt: skip


def _of(cells: Sequence[PairCell]) -> RatioOfChange:
    return ratio_of_change([c.base for c in cells], [c.tuned for c in cells], near_zero=NEAR_ZERO)


def _ratio(cells: Sequence[PairCell]) -> Ratio:
    ratio = _of(cells)
    largest = None if ratio.largest is None else cells[ratio.largest]
    without = _leave_out(cells)
    mean_without = None if largest is None else without.get(largest.revision)
    return Ratio(
        n=ratio.n,
        mean=ratio.mean,
        sd=ratio.sd,
        t=ratio.t,
        median=ratio.median,
        pooled=ratio.pooled,
        log_ratio=ratio.log_ratio,
        raw=ratio.raw,
        near_zero=tuple(str(cells[i]) for i in ratio.near_zero),
        largest="" if largest is None else str(largest),
        without=mean_without,
        without_what="" if largest is None or mean_without is None else f"without checkpoint {largest.revision}",
        leave_out=tuple(without.items()),
    )


def _leave_out(cells: Sequence[PairCell]) -> dict[str, float | None]:
    """For each checkpoint the mean ratio over the others; empty for one checkpoint."""
    revisions = dict.fromkeys(c.revision for c in cells)
    if len(revisions) < 2:
        return {}
    return {revision: _of([c for c in cells if c.revision != revision]).mean for revision in revisions}
