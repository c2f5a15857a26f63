"""What a person sees of a comparison in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catchment.commands.compare.allocation import Plan

if TYPE_CHECKING:
    from rich.console import Console


def print_plan(plan: Plan, console: Console) -> None:
    """One row per task: its items, of how many, what one costs, and the half-width that they buy."""
    from rich.table import Table

    table = Table(title="Plan", caption=plan.sentence())
    for name in ("task", "items", "of", "tokens per item", "± points"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for t in plan.tasks:
        table.add_row(t.task, f"{t.items:,}", f"{t.available:,}", f"{t.tokens:.0f}", f"{100 * t.half_width:.1f}")
    console.print(table)
