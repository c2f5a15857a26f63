"""What a person sees of a study in the terminal: its grid, the last changes, gates, gaps, and where the page is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from catchment.commands.compare.table import STYLES
from catchment.commands.compare.words import SYMBOLS
from catchment.commands.study import words
from catchment.commands.study.choice import ranked
from catchment.commands.study.record import Change, Gap, Study
from catchment.pages import duration, one_line, plain_text, points
from catchment.records import TaskResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from catchment.commands.study.plan import Plan

MOST_TUNINGS, MOST_LINES, LONGEST = 12, 6, 240


def print_plan(plan: Plan, console: Console) -> None:
    """One line after another."""
    for line in words.plan_lines(plan):
        console.print(plain_text(line), soft_wrap=True)


def change_table(changes: Sequence[Change]) -> Table:
    """Tasks by tunings: the change in points with the mark of its verdict; ``missing`` where there is none."""
    tunings = list(dict.fromkeys(change.tuning for change in changes))
    tasks = list(dict.fromkeys(change.task for change in changes))
    of = {(change.tuning, change.task): change for change in changes}
    return _grid(
        tunings[:MOST_TUNINGS], tasks, lambda tuning, task: _change(of[tuning, task]) if (tuning, task) in of else None
    )


def verdict_table(study: Study) -> Table:
    """Tasks by tunings as :func:`change_table`, sorted as :func:`ranked` says."""
    of = {(one.tuning, task.task): task for one in study.verdicts for task in one.tasks}
    tunings = [one.tuning for one in ranked(study.verdicts)]
    tasks = list(dict.fromkeys(task.task for one in study.verdicts for task in one.tasks))
    return _grid(
        tunings[:MOST_TUNINGS], tasks, lambda tuning, task: _verdict(of[tuning, task]) if (tuning, task) in of else None
    )


def print_record(study: Study, console: Console, page: Path | str | None = None) -> None:
    """Print the changes at the last checkpoint, the sentence, which tuning to take, gates, gaps and warnings.

    Args:
        study: The record.
        console: Where to; its width is respected.
        page: Path of the written page; ``None`` prints no path.
    """
    console.print(plain_text(f"{study.name}: {words.title(study)}", "bold"), soft_wrap=True)
    console.print()
    if study.verdicts:
        console.print(verdict_table(study))
    else:
        _print_changes(study, console)
    console.print(plain_text(study.sentence or words.sentence(study), "bold"))
    if study.choice:
        console.print(plain_text(study.choice))
    refused = [f"refused: {flag.gate}, {flag.where}: {flag.sentence}" for flag in study.flags if flag.refused]
    _print_some(list(dict.fromkeys(refused)), "bold red", console)
    _print_some([f"gate: {f.gate}, {f.where}: {f.sentence}" for f in study.flags if not f.refused], "yellow", console)
    if study.gaps:
        _print_gaps(study, console)
    _print_some([*words.aliases(study.aliases), *(f"warning: {text}" for text in study.warnings)], "yellow", console)
    if page is not None:
        console.print()
        console.print(plain_text(f"page: {page}"), soft_wrap=True)


def _print_changes(study: Study, console: Console) -> None:
    changes = words.latest(study)
    for model in dict.fromkeys(change.model for change in changes):
        mine = [change for change in changes if change.model == model]
        console.print(plain_text(f"{model} at {mine[0].revision}, change in points"), soft_wrap=True)
        console.print(change_table(mine))
        console.print()


def _print_gaps(study: Study, console: Console) -> None:
    console.print()
    console.print(plain_text(words.gap_cost(study.gaps), "bold"))
    largest = sorted(study.gaps, key=lambda gap: -gap.cells)
    _print_some([_gap(gap) for gap in largest], "dim", console)
    if command := words.fill_command(study):
        console.print(plain_text(command), soft_wrap=True)


def _gap(gap: Gap) -> str:
    cost = "" if gap.seconds is None else f", {duration(gap.seconds)}"
    return f"{gap.status}: {gap.what}, {words.plural(gap.cells, 'cell')}{cost}: {gap.reason}"


def _print_some(lines: Sequence[str], style: str, console: Console) -> None:
    for line in lines[:MOST_LINES]:
        console.print(plain_text(one_line(line, LONGEST), style))
    if len(lines) > MOST_LINES:
        console.print(plain_text(f"{len(lines) - MOST_LINES:,} more in the record", style))


def _grid(tunings: Sequence[str], tasks: Iterable[str], cell: Callable[[str, str], Text | None]) -> Table:
    """One row per task, one column per tuning: tasks are many, and names of columns are cut where they are long."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("task", overflow="fold")
    for tuning in tunings:
        table.add_column(plain_text(one_line(tuning, 16)), justify="right", no_wrap=True)
    for task in tasks:
        table.add_row(plain_text(task), *(cell(tuning, task) or plain_text("missing", "dim") for tuning in tunings))
    return table


def _change(change: Change) -> Text:
    return _marked(change.interval.estimate, change.verdict or words.direction(change))


def _verdict(task: TaskResult) -> Text:
    return _marked(task.difference.estimate, task.verdict)


def _marked(value: float, verdict: str) -> Text:
    known = next((one for one in SYMBOLS if one == verdict), None)
    sign, style = (SYMBOLS[known], STYLES[known]) if known else (" ", "")
    return plain_text(f"{sign} {points(value):>6}", style)
