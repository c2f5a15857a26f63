"""Scores of the cells of a study, from the store or from somebody else's table, as the analysis takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from catchment.commands.study.record import Cell, CellResult, Checkpoint, Flag, TuningCard


@dataclass(frozen=True)
class Scored:
    """Scores of one cell.

    Attributes:
        mean: Of the items' scores.
        n: Items; 0 where a table does not say.
        se: Standard error over items; ``None`` where a table does not say.
        items, scores: One entry per item, shape (n,); ``None`` for a table of means.
        groups: Per item the group it belongs to; ``None``: each item is one.
        chance: Score of guessing; ``None`` where a table does not say.
        companions: Per item the probability of the right answer, NaN where there is none.
        generated: Answers are generated, so that chance means nothing; also where the scorer's name does not say so.
    """

    cell: Cell
    mean: float
    n: int = 0
    se: float | None = None
    items: NDArray[np.int64] | None = None
    scores: NDArray[np.float64] | None = None
    groups: NDArray[np.int64] | None = None
    chance: float | None = None
    companions: NDArray[np.float64] | None = None
    generated: bool = False


@dataclass(frozen=True)
class Pairs:
    """A named list of pairs (tuning data or label, task) to average over, as a study's ``contrasts`` gives it."""

    name: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ScoreTable:
    """What the analysis of a study takes: pure data, whatever it comes from.

    Attributes:
        cells: Every cell of the grid with its status; cells that are done have scores in ``scored``.
        scored: By cell.
        flags: Gates that were raised while the scores were read.
        formats: Formats in order; the first is the default.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    tunings: tuple[TuningCard, ...]
    tasks: tuple[str, ...]
    formats: tuple[str, ...]
    cells: Sequence[CellResult]
    scored: Mapping[Cell, Scored]
    contrasts: tuple[Pairs, ...] = ()
    flags: tuple[Flag, ...] = ()
    alpha: float = 0.05
    margin: float = 0.02
    seed: int = 0
    task_formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Formats of a task where they are not those of the study, the default first."""
    notes: tuple[str, ...] = ()
    """What a reader must know about how the scores were read, a sentence each."""
