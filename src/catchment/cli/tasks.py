"""``catchment tasks``: the built-in tasks."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Print a table of the built-in tasks."""
    if arguments:
        print("usage: catchment tasks\n\nPrints the built-in tasks, with their items and scorers.")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    from rich.console import Console
    from rich.table import Table

    from catchment.capabilities import packs

    table = Table()
    for name in ("task", "items", "scorer", "chance", "what it asks"):
        table.add_column(name, justify="right" if name in ("items", "chance") else "left")
    for name in packs.NAMES:
        task = packs.load(name)
        table.add_row(name, f"{len(task.items):,}", task.scorer, f"{task.chance_level:.2f}", task.description)
    Console().print(table)
    return 0
