"""The record of a tune."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from catchment.commands.compare.record import Comparison
from catchment.records import SCHEMA_VERSION, Against, PilotSteps, TuneRun

FILE = "tune.json"


@dataclass(frozen=True)
class Tune:
    """The record of ``catchment tune``: written to ``OUT/tune.json``. The first run is what is delivered."""

    base: str
    method: str
    settings: dict[str, Any]
    data: dict[str, Any]
    runs: tuple[TuneRun, ...]
    headline: Literal["harmful", "trade", "gain", "clean", "open", "unmeasured"]
    sentence: str
    max_drop: float
    protected: tuple[str, ...] = ()
    rooms: tuple[PilotSteps, ...] = ()
    against: tuple[Against, ...] = ()
    comparison: Comparison | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    created: str = ""
    schema_version: int = SCHEMA_VERSION
