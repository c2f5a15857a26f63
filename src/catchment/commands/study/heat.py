"""The forgetting matrix as a table of colours, and changes against base scores."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catchment.commands.study import words
from catchment.commands.study.figures import ends
from catchment.commands.study.record import Change, Matrix, Study
from catchment.pages import Chart, Plot, axis, chart

STEPS = (0.005, 0.02, 0.05, 0.10, 0.20, 0.40)
"""Sizes of change at which the colour steps up: the same in every study, so that pages can be compared."""
MOST_CELLS, MOST_SIDE = 3000, 50
MOST_SPOTS = 250
SHAPES = {
    "learned": "base above chance",
    "unlearned": "base not above chance",
    "unknown": "whether the base is above chance is not tested",
}


@dataclass(frozen=True)
class HeatCell:
    """One place. ``shade``: the class of its colour; empty where it is missing. ``shown``: the interval is not
    over 0."""

    text: str
    shade: str
    title: str
    in_domain: bool = False
    shown: bool = False


@dataclass(frozen=True)
class HeatRow:
    tuning: str
    cells: tuple[HeatCell, ...]
    transfer: HeatCell


@dataclass(frozen=True)
class Heat:
    """The matrix of one model and checkpoint. ``missing``: places without both scores; ``left_out``: rows and columns
    that are not drawn."""

    model: str
    revision: str
    tokens: str
    tasks: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    missing: int
    left_out: int


def shade(value: float | None) -> str:
    """The class of a change: ``up3`` and ``down3`` from 5 points on, ``even`` below half a point.

    >>> shade(0.07), shade(-0.5), shade(0.004), shade(None)
    ('up3', 'down6', 'even', '')
    """
    if value is None or not math.isfinite(value):
        return ""
    step = bisect_right(STEPS, abs(value) + 1e-12)
    return f"{'up' if value > 0 else 'down'}{step}" if step else "even"


def heats(study: Study) -> tuple[list[Heat], list[Heat], int]:
    """Matrices of the last checkpoint of each model, the others from late to early, and how many are not shown."""
    order = {(c.model, c.revision): c.order for c in study.checkpoints}
    models = {m.model: i for i, m in reversed(list(enumerate(study.matrices)))}
    late = sorted(study.matrices, key=lambda m: (models[m.model], -order.get((m.model, m.revision), -1)))
    last = [m for i, m in enumerate(late) if i == 0 or late[i - 1].model != m.model]
    others = [m for m in late if m not in last]
    room = MOST_CELLS
    drawn: list[Heat] = []
    changes = {(c.model, c.revision, c.tuning, c.task): c for c in study.changes}
    tokens = {(c.model, c.revision): words.tokens(c.tokens) for c in study.checkpoints}
    for matrix in (*last, *others):
        room -= max(1, len(matrix.tunings) * len(matrix.tasks))
        if room < 0 and drawn:
            break
        drawn.append(_heat(matrix, study, changes, tokens.get((matrix.model, matrix.revision), "")))
    cut = min(len(last), len(drawn))
    return drawn[:cut], drawn[cut:], len(late) - len(drawn)


def _heat(matrix: Matrix, study: Study, changes: Mapping[tuple[str, str, str, str], Change], tokens: str) -> Heat:
    inside = {card.label: card.in_domain for card in study.tunings}
    tasks = matrix.tasks[:MOST_SIDE]
    rows = []
    for tuning, values, transfer in list(zip(matrix.tunings, matrix.values, matrix.transfer, strict=True))[:MOST_SIDE]:
        cells = tuple(
            _cell(
                value,
                changes.get((matrix.model, matrix.revision, tuning, task)),
                f"{tuning} on {task}",
                task in inside.get(tuning, ()),
            )
            for task, value in zip(tasks, values, strict=False)
        )
        mean = HeatCell(words.pts(transfer), shade(transfer), f"{tuning}: mean over tasks outside its domain")
        rows.append(HeatRow(tuning, cells, mean))
    left_out = len(matrix.tunings) * len(matrix.tasks) - len(rows) * len(tasks)
    return Heat(matrix.model, matrix.revision, tokens, tasks, tuple(rows), matrix.missing, left_out)


def _cell(value: float | None, change: Change | None, where: str, in_domain: bool) -> HeatCell:
    if not shade(value):
        return HeatCell("missing", "", f"{where}: missing", in_domain)
    told = f"{where}: {words.pts(value)} points"
    if change is not None:
        told += f", {_interval(change)}"
        told += f", n = {change.n:,}" if change.n else ""
    shown = change is not None and bool(words.direction(change))
    return HeatCell(words.pts(value), shade(value), told, in_domain, shown)


def _interval(change: Change) -> str:
    if not words.bounded(change.interval):
        return "no interval"
    return f"interval {words.pts(change.interval.low)} to {words.pts(change.interval.high)}"


@dataclass(frozen=True)
class Spot:
    """One change: where it stands, its interval, and the shape that says whether the base had learned the task."""

    x: float
    y: float
    low: float
    high: float
    shape: str
    kind: str
    title: str


@dataclass(frozen=True)
class Scatter:
    """Changes of one tuning against base scores."""

    name: str
    kind: str
    chart: Chart
    spots: tuple[Spot, ...]
    summary: str
    left_out: int


def scatters(study: Study, tunings: Sequence[str], kinds: Mapping[str, str]) -> list[Scatter]:
    """One panel per tuning on the same axes, so that tunings can be compared."""
    order = {(c.model, c.revision): c.order for c in study.checkpoints}
    known = [c for c in study.changes if all(map(math.isfinite, (c.base, c.interval.estimate))) and not c.refused]
    known.sort(key=lambda c: -order.get((c.model, c.revision), -1))
    chosen = [c for c in known if c.tuning in tunings]
    if not chosen:
        return []
    x = axis([0.0, *(c.base for c in chosen)], 5, 0.04)
    y = axis([0.0, *(value for c in chosen for value in ends(c.interval))], 6)
    plot = Plot(x, y, 220.0)
    near = max((c.base for c in chosen if c.near_zero), default=None)
    spans = [(x.low, near + 0.004)] if near is not None else []
    made = chart([], plot, [(0.0, "base-line", "")], spans)
    several = len({c.model for c in chosen}) > 1
    panels = []
    for tuning in tunings:
        mine = [c for c in chosen if c.tuning == tuning]
        spots = tuple(_spot(c, plot, kinds.get(tuning, "t0"), several) for c in reversed(mine[:MOST_SPOTS]))
        if mine:
            left_out = max(0, len(mine) - MOST_SPOTS)
            panels.append(Scatter(tuning, kinds.get(tuning, "t0"), made, spots, _counts(mine), left_out))
    return panels


def _spot(c: Change, plot: Plot, kind: str, several: bool) -> Spot:
    shape = {True: "learned", False: "unlearned", None: "unknown"}[c.learned]
    estimate, low, high = ends(c.interval)
    where = f"{c.model} " if several else ""
    title = f"{c.task} at {where}{c.revision}: base {words.pct(c.base)}, change {words.pts(estimate)} points "
    title += f"({_interval(c)}); {SHAPES[shape]}" + ("; near zero" if c.near_zero else "")
    return Spot(plot.px(c.base), plot.py(estimate), plot.py(low), plot.py(high), shape, kind, title)


def _counts(changes: Sequence[Change]) -> str:
    """What the panel shows, counted."""
    up = sum(words.direction(c) == "gained" for c in changes)
    down = sum(words.direction(c) == "lost" for c in changes)
    tested = [c for c in changes if c.learned is not None]
    learned = f"; base above chance in {sum(c.learned is True for c in tested):,} of {len(tested):,}" if tested else ""
    return f"{words.plural(len(changes), 'change')}: {up:,} gained, {down:,} lost{learned}."
