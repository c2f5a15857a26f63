"""Records of ``catchment compare``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from catchment.records.core import Interval
from catchment.records.landscape import Ruler

Verdict = Literal["gained", "lost", "kept", "undecided", "not measurable"]


@dataclass(frozen=True)
class FormatResult:
    """Scores under one prompt format, on the items that all formats share."""

    name: str
    n: int
    base: float
    tuned: float
    difference: Interval


@dataclass(frozen=True)
class Companion:
    """The continuous companion of a 0/1 score: mean over items, base and tuned, and the paired interval."""

    name: str
    base: float
    tuned: float
    difference: Interval


@dataclass(frozen=True)
class TaskResult:
    """What happened to one task; see :class:`~catchment.statistics.Decision`.

    Attributes:
        base, tuned: Mean scores over the ``n`` items; ``difference``: tuned - base.
        admitted: The base does the task well enough for "kept" to mean something.
        decide_n: The n that would decide an undecided verdict (80% power).
        can_lose: The base's own interval lies above chance, so that a loss can be shown.
        note: What is to be read beside the verdict, in one clause.
    """

    task: str
    scorer: str
    n: int
    chance: float
    base: float
    tuned: float
    difference: Interval
    verdict: Verdict
    reason: str
    admitted: bool
    flips_lost: int
    flips_gained: int
    decide_n: int | None = None
    companion: Companion | None = None
    formats: tuple[FormatResult, ...] = ()
    warnings: tuple[str, ...] = ()
    can_lose: bool = True
    note: str = ""


@dataclass(frozen=True)
class TextResult:
    """Bits per byte on reference text, base and tuned (lower is better), paired over passages."""

    name: str
    n: int
    base: float
    tuned: float
    difference: Interval


@dataclass(frozen=True)
class AgreementResult:
    """Agreement with the base on unlabelled prompts: 1 - mean total variation of the next-token distributions,
    teacher-forced on the base's greedy answers; ``kl`` is the mean KL(base || tuned) in bits per token."""

    name: str
    n: int
    agreement: Interval
    kl: float | None = None


@dataclass(frozen=True)
class Flip:
    """One item that one model answers right and the other wrong. ``weight`` orders flips by how telling
    they are: the change of the companion, in [0, 1]."""

    task: str
    item: str
    direction: Literal["lost", "gained"]
    prompt: str
    expected: str
    base_answer: str
    tuned_answer: str
    weight: float


@dataclass(frozen=True)
class DriftRow:
    """How far one tensor moved: ``distance`` = ||tuned - base||_2, ``relative`` = distance / ||base||_2. ``matrix``:
    whether it counts for a ruler; ``None`` in records of versions that did not say."""

    name: str
    layer: int | None
    kind: str
    size: int
    norm: float
    distance: float
    changed: int
    matrix: bool | None = None

    @property
    def relative(self) -> float:
        return self.distance / self.norm if self.norm > 0 else float(self.distance > 0)


@dataclass(frozen=True)
class Drift:
    """Drift in all and per tensor (tied tensors once). ``rms`` = distance / sqrt(size), the absolute scale alpha.
    ``ruler``: of the base's weights; ``None`` in records of versions that had none."""

    size: int
    norm: float
    distance: float
    rms: float
    changed: int
    tensors: tuple[DriftRow, ...]
    ruler: Ruler | None = None

    @property
    def relative(self) -> float | None:
        """``rms / ruler.rms``: not ``distance / norm``, because gains of norms may hold most of the norm."""
        return self.rms / self.ruler.rms if self.ruler is not None and self.ruler.rms > 0 else None


@dataclass(frozen=True)
class Recovered:
    """The recovered model of ``--recover``: how it was made, and what it scores on the judging half."""

    path: str
    recipe: str
    strength: float
    tasks: tuple[TaskResult, ...]
    candidates: tuple[dict[str, Any], ...] = ()
