"""What a person sees of a tune in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from catchment.commands.compare.table import comparison_table
from catchment.commands.tune.record import Tune
from catchment.pages import interval_points, percent, plain_text, points

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_plan(plan: Sequence[str], console: Console) -> None:
    """One line after another."""
    for line in plan:
        console.print(line, highlight=False)


def against_table(tune: Tune) -> Table:
    """One row per task: task | n | base | plain | protected | protected - plain."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("task", overflow="fold")
    for name in ("n", "base", "plain", "protected", "protected - plain"):
        table.add_column(name, justify="right", no_wrap=True)
    base = {task.task: task.base for task in tune.runs[0].tasks}
    for row in tune.against:
        change = f"{points(row.difference.estimate)} [{interval_points(row.difference)}]"
        name = f"{row.task}, protected" if row.task in tune.protected else row.task
        table.add_row(
            plain_text(name), f"{row.n:,}", percent(base[row.task]), percent(row.plain), percent(row.protected), change
        )
    return table


def print_record(tune: Tune, console: Console, page: Path | str | None = None) -> None:
    """Print what is delivered against the base, protected against plain, the sentence, warnings and the paths.

    Args:
        tune: The record.
        console: Where to; its width is respected.
        page: Path of the written page; ``None`` prints no path.
    """
    run = tune.runs[0]
    console.print(plain_text(f"{tune.base}, {tune.method}: {run.trainable:,} weights ({percent(run.share)})", "bold"))
    console.print()
    if tune.comparison is not None:
        console.print(comparison_table(tune.comparison))
        console.print()
    if tune.against:
        console.print(against_table(tune))
        console.print()
    style = "bold red" if tune.headline == "harmful" else "bold"
    console.print(plain_text(tune.sentence, style))
    for warning in tune.warnings:
        console.print(plain_text(f"warning: {warning}", "yellow"))
    console.print()
    for made in tune.runs:
        console.print(plain_text(f"{made.name}: {made.path} ({made.bytes:,} bytes)"), soft_wrap=True)
    if page is not None:
        console.print(plain_text(f"page: {page}"), soft_wrap=True)
