"""The clock of a budget: what it counts, when measuring stops, and how work that is under way is given up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from catchment.landscape import NotStoredError

RESERVE = 6.0
"""Seconds of a budget that are kept for the record and the page, at most a quarter of it."""
SLACK = 1.1
"""A run that takes up a frozen plan may take this many budgets: the plan fitted into one."""


class OutOfTimeError(NotStoredError):
    """The budget ended before what was being measured was whole. It is left out; what was stored stays."""


def reserve(budget: float) -> float:
    """Seconds that are kept for the end."""
    return min(RESERVE, budget / 4)


@dataclass
class Clock:
    """Seconds since a command began, reading the models included.

    Attributes:
        started: Reading of ``time.perf_counter`` when the command began.
        budget: Seconds that it may take; ``None`` for any.
        resumed: Whether a frozen plan is followed; see :meth:`following`.
    """

    started: float
    budget: float | None = None
    resumed: bool = field(default=False, init=False)
    _later: float = field(default=0.0, init=False)
    _until: float = field(default=math.inf, init=False)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def end(self) -> float:
        """Seconds from the start at which measuring stops."""
        if self.budget is None:
            return math.inf
        allowed = self.budget * (SLACK if self.resumed else 1.0)
        return min(self._until, allowed - reserve(self.budget) - self._later)

    @property
    def left(self) -> float:
        return self.end - self.elapsed

    def remaining(self) -> float | None:
        """Seconds of the budget that are left, the reserve included."""
        return None if self.budget is None else max(self.budget - self.elapsed, 0.0)

    @property
    def late(self) -> bool:
        return self.left <= 0

    def check(self) -> None:
        """Raises OutOfTimeError where nothing more may be measured."""
        if self.late:
            raise OutOfTimeError("the budget ended before this was measured.")

    @contextmanager
    def following(self, frozen: bool) -> Iterator[None]:
        """Inside, a plan of an earlier run is followed where ``frozen``; it was made for the whole budget."""
        before, self.resumed = self.resumed, frozen
        try:
            yield
        finally:
            self.resumed = before

    @contextmanager
    def keeping(self, seconds: float) -> Iterator[None]:
        """Inside, so many seconds are kept for work after it, beside the reserve."""
        before, self._later = self._later, seconds
        try:
            yield
        finally:
            self._later = before

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Measuring stops after so many seconds at the latest. No limit in a run that follows a frozen plan, which was
        made within it."""
        before = self._until
        if not self.resumed:
            self._until = min(before, self.elapsed + max(seconds, 0.0))
        try:
            yield
        finally:
            self._until = before
