"""The clock of a scan: a budget over interruptions, and the same time on every process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from catchment.measuring import OutOfTimeError
from catchment.runs import processes

RESERVE = 8.0
"""Seconds of a budget that are kept for the self-check, the record and the page."""


class Clock:
    """Seconds of a budget, over interruptions: what earlier runs spent counts.

    Attributes:
        budget: Seconds in all.
        spent_before: Seconds that earlier runs spent.
        started: Reading of ``time.perf_counter`` when this run began.
        later: Seconds that are kept for the self-check, beside the reserve.
        open: Whether measuring may be stopped; what comes after it, and what is only looked up, is not.
    """

    def __init__(self, budget: float, spent: float = 0.0, started: float | None = None) -> None:
        self.budget = budget
        self.spent_before = spent
        self.started = time.perf_counter() if started is None else started
        self.later = 0.0
        self.open = True
        self._until = math.inf

    @property
    def spent(self) -> float:
        return float(processes.agreed(self._spent()))

    def _spent(self) -> float:
        return self.spent_before + time.perf_counter() - self.started

    @property
    def reserve(self) -> float:
        """Seconds that are kept for the end; of a budget below half a minute a quarter."""
        return min(RESERVE, self.budget / 4)

    @property
    def end(self) -> float:
        """Seconds at which measuring stops."""
        return min(self._until, self.budget - max(self.reserve, self.later))

    @property
    def left(self) -> float:
        return self.end - self.spent

    def remaining(self) -> float:
        """Seconds of the budget that are left, as this process sees it."""
        return max(self.budget - self._spent(), 0.0)

    def check(self) -> None:
        """Before every forward pass. Where a model is cut over processes, stages look at the clock between points
        only: all processes have to stop at the same one.

        Raises:
            OutOfTimeError: Nothing more may be measured.
        """
        if self.open and processes.count() == 1 and self.left <= 0:
            raise OutOfTimeError("the budget ended before this was measured.")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Measuring stops after so many seconds at the latest."""
        before, self._until = self._until, min(self._until, self.spent + max(seconds, 0.0))
        try:
            yield
        finally:
            self._until = before

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Nothing is stopped: the time for it was kept."""
        before, self.open = self.open, False
        try:
            yield
        finally:
            self.open = before
