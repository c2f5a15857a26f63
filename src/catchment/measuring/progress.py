"""What a long run tells whoever is watching. The command line draws it; the default says nothing."""

from __future__ import annotations

from collections.abc import Callable

from catchment.records import TaskResult


class Progress:
    """Told what goes on. Every method may be left as it is."""

    def status(self, text: str) -> None:
        """What is being done now."""

    def clock(self, left: Callable[[], float | None]) -> None:
        """How to ask for the seconds of the budget that are left; ``None`` without one."""

    def plan(self, sentence: str) -> None:
        """What the budget buys, in words, as known now."""

    def total(self, tokens: float) -> None:
        """Tokens that are still to be computed, as planned now."""

    def advance(self, tokens: float) -> None:
        """Tokens that were computed."""

    def row(self, result: TaskResult, final: bool) -> None:
        """A task's result so far; ``final`` when no more items will be added."""
