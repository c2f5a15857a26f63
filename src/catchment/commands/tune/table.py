"""What a person sees of a tune in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_plan(plan: Sequence[str], console: Console) -> None:
    """One line after another."""
    for line in plan:
        console.print(line, highlight=False)
