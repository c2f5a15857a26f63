"""The record of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from catchment.errors import InputError, did_you_mean
from catchment.records import (
    SCHEMA_VERSION,
    AgreementResult,
    Drift,
    Flip,
    ModelCard,
    Recovered,
    Room,
    TaskResult,
    TextResult,
)

FILE = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """The record of ``catchment compare``: written to ``OUT/comparison.json``. ``unmeasured``: tasks that were asked
    for and that a budget left without an item."""

    base: ModelCard
    tuned: ModelCard
    tasks: tuple[TaskResult, ...]
    verdict: str
    headline: Literal["clean", "loss", "gain", "trade", "open"]
    margin: float
    alpha: float
    flips: tuple[Flip, ...] = ()
    texts: tuple[TextResult, ...] = ()
    agreements: tuple[AgreementResult, ...] = ()
    drift: Drift | None = None
    recovered: Recovered | None = None
    rooms: tuple[Room, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    def __getitem__(self, task: str) -> TaskResult:
        for result in self.tasks:
            if result.task == task:
                return result
        names = [result.task for result in self.tasks]
        raise InputError(f"no task {task!r} in this comparison; it has {names}.{did_you_mean(task, names)}")
