"""The record of a study: what is in the grid, what was measured, and what follows from it.

Scores are in [0, 1]; changes are tuned minus base on the same checkpoint, task, format, shots and scorer. Item rows
stay in the store; ``cells.csv`` beside the record has one line per cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from catchment.records import SCHEMA_VERSION, Interval, TaskResult

FILE = "study.json"
BASE = "base"
"""Name of the tuning that is none."""

Status = Literal["done", "missing", "failed", "refused"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the grid of evaluations.

    Attributes:
        model: Name of the base model.
        revision: Its checkpoint.
        tuning: Label of the tuning: its data, and where a study has several, its method and setting; or ``"base"``.
        seed: Of the training; ``None`` for a base, and where a foreign table has none.
        task, format, shots, scorer: What was asked, and how.
    """

    model: str
    revision: str
    tuning: str
    seed: int | None
    task: str
    format: str
    shots: int
    scorer: str


@dataclass(frozen=True)
class CellResult:
    """A cell and what became of it. ``reason``: why it was not measured; ``seconds``: what it costs, where known."""

    cell: Cell
    status: Status
    n: int = 0
    score: Interval | None = None
    reason: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One point of a trajectory. ``tokens`` that the model had seen, where known; ``order``: its place otherwise."""

    model: str
    revision: str
    tokens: float | None
    order: int
    weights_hash: str | None = None


@dataclass(frozen=True)
class TuningCard:
    """A tuning of the grid. ``data``: name of what it trains on; ``in_domain``: tasks that belong to that data."""

    label: str
    data: str
    method: str
    setting: str
    in_domain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """A score, or a change, at one checkpoint. The interval is over items, and over seeds where there are several;
    ``seeds``: their number, 0 for a base."""

    revision: str
    tokens: float | None
    n: int
    seeds: int
    interval: Interval


@dataclass(frozen=True)
class Trajectory:
    """Scores of one model and tuning on one task and format, by checkpoint; ``plateau``: tokens at which it stops
    rising, where that is shown, and ``plateau_note`` what is shown, or why it is not."""

    model: str
    tuning: str
    task: str
    format: str
    points: tuple[Point, ...]
    plateau: Interval | None = None
    plateau_note: str = ""


@dataclass(frozen=True)
class Change:
    """Tuned against base on one task at one checkpoint, under the first format.

    Attributes:
        base, tuned: Mean scores.
        chance: Score of guessing; 0 where a foreign table does not say.
        interval: Of tuned - base, paired over items, and over seeds where there are several; simultaneous over the
            study's changes.
        adjusted: (tuned - base) / (1 - chance).
        verdict: gained, lost, kept, undecided, not measurable; ``""`` where a table without items allows none.
        learned: Whether the base is above chance, at a false discovery rate of alpha over the study's tasks; ``None``
            where it cannot be tested.
        near_zero: Whether the base is too near 0 for a ratio of change to mean anything.
        refused: A gate refused the cells: the numbers are shown, and nothing is concluded from them.
    """

    model: str
    revision: str
    tuning: str
    task: str
    base: float
    tuned: float
    chance: float
    n: int
    seeds: int
    interval: Interval
    adjusted: float
    in_domain: bool = False
    verdict: str = ""
    learned: bool | None = None
    near_zero: bool = False
    refused: bool = False


@dataclass(frozen=True)
class Matrix:
    """Forgetting matrix of one checkpoint: ``values[t][d]`` = P_t(d) - P_base(d), ``None`` where it is missing.
    ``transfer[t]``: mean over the tasks that are not in the domain of t; ``missing``: number of empty places."""

    model: str
    revision: str
    tunings: tuple[str, ...]
    tasks: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    transfer: tuple[float | None, ...]
    missing: int = 0


@dataclass(frozen=True)
class Ratio:
    """Mean ratio of change, with what stands beside it because a mean of ratios is fragile.

    Attributes:
        n: Cells.
        mean, sd: Of (tuned - base)/base over cells; ``t``: mean/(sd/sqrt(n)); all ``None`` where a base is 0.
        median: Of the same.
        pooled: Sum of changes over sum of bases; ``None`` where all bases are 0.
        log_ratio: Mean of log(tuned/base); ``None`` where a score is 0.
        raw: Mean of tuned - base.
        near_zero: Cells whose base is too near 0, in words.
        largest: The cell that moves the mean most, in words; ``without``: the mean without its checkpoint.
        leave_out: The mean without each checkpoint.
    """

    n: int
    mean: float | None
    sd: float | None
    t: float | None
    median: float | None
    pooled: float | None
    log_ratio: float | None
    raw: float
    near_zero: tuple[str, ...] = ()
    largest: str = ""
    without: float | None = None
    without_what: str = ""
    leave_out: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True)
class Contrast:
    """A question over several pairs (tuning, task).

    Attributes:
        by_checkpoint: Mean change per checkpoint, ``None`` where a pair is missing there: a mean over the other pairs
            would be another quantity; ``ratio_by_checkpoint`` the mean ratio.
        mean: Mean change over pairs and checkpoints.
        unique: ``by_checkpoint`` with every pair once, where the list names one twice; else empty.
        missing: Pairs x checkpoints without both scores, in words.
        refused: Tasks of the list that a gate refused: the numbers are those of the list, and conclude nothing.
    """

    name: str
    model: str
    pairs: tuple[tuple[str, str], ...]
    by_checkpoint: tuple[tuple[str, float | None], ...]
    ratio_by_checkpoint: tuple[tuple[str, float | None], ...]
    ratio: Ratio | None
    mean: float | None = None
    unique: tuple[tuple[str, float | None], ...] = ()
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """Prompt formats on one task.

    Attributes:
        scores: Mean score per format, the default first.
        spread: max - min over formats.
        differences: score(default) - score(other), per other format.
        retention: (P_other - chance)/(P_default - chance) of the worst other format; ``None`` where the default is not
            above chance.
    """

    model: str
    revision: str
    tuning: str
    task: str
    scores: tuple[tuple[str, float], ...]
    spread: float
    differences: tuple[tuple[str, float], ...]
    retention: float | None
    n: int = 0


@dataclass(frozen=True)
class TaskNoise:
    """What differences on a task mean nothing: ``floor`` is one standard deviation of a score.

    Attributes:
        seeds: From training seeds; ``checkpoints``: from adjacent checkpoints at the end. ``None``: not there.
        items: Median standard error over items.
        signal_to_noise: Per task, arXiv 2508.13144; ``None`` with fewer than two models or tunings.
    """

    task: str
    seeds: float | None
    checkpoints: float | None
    items: float | None
    signal_to_noise: float | None = None

    @property
    def floor(self) -> float | None:
        """The largest of what is known of training: item noise is in the intervals already."""
        known = [value for value in (self.seeds, self.checkpoints) if value is not None]
        return max(known) if known else None


@dataclass(frozen=True)
class Flag:
    """A validity gate that was raised. ``refused``: its cells are left out of every number that concludes.

    Attributes:
        where: The cells in words, for readers.
        model, revision, tuning, task: The cells; empty means all. A flag that names none of them refuses the task that
            ``where`` names.
    """

    gate: str
    where: str
    sentence: str
    refused: bool = False
    model: str = ""
    revision: str = ""
    tuning: str = ""
    task: str = ""


@dataclass(frozen=True)
class Gap:
    """Cells of one kind that are not there: how many, why, and what they would cost in seconds."""

    what: str
    cells: int
    reason: str
    status: Status
    seconds: float | None = None


@dataclass(frozen=True)
class Verdicts:
    """What tunings of one base did, simultaneously over all of them; ``choice``: which to take and why, in words."""

    tuning: str
    headline: str
    sentence: str
    tasks: tuple[TaskResult, ...]


@dataclass(frozen=True)
class Study:
    """The record of ``catchment study report``: written to ``OUT/study.json``."""

    name: str
    sentence: str
    headline: Literal["complete", "incomplete"]
    counts: dict[str, int]
    checkpoints: tuple[Checkpoint, ...]
    tunings: tuple[TuningCard, ...]
    tasks: tuple[str, ...]
    formats: tuple[str, ...]
    alpha: float
    margin: float
    trajectories: tuple[Trajectory, ...] = ()
    changes: tuple[Change, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()
    noise: tuple[TaskNoise, ...] = ()
    flags: tuple[Flag, ...] = ()
    gaps: tuple[Gap, ...] = ()
    verdicts: tuple[Verdicts, ...] = ()
    choice: str = ""
    scans: tuple[dict[str, Any], ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    created: str = ""
    schema_version: int = SCHEMA_VERSION
