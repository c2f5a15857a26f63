"""Records of ``catchment tune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from catchment.records.comparison import Companion, TaskResult
from catchment.records.core import Interval

FenceOutcome = Literal["inside", "near", "broken"]
FenceEvidence = Literal["shown", "estimated"]


@dataclass(frozen=True)
class FenceLook:
    """What one look of the fence found on one protected task: the drop of its guard items, and what was done.

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
    outcome: FenceOutcome
    evidence: FenceEvidence
    factor: float = 1.0
    after: float | None = None


@dataclass(frozen=True)
class Watched:
    """A task while the model was trained, on a fixed subset of its items (``--eval-steps``).

    Attributes:
        difference: Now - before the training; simultaneous over tasks and planned evaluations. ``None`` at the start.
        verdict: As of a comparison, at the margin of the tune; empty at the start.
    """

    step: int
    task: str
    n: int
    score: float
    difference: Interval | None = None
    verdict: str = ""


@dataclass(frozen=True)
class PilotSteps:
    """The room of a protected task along the first gradient, before training: RMS displacement per weight where the
    drop passes ``max_drop``, and how many steps of the learning rate that is; ``None`` where it was not reached, or
    passed below the first scale, ``below`` (``random_below`` along random moves)."""

    task: str
    items: int
    scale: float | None
    steps: float | None
    random_scale: float | None
    reach: float
    warning: str | None = None
    below: float | None = None
    random_below: float | None = None


@dataclass(frozen=True)
class TuneRun:
    """One training, and what came of it.

    Attributes:
        name: ``protected`` or ``plain``.
        path: What it left: an increment's or adapter's folder, or a model's.
        trainable, share: Weights that train, and their share of the model.
        tokens: Tokens of training text, each time they were seen.
        loss: Mean training loss over the first and the last tenth of the ``logged`` ones, nats per token.
        held_out: Loss per trained token of rows that were not trained on, before and after, paired over rows.
        accuracy: The same for a classifier's answers.
        looks: What the fence saw.
        watched: What ``--eval-steps`` measured.
        stopped: Why the training ended before its last step, or ``None``.
        tasks: Verdicts against the base.
    """

    name: str
    path: str
    trainable: int
    share: float
    steps: int
    tokens: int
    seconds: float
    bytes: int
    loss: tuple[float, float] | None
    held_out: Companion | None
    looks: tuple[FenceLook, ...] = ()
    stopped: str | None = None
    tasks: tuple[TaskResult, ...] = ()
    accuracy: Companion | None = None
    logged: int = 0
    warnings: tuple[str, ...] = ()
    watched: tuple[Watched, ...] = ()


@dataclass(frozen=True)
class Against:
    """One task of the protected tune against the plain one, paired over the same items."""

    task: str
    n: int
    plain: float
    protected: float
    difference: Interval
