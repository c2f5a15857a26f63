"""Live progress: what is being done, time left, and a row per task as soon as there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from catchment.measuring import Progress
from catchment.pages import percent, points
from catchment.records import TaskResult


class LiveProgress(Progress):
    """Draws on a terminal; on a pipe prints a line per task and, now and then, where it stands."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), _Left(self),
            console=console,
        )  # fmt: skip
        self.job = self.bar.add_task("starting", total=None)
        self.rows: dict[str, TaskResult] = {}
        self.final: set[str] = set()
        self.live: Live | None = None
        self.said = 0.0
        self.sentence = ""
        self._remaining: Callable[[], float | None] = lambda: None

    def __enter__(self) -> LiveProgress:
        if self.console.is_terminal:
            self.live = Live(self._view(), console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.live is not None:
            self.live.stop()

    def status(self, text: str) -> None:
        self.bar.update(self.job, description=text)
        if self.live is None and time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            self.console.print(Text(f"{text}{self._and_left()}", "dim"))
        self._refresh()

    def clock(self, left: Callable[[], float | None]) -> None:
        self._remaining = left

    def plan(self, sentence: str) -> None:
        self.sentence = sentence
        if self.live is None:
            self.console.print(Text(f"plan: {sentence}{self._and_left()}"))
        self._refresh()

    def left(self) -> str:
        """Time left: of the budget; without one, until the planned tokens are computed at the speed so far."""
        budget = self._remaining()
        seconds = self.bar.tasks[self.job].time_remaining if budget is None else budget
        if seconds is None:
            return ""
        return f"{clock_time(seconds)} left" + (" of the budget" if budget is not None else "")

    def _and_left(self) -> str:
        left = self.left()
        return f" · {left}" if left else ""

    def total(self, tokens: float) -> None:
        self.bar.reset(self.job, total=max(tokens, 1.0), description=self.bar.tasks[0].description)

    def advance(self, tokens: float) -> None:
        self.bar.advance(self.job, tokens)

    def row(self, result: TaskResult, final: bool) -> None:
        first = result.task not in self.rows
        self.rows[result.task] = result
        if final:
            fresh = result.task not in self.final
            self.final.add(result.task)
        if self.live is None and (first or (final and fresh)):
            change = f"{percent(result.base)} -> {percent(result.tuned)}, {points(result.difference.estimate)} points"
            state = result.verdict if final else "so far"
            line = f"{result.task}: {change}, n={result.n}, {state}{self._and_left()}"
            self.console.print(Text(line))
        self._refresh()

    def _refresh(self) -> None:
        if self.live is not None:
            self.live.update(self._view())

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("task", "base", "tuned", "difference so far", "n"):
            table.add_column(name, justify="left" if name == "task" else "right")
        for r in self.rows.values():
            table.add_row(r.task, percent(r.base), percent(r.tuned), points(r.difference.estimate), f"{r.n:,}")
        parts: list[Any] = [table] if self.rows else []
        parts += [Text(self.sentence, "dim")] if self.sentence else []
        return Group(*parts, self.bar)


class _Left(ProgressColumn):
    """The time left, renewed whenever the bar is drawn."""

    def __init__(self, progress: LiveProgress) -> None:
        super().__init__()
        self.progress = progress

    def render(self, task: Any) -> Text:
        return Text(self.progress.left(), "cyan")


def clock_time(seconds: float) -> str:
    """Seconds as minutes and seconds.

    >>> clock_time(75), clock_time(3601)
    ('1:15', '1:00:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
