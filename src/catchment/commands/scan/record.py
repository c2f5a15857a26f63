"""The record of a scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from catchment.records import (
    SCHEMA_VERSION,
    Admission,
    Basin,
    Curvature,
    Gradients,
    ModelCard,
    Panel,
    Plane,
    Profile,
    SelfCheck,
    SubspaceCard,
    Worst,
)

FILE = "scan.json"


@dataclass(frozen=True)
class Scan:
    """The record of ``catchment scan``: written to ``OUT/scan.json``."""

    model: ModelCard
    subspace: SubspaceCard
    admissions: tuple[Admission, ...]
    basins: tuple[Basin, ...]
    profiles: tuple[Profile, ...]
    worst: tuple[Worst, ...]
    sentence: str
    check: SelfCheck
    panels: tuple[Panel, ...]
    plane: Plane | None = None
    curvature: Curvature | None = None
    gradients: Gradients | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    created: str = ""
    schema_version: int = SCHEMA_VERSION
