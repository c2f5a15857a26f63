"""What a person sees of a comparison in the terminal: the table, the verdict, three flips and where the page is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from catchment.commands.compare.allocation import Plan
from catchment.commands.compare.flips import most_telling
from catchment.commands.compare.record import Comparison
from catchment.commands.compare.words import SYMBOLS, room_span, room_words, typical_words
from catchment.measuring import family, room_state, short_note
from catchment.pages import clean, interval_points, level, one_line, percent, plain_text, points, times
from catchment.records import AgreementResult, Flip, Room, TaskResult, Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STYLES: dict[Verdict, str] = {
    "gained": "bold cyan",
    "lost": "bold red",
    "kept": "green",
    "undecided": "yellow",
    "not measurable": "dim",
}


def print_plan(plan: Plan, console: Console) -> None:
    """One row per task: its items, of how many, what one costs, and the half-width that they buy."""
    from rich.table import Table

    table = Table(title="Plan", caption=plan.sentence())
    for name in ("task", "items", "of", "tokens per item", "± points"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for t in plan.tasks:
        table.add_row(t.task, f"{t.items:,}", f"{t.available:,}", f"{t.tokens:.0f}", f"{100 * t.half_width:.1f}")
    console.print(table)


def comparison_table(comparison: Comparison) -> Table:
    """One row per task: task | n | base | tuned | difference in points with interval | verdict.

    Fits 80 columns for task names of up to 16 characters; longer names fold. Every verdict is a word and a
    symbol, so that nothing depends on colour.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, caption=_caption(comparison), caption_justify="left", padding=(0, 1, 0, 0), show_edge=False
    )
    table.add_column("task", overflow="fold")
    for name in ("n", "base", "tuned"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"difference, {level(comparison.alpha)}", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for task in comparison.tasks:
        table.add_row(
            plain_text(task.task),
            f"{task.n:,}",
            percent(task.base),
            percent(task.tuned),
            _difference(task),
            _verdict(task),
        )
    return table


def print_record(comparison: Comparison, console: Console, page_path: Path | str | None = None) -> None:
    """Print the table, the verdict in words, the three most telling flips (losses first), warnings and the path
    of the page.

    Args:
        comparison: The record.
        console: Where to; its width is respected.
        page_path: Path of the written page; ``None`` prints no path.
    """
    console.print(plain_text(f"{comparison.base.name} -> {comparison.tuned.name}", "bold"), soft_wrap=True)
    console.print()
    console.print(comparison_table(comparison))
    console.print()
    console.print(plain_text(comparison.verdict, "bold"))
    for found in comparison.agreements:
        console.print(plain_text(_agreement(found)))
    if comparison.rooms:
        _print_rooms(comparison.rooms, console)
    flips = most_telling(comparison)
    if flips:
        total = sum(task.flips_lost + task.flips_gained for task in comparison.tasks)
        console.print(
            plain_text(f"\nThe {len(flips)} most telling of {max(total, len(flips)):,} flipped items", "bold")
        )
        for flip in flips:
            _print_flip(flip, console)
    for warning in comparison.warnings:
        console.print(plain_text(f"warning: {warning}", "yellow"))
    if page_path is not None:
        console.print()
        console.print(plain_text(f"page: {page_path}"), soft_wrap=True)


def room_table(rooms: Sequence[Room]) -> Table:
    """One row per task: task | tolerance | t, where the tolerance ends on the way (0 base, 1 tuned) | its bracket |
    reading | random moves and an attack, in sizes of this move, beside it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("room", overflow="fold")
    for name in ("tolerance", "t", "bracket"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reading", no_wrap=True)
    for name in ("random", "attack"):
        table.add_column(name, justify="right", no_wrap=True, style="dim")
    styles: dict[str, str] = {"inside": STYLES["kept"], "used up": STYLES["lost"], "undecided": STYLES["undecided"]}
    for room in rooms:
        table.add_row(
            plain_text(room.task),
            points(room.tau).lstrip("+"),
            "" if room.t is None else times(room.t),
            room_span(room),
            plain_text(room_state(room), styles[room_state(room)]),
            typical_words(room.typical).replace("–", ""),
            "" if room.worst is None else times(room.worst),
        )
    return table


def _print_rooms(rooms: Sequence[Room], console: Console) -> None:
    console.print()
    console.print(room_table(rooms))
    for room in rooms:
        console.print(plain_text(f"{room.task}: {room_words(room)}."))
        barrier = room.barrier
        if barrier is not None and barrier.height.low > 0:
            size = f"{points(barrier.height.estimate).lstrip('+')} points ({interval_points(barrier.height)})"
            console.print(plain_text(f"{room.task}: a barrier of {size} lies at t = {times(barrier.at)}."))
    note = (
        "t runs from the base (0) through the tuned model (1). No verdict rests on random and attack "
        "(in sizes of this move): random moves are tolerated far better than a harmful one."
    )
    console.print(plain_text(note, "dim"))


def _agreement(found: AgreementResult) -> str:
    interval = f"[{percent(found.agreement.low)}, {percent(found.agreement.high)}]"
    return (
        f"Agreement with the base on {found.name}: {percent(found.agreement.estimate)} {interval}, {found.n:,} prompts."
    )


def _print_flip(flip: Flip, console: Console) -> None:
    from rich.padding import Padding

    symbol, style = SYMBOLS[flip.direction], STYLES[flip.direction]
    head = plain_text(f"{symbol} {flip.direction} ", style).append_text(plain_text(clean(flip.task), "bold"))
    console.print(Padding(head, (0, 0, 0, 2)))
    width = max(20, console.width - 15)
    lines = (
        ("prompt", one_line(flip.prompt, 2 * width, keep="end")),
        ("expected", one_line(flip.expected, width)),
        ("base", one_line(flip.base_answer, width)),
        ("tuned", one_line(flip.tuned_answer, width)),
    )
    for name, value in lines:
        console.print(_hanging(name, value or "(empty)"))


def _hanging(name: str, value: str) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=4)
    grid.add_column(width=8)
    grid.add_column(overflow="fold")
    grid.add_row("", plain_text(name, "dim"), plain_text(value))
    return grid


def _difference(task: TaskResult) -> Text:
    low, high = interval_points(task.difference).split(" to ")
    return plain_text(f"{points(task.difference.estimate):>5}  [{low:>5}, {high:>5}]")


def _verdict(task: TaskResult) -> Text:
    return plain_text(f"{SYMBOLS[task.verdict]} {task.verdict}", STYLES[task.verdict])


def _caption(comparison: Comparison) -> Text:
    size = family(comparison.tasks)
    together = f", holding for all {size} tasks together" if size > 1 else ""
    lines = [f"Differences in percentage points, {level(comparison.alpha)} intervals{together}."]
    lines += [f"{task.task}: {note}." for task in comparison.tasks if (note := short_note(task))]
    return plain_text("\n" + "\n".join(lines), "dim")
