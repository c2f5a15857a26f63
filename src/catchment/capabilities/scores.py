"""What an evaluation returns: one row per item, and what the rows were measured under."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from catchment.records import Row

OnRows = Callable[[list[Row], int], None]
"""Called after every batch with its rows and the tokens it cost."""


@dataclass(frozen=True)
class Scores:
    """One row per item, in the order of the task's items, with the conditions they were measured under."""

    task: str
    format: str
    rows: tuple[Row, ...]
    chance: float
    conditions: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score; NaN without rows (all items were in ``done``)."""
        return sum(row.score for row in self.rows) / len(self.rows) if self.rows else math.nan

    def __repr__(self) -> str:
        return f"Scores({self.task}: {self.mean:.3f}, n={len(self.rows)}, chance={self.chance:.2f})"
