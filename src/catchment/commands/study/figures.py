"""Geometry of a study's figures over checkpoints: their axis, trajectories, dots of one checkpoint, formats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from catchment.commands.study import words
from catchment.commands.study.record import BASE, Checkpoint, Point, Sensitivity, Study, Trajectory
from catchment.pages import WIDTH, Axis, Chart, LogAxis, Plot, Series, axis, chart, one_line, ticked
from catchment.records import Interval

T = TypeVar("T")

HUES = 6
BESIDE = 86.0
"""Units beside a plot for the names of its lines."""
LABEL, LINE = 13, 12.5
"""Most characters of a name beside a plot, and the height of one."""
MOST_LINES, MOST_POINTS, MOST_DOTS = 9, 40, 3000


def kinds(study: Study) -> dict[str, str]:
    """The class that draws each tuning: one of six hues, dashed from the seventh on; the base is grey."""
    labels = dict.fromkeys(card.label for card in study.tunings if card.label != BASE)
    for t in study.trajectories:
        labels.setdefault(t.tuning)
    for c in study.changes:
        labels.setdefault(c.tuning)
    labels.pop(BASE, None)
    numbered = {label: f"t{i % HUES}{' dashed' if i >= HUES else ''}" for i, label in enumerate(labels)}
    return {BASE: "base", **numbered}


@dataclass(frozen=True)
class Scale:
    """The axis of checkpoints of one model. ``places``: where each revision stands; ``logarithmic``: over tokens."""

    axis: LogAxis | Axis
    places: Mapping[str, float]
    labels: tuple[tuple[float, str], ...]
    logarithmic: bool

    @property
    def title(self) -> str:
        return "tokens" if self.logarithmic else "checkpoint"

    @property
    def words(self) -> str:
        if self.logarithmic:
            return "tokens that the model had seen, logarithmic"
        return "checkpoints in their order, because the tokens are not known"


def checkpoint_scale(checkpoints: Sequence[Checkpoint], seen: Iterable[tuple[str, float | None]] = ()) -> Scale:
    """Tokens on a logarithmic axis where every checkpoint has them; else checkpoints at equal steps.

    Args:
        checkpoints: Of one model.
        seen: Revisions to draw with their tokens; those that are no checkpoint of the study stand after those.
    """
    known = {c.revision: c.tokens for c in sorted(checkpoints, key=lambda c: c.order)}
    for revision, tokens in seen:
        if known.get(revision) is None:
            known[revision] = tokens
    values = [value for value in known.values() if value is not None and math.isfinite(value) and value >= 0]
    if len(values) < len(known) or not any(values):
        return _ordered(list(known))
    positive = [value for value in values if value > 0]
    low, high = min(positive), max(positive)
    made = ticked(low / 1.15, high * 1.15, 4) if low < high else ticked(low / 2, high * 2, 3)
    if 0.0 in values:
        made = LogAxis(made.low, made.high, (0.0, *made.ticks), zero=True)
    places = {revision: value or 0.0 for revision, value in known.items()}
    return Scale(made, places, tuple((tick, words.tokens(tick)) for tick in made.ticks), True)


def _ordered(revisions: Sequence[str]) -> Scale:
    last = max(len(revisions) - 1, 0)
    shown = sorted({0, last} | ({last // 2} if last >= 4 else set()))
    labels = tuple((float(i), one_line(revisions[i], 10, keep="end")) for i in shown if revisions)
    places = {revision: float(i) for i, revision in enumerate(revisions)}
    return Scale(Axis(-0.3, last + 0.3, (), 1.0), places, labels, False)


@dataclass(frozen=True)
class Label:
    """The name of a line beside it, cut where it is long; ``name``: the whole."""

    x: float
    y: float
    text: str
    name: str
    kind: str


@dataclass(frozen=True)
class Plateau:
    """Where a line stops rising: the estimate and its interval, at the height of the line there."""

    low: float
    high: float
    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Panel:
    """One task. ``labels`` is empty where the names did not fit; ``left_out``: lines that are not drawn."""

    name: str
    chart: Chart
    summary: str
    labels: tuple[Label, ...] = ()
    plateaus: tuple[Plateau, ...] = ()
    note: str = ""
    left_out: int = 0


def without_dots(panel: Panel) -> Panel:
    """The lines alone: of very many points the words of each would make the page large."""
    curves = tuple(replace(curve, dots=()) for curve in panel.chart.curves)
    return replace(panel, chart=replace(panel.chart, curves=curves))


def dots_of(panels: Iterable[Panel]) -> int:
    """The number of points with words."""
    return sum(len(curve.dots) for panel in panels for curve in panel.chart.curves)


@dataclass(frozen=True)
class Line:
    """What a panel draws: values by checkpoint, with ``low`` and ``high`` equal to them where there is no interval."""

    name: str
    kind: str
    points: tuple[tuple[float, float, float, float, str], ...]


def trajectory_panel(
    task: str, trajectories: Sequence[Trajectory], scale: Scale, kinds: Mapping[str, str], floor: float | None
) -> Panel:
    """Scores of one task by checkpoint, with bands, the noise floor around the base and plateaus on their lines."""
    drawn = _first(trajectories)
    lines = [_line(one, scale, kinds) for one in drawn]
    notes = [f"{words.tuning_name(t.tuning)}: {t.plateau_note}" for t in drawn if t.plateau is None and t.plateau_note]
    base = next((line for line in lines if line.kind == "base"), None)
    noise = _noise(base, floor) if base and floor else ()
    made = panel(task, lines, scale, under=noise)
    plot = _plot(made, lines, scale, noise)
    plateaus = [_plateau(t, line, plot) for t, line in zip(drawn, lines, strict=True) if t.plateau and line.points]
    return replace(
        made,
        plateaus=tuple(plateaus) if scale.logarithmic else (),
        note="; ".join(notes),
        left_out=len(trajectories) - len(drawn),
    )


def _first(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The base and the tunings, in order, as many as a panel draws."""
    ordered = sorted(trajectories, key=lambda t: t.tuning != BASE)
    return ordered[:MOST_LINES]


def _line(one: Trajectory, scale: Scale, kinds: Mapping[str, str]) -> Line:
    points = [p for p in one.points if p.revision in scale.places and math.isfinite(p.interval.estimate)]
    points = thinned(sorted(points, key=lambda p: scale.places[p.revision]))
    made = tuple((scale.places[p.revision], *ends(p.interval), point_words(one.tuning, p)) for p in points)
    return Line(words.tuning_name(one.tuning), kinds.get(one.tuning, "t0"), made)


def thinned(values: Sequence[T]) -> list[T]:
    """At most 40 of the values, evenly over their order, the ends among them."""
    if len(values) <= MOST_POINTS:
        return list(values)
    step = (len(values) - 1) / (MOST_POINTS - 1)
    return [values[round(i * step)] for i in range(MOST_POINTS)]


def thinned_words(number: int) -> str:
    """What a reader must know where not every checkpoint is drawn."""
    return (
        f"{MOST_POINTS} of {number:,} checkpoints are drawn, evenly over their order." if number > MOST_POINTS else ""
    )


def ends(interval: Interval) -> tuple[float, float, float]:
    """Estimate, low and high; an end that is no number, or that nothing bounds, falls on the estimate."""
    if not words.bounded(interval):
        return (interval.estimate,) * 3
    low, high = (x if math.isfinite(x) else interval.estimate for x in (interval.low, interval.high))
    return interval.estimate, low, high


def point_words(tuning: str, point: Point) -> str:
    """A point in words: tuning, checkpoint, value with interval, n."""
    size = words.plural(point.n, "item") if point.n else "n not known"
    seeds = f", {words.plural(point.seeds, 'seed')}" if point.seeds else ""
    at = f" ({seen} tokens)" if (seen := words.tokens(point.tokens)) else ""
    name = words.tuning_name(tuning)
    return f"{name} at {point.revision}{at}: {words.interval_percent(point.interval)}, {size}{seeds}"


def _noise(base: Line, floor: float) -> tuple[Line, ...]:
    return (Line("", "noise", tuple((x, y, y - floor, y + floor, "") for x, y, *_ in base.points)),)


def panel(name: str, lines: Sequence[Line], scale: Scale, under: Sequence[Line] = (), zero: bool = False) -> Panel:
    """Lines over checkpoints with their names beside them where these fit; ``zero`` draws the line at 0."""
    lines = [line for line in lines if line.points]
    plot = _plot(None, lines, scale, under, zero)
    series = [Series(line.kind, line.points) for line in (*under, *lines)]
    made = chart(series, plot, [(0.0, "base-line", "")] if zero else [], x_labels=scale.labels)
    lasts = [(line, plot.px(line.points[-1][0]), plot.py(line.points[-1][1])) for line in lines]
    return Panel(name, made, _summary(lines, zero), _labels(lasts, plot) if plot.right > 8.0 else ())


def _plot(
    made: Panel | None, lines: Sequence[Line], scale: Scale, under: Sequence[Line] = (), zero: bool = False
) -> Plot:
    values = [value for line in (*lines, *under) for point in line.points for value in point[1:4]]
    names = [one_line(line.name, LABEL) for line in lines]
    fits = 0 < len(lines) * LINE <= (100 if zero else 130) and len(set(names)) == len(names)
    beside = min(BESIDE, 14 + 6.4 * max(map(len, names))) if fits else 8.0
    return Plot(
        scale.axis, axis([*values, *([0.0] if zero else [])], 4 if zero else 5), 135.0 if zero else 165.0, beside
    )


def _labels(lasts: Sequence[tuple[Line, float, float]], plot: Plot) -> tuple[Label, ...]:
    """Names at the ends of lines, moved apart where they would run into each other."""
    ordered = sorted(lasts, key=lambda last: last[2])
    heights: list[float] = []
    for _, _, y in ordered:
        heights.append(max(y, heights[-1] + LINE) if heights else y)
    excess = heights[-1] - plot.bottom if heights else 0.0
    if excess > 0:
        heights[-1] -= excess
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - LINE)
    x = WIDTH - plot.right + 7
    return tuple(
        Label(x, round(y + 4, 1), one_line(line.name, LABEL), line.name, line.kind)
        for (line, _, _), y in zip(ordered, heights, strict=True)
    )


def _summary(lines: Sequence[Line], difference: bool) -> str:
    """The last value of every line, for those who do not see the drawing."""
    text = words.pts if difference else words.pct
    told = [f"{line.name} {text(line.points[-1][1])}" for line in lines[:MOST_LINES]]
    return f"Last values: {', '.join(told)}." if told else "No values."


def _plateau(one: Trajectory, line: Line, plot: Plot) -> Plateau:
    found = one.plateau
    assert found is not None
    y = plot.py(_height(line.points, found.estimate))
    text = f"{line.name} stops rising at {words.tokens(found.estimate)} tokens"
    text += f" ({words.tokens(found.low)} to {words.tokens(found.high)}, {words.levels([found])})"
    return Plateau(plot.px(found.low), plot.px(found.high), plot.px(found.estimate), y, line.kind, text)


def _height(points: Sequence[tuple[float, float, float, float, str]], x: float) -> float:
    """The value of a line at x, along its straight pieces over log x."""
    before = [p for p in points if p[0] <= x] or [points[0]]
    after = [p for p in points if p[0] >= x] or [points[-1]]
    (x0, y0), (x1, y1) = before[-1][:2], after[0][:2]
    if x0 <= 0 or x1 <= x0:
        return y0
    return y0 + (y1 - y0) * math.log(x / x0) / math.log(x1 / x0)


@dataclass(frozen=True)
class DotRow:
    """One tuning at one checkpoint: its interval in percent of the width."""

    name: str
    kind: str
    low: float
    high: float
    middle: float
    value: str
    title: str


@dataclass(frozen=True)
class Dots:
    """One task at one checkpoint. ``noise``: left edge and width of the noise floor around the base."""

    name: str
    axis: Axis
    rows: tuple[DotRow, ...]
    base: float | None = None
    noise: tuple[float, float] | None = None
    left_out: int = 0


def dot_panel(task: str, trajectories: Sequence[Trajectory], kinds: Mapping[str, str], floor: float | None) -> Dots:
    """Scores of one task at the only checkpoint, one row per tuning."""
    last = [(one, one.points[-1]) for one in _first(trajectories) if one.points]
    drawn = [(one, point) for one, point in last if math.isfinite(point.interval.estimate)]
    values = [value for _, point in drawn for value in ends(point.interval)]
    base = next((point.interval.estimate for one, point in drawn if one.tuning == BASE), None)
    around = [base - floor, base + floor] if base is not None and floor else []
    scale = axis([*values, *around], 4)
    rows = []
    for one, point in drawn:
        middle, low, high = (scale.at(value) for value in ends(point.interval))
        text = words.pct(point.interval.estimate)
        name = words.tuning_name(one.tuning)
        kind = kinds.get(one.tuning, "t0")
        rows.append(DotRow(name, kind, low, high, middle, text, point_words(one.tuning, point)))
    noise = (scale.at(around[0]), round(scale.at(around[1]) - scale.at(around[0]), 3)) if around else None
    at = scale.at(base) if base is not None else None
    return Dots(task, scale, tuple(rows), at, noise, len(trajectories) - len(drawn))


@dataclass(frozen=True)
class FormatPanels:
    """Prompt formats on one task by checkpoint: the spread, and the default minus each other format."""

    task: str
    panels: tuple[Panel, ...]
    x_title: str


def format_panels(
    task: str, sensitivities: Sequence[Sensitivity], scale: Scale, kinds: Mapping[str, str]
) -> FormatPanels:
    """One panel for the spread and one per other format; one line per tuning."""
    by_tuning = _by_tuning(sensitivities, scale)
    spread = [
        Line(
            words.tuning_name(tuning), kinds.get(tuning, "t0"), tuple(_flat(scale, s, s.spread, "spread") for s in some)
        )
        for tuning, some in by_tuning
    ]
    panels = [panel("spread (max − min)", spread, scale, zero=True)]
    for other in dict.fromkeys(name for s in sensitivities for name, _ in s.differences):
        lines = [
            Line(
                words.tuning_name(tuning),
                kinds.get(tuning, "t0"),
                tuple(
                    _flat(scale, s, value, f"default − {other}")
                    for s in some
                    for name, value in s.differences
                    if name == other
                ),
            )
            for tuning, some in by_tuning
        ]
        panels.append(panel(f"{_default(sensitivities)} − {other}", lines, scale, zero=True))
    return FormatPanels(task, tuple(panels), scale.title)


def _default(sensitivities: Sequence[Sensitivity]) -> str:
    return next((s.scores[0][0] for s in sensitivities if s.scores), "default")


def _by_tuning(sensitivities: Sequence[Sensitivity], scale: Scale) -> list[tuple[str, list[Sensitivity]]]:
    there = [s for s in sensitivities if s.revision in scale.places and math.isfinite(s.spread)]
    ordered = sorted(there, key=lambda s: (s.tuning != BASE, s.tuning, scale.places[s.revision]))
    return [(tuning, thinned(list(some))) for tuning, some in groupby(ordered, key=lambda s: s.tuning)][:MOST_LINES]


def _flat(scale: Scale, s: Sensitivity, value: float, what: str) -> tuple[float, float, float, float, str]:
    size = words.plural(s.n, "item") if s.n else "n not known"
    text = f"{words.tuning_name(s.tuning)} at {s.revision}: {what} {words.pts(value)} points, {size}"
    return scale.places[s.revision], value, value, value, text
