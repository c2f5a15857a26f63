"""What is not there: cells without a score, by kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from catchment.commands.study.record import CellResult, Gap, Status

SHOWN = 12
"""Tasks that a gap names before it counts the others."""


def counts(cells: Sequence[CellResult]) -> dict[str, int]:
    """Cells by status, and of all."""
    number = Counter(result.status for result in cells)
    return {"cells": len(cells)} | {status: number[status] for status in ("done", "missing", "failed", "refused")}


def gaps(cells: Sequence[CellResult]) -> list[Gap]:
    """One row per tuning, format, status and reason: how many cells of which tasks, and what they would cost."""
    kinds: dict[tuple[str, str, Status, str], list[CellResult]] = defaultdict(list)
    for result in cells:
        if result.status != "done":
            kinds[result.cell.tuning, result.cell.format, result.status, result.reason].append(result)
    rows = [_gap(*kind, results) for kind, results in kinds.items()]
    return sorted(rows, key=lambda gap: -gap.cells)


def _gap(tuning: str, form: str, status: Status, reason: str, results: Sequence[CellResult]) -> Gap:
    tasks = Counter(result.cell.task for result in results)
    named = [f"{task} ({number})" for task, number in list(tasks.items())[:SHOWN]]
    if len(tasks) > SHOWN:
        named.append(f"and {len(tasks) - SHOWN} more tasks ({sum(list(tasks.values())[SHOWN:])})")
    seconds = [result.seconds for result in results if result.seconds is not None]
    total = sum(seconds) if len(seconds) == len(results) else None
    return Gap(f"tuning {tuning}, format {form}: {', '.join(named)}", len(results), reason, status, total)
