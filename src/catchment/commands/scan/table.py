"""What a person sees of a scan in the terminal: basins, the paragraph, what was not bought, where the page is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from catchment.commands.scan import words
from catchment.commands.scan.record import Scan
from catchment.measuring import ranked, state_of, together
from catchment.pages import percent, plain_text, points, ruler_note, sigma
from catchment.records import Worst

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def print_plan(plan: Sequence[str], console: Console) -> None:
    """One line after another."""
    for line in plan:
        console.print(line, highlight=False)


def basin_table(scan: Scan) -> Table:
    """One row per basin from narrow to wide: rank | task | n | base | tolerance | bracket | of RMS | worst case.

    Fits 80 columns for task names of up to 14 characters; longer names fold. Scales are RMS per weight.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, caption=_caption(scan), caption_justify="left", padding=(0, 1, 0, 0), show_edge=False
    )
    table.add_column("rank", no_wrap=True)
    table.add_column("task", overflow="fold")
    for name in ("n", "base", "tol.", "most case", "of RMS", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in ranked(scan.basins):
        basin = found.basin
        undecided = state_of(basin) != "bracketed"
        table.add_row(
            found.rank.replace(" to ", "-"),
            plain_text(basin.task),
            f"{basin.evaluations:,}",
            percent(basin.base),
            points(basin.tau).lstrip("+"),
            plain_text(words.between(basin.low, basin.high), "yellow" if undecided else ""),
            _compact(words.between_of_rms(basin, scan.subspace)),
            plain_text(_bound(scan.worst, basin.task)),
        )
    return table


def print_record(scan: Scan, console: Console, page: Path | str | None = None) -> None:
    """Print the basins, the paragraph in plain words, what was not measurable, warnings, what the budget did not buy
    and the path of the page.

    Args:
        scan: The record.
        console: Where to; its width is respected.
        page: Path of the written page; ``None`` prints no path.
    """
    console.print(plain_text(f"{scan.model.name}, moved: {scan.subspace.what}", "bold"), soft_wrap=True)
    console.print()
    if scan.basins:
        console.print(basin_table(scan))
        console.print()
    console.print(plain_text(scan.sentence, "bold"))
    for admission in scan.admissions:
        if not admission.admitted:
            console.print(plain_text(f"x {admission.task} is not measurable: {admission.reason}", "dim"))
    if not scan.check.ok:
        console.print(plain_text("The self-check FAILED: do not use these numbers.", "bold red"))
    for note in [*(scan.check.notes if not scan.check.ok else ()), *scan.warnings]:
        console.print(plain_text(f"warning: {note}", "yellow"))
    for panel in scan.panels:
        if not panel.bought:
            text = words.offer(panel, scan.panels, scan.plan)
            console.print(plain_text(f"not bought: {panel.title}, {text}", "dim"))
    if page is not None:
        console.print()
        console.print(plain_text(f"page: {page}"), soft_wrap=True)


def _compact(share: str) -> str:
    return share.replace("% to ", "-").replace("above ", ">").replace("below ", "<")


def _bound(worst: Sequence[Worst], task: str) -> str:
    found = next((w for w in worst if w.task == task), None)
    if found is None:
        return ""
    return "not found" if found.radius is None else f"<={sigma(found.radius)}"


def _caption(scan: Scan) -> Text:
    level = f"{100 * together(scan.basins):.4g}%"
    lines = [f"n: item evaluations; scales: RMS per weight; tol.: points. All brackets together: {level}."]
    lines.append(ruler_note(scan.subspace.ruler))
    basins = [found.basin for found in ranked(scan.basins)]
    lines += [
        f"{basin.task}: {words.reading(basin)}."
        for basin in basins
        if state_of(basin) != "bracketed" or basin.earlier == "yes"
    ]
    return plain_text("\n" + "\n".join(lines), "dim")
