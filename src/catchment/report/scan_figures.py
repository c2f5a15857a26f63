"""Geometry of the scan's figures: logarithmic axes, bars of brackets, curves with bands, the plane as a heat map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from catchment.records import Basin, Interval, Plane, Ruler
from catchment.report.figures import Axis, axis
from catchment.report.scan_words import estimate_of, sigma

WIDTH, LEFT, RIGHT = 360.0, 46.0, 8.0
STOPS = ((0.0, (58, 28, 92)), (0.35, (45, 92, 140)), (0.7, (62, 160, 140)), (1.0, (242, 224, 122)))


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic scale between two positive ends. ``signed``: mirrored around a zero in the middle; ``zero``: a
    zero stands at the left edge, apart from the rest. ``percent``: values are labelled as percent."""

    low: float
    high: float
    ticks: tuple[float, ...]
    signed: bool = False
    zero: bool = False
    percent: bool = False

    def at(self, value: float) -> float:
        """Position of a value in percent of the width; values outside stand on the edge.

        >>> LogAxis(0.001, 0.1, ()).at(0.01), LogAxis(0.001, 0.1, (), signed=True).at(-0.1)
        (50.0, 0.0)
        """
        apart = 0.12 if self.signed else 0.08 if self.zero else 0.0
        size = abs(value) if self.signed else max(value, 0.0)
        share = math.log(size / self.low) / math.log(self.high / self.low) if size > 0 else 0.0
        share = (apart + (1 - apart) * min(max(share, 0.0), 1.0)) if size > 0 else 0.0
        if self.signed:
            share = 0.5 + math.copysign(share / 2, value)
        return round(100 * share, 3)

    @property
    def labels(self) -> tuple[tuple[float, str], ...]:
        """Positions of the ticks with their texts."""
        return tuple((self.at(tick), f"{100 * tick:g}%" if self.percent else sigma(tick)) for tick in self.ticks)


def log_axis(values: Iterable[float], most: int = 5, percent: bool = False) -> LogAxis:
    """A logarithmic scale that holds all positive values with some air, ticks at 1, 2, 5 or at powers of ten.

    >>> log_axis([0.0012, 0.008]).ticks
    (0.001, 0.002, 0.005, 0.01)
    """
    known = [value for value in values if value > 0 and math.isfinite(value)] or [1e-3]
    return ticked(min(known) / 1.4, max(known) * 1.4, most, percent=percent)


def ticked(low: float, high: float, most: int = 5, percent: bool = False, signed: bool = False) -> LogAxis:
    """A logarithmic scale with exactly these ends and at most ``most`` ticks on a side."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = _between([step * 10.0**power for power in range(first, last) for step in steps], low, high)
        if len(ticks) <= most:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    ticks = ticks or [math.sqrt(low * high)]
    if signed:  # ticks beside the zero would run into its label
        ticks = [tick for tick in ticks if math.log(tick / low) > 0.15 * math.log(high / low)]
    both = [-tick for tick in reversed(ticks)] + [0.0, *ticks] if signed else ticks
    return LogAxis(low, high, tuple(both), signed, percent=percent)


def _between(values: Sequence[float], low: float, high: float) -> list[float]:
    return [float(f"{value:.6g}") for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def basin_axis(basins: Sequence[Basin], more: Iterable[float] = ()) -> LogAxis:
    """A scale for brackets: it holds every end, estimate and decided rung of the basins, and ``more``."""
    values = [*more]
    for basin in basins:
        values += [basin.low, basin.high or 0.0, *(node.scale for node in basin.nodes)]
        crossed = estimate_of(basin)
        values += [crossed.estimate] if crossed else []
    return log_axis(values)


def relative(scale: LogAxis, ruler: Ruler | None) -> LogAxis | None:
    """The same stretch in units of the ruler, as percent; ``None`` where there is none, or it is 0."""
    rms = ruler.rms if ruler is not None else 0.0
    return ticked(scale.low / rms, scale.high / rms, percent=True) if rms > 0 else None


@dataclass(frozen=True)
class Bar:
    """A bracket on an axis, in percent of the width. ``dot``: the estimate with its interval."""

    left: float
    right: float
    open_left: bool
    open_right: bool
    dot: tuple[float, float, float] | None = None


def bar(scale: LogAxis | Axis, low: float, high: float | None, estimate: Interval | None = None) -> Bar:
    """Where a bracket stands; an end that is open (``low`` 0, ``high`` ``None``) reaches the edge."""
    dot = (scale.at(estimate.low), scale.at(estimate.high), scale.at(estimate.estimate)) if estimate else None
    left = 0.0 if low <= 0 else scale.at(low)
    return Bar(left, 100.0 if high is None else scale.at(high), low <= 0, high is None, dot)


@dataclass(frozen=True)
class Dot:
    """One measured point of a curve, in units of the drawing, with its value in words."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Curve:
    """A line with its band: ``kind`` is the class that draws it, ``path`` and ``band`` are SVG path data."""

    kind: str
    path: str
    band: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """One pane. ``rules`` are horizontal lines (y, class, label); ``spans`` are vertical stretches (x, width)."""

    height: float
    top: float
    bottom: float
    x_labels: tuple[tuple[float, str], ...]
    y_labels: tuple[tuple[float, str], ...]
    curves: tuple[Curve, ...]
    rules: tuple[tuple[float, str, str], ...] = ()
    spans: tuple[tuple[float, float], ...] = ()
    left: float = LEFT
    right: float = WIDTH - RIGHT
    width: float = WIDTH


@dataclass(frozen=True)
class Series:
    """Values of one curve before they are drawn: ``points`` are (x, y, low, high, words)."""

    kind: str
    points: tuple[tuple[float, float, float, float, str], ...] = field(default=())


def chart(
    series: Sequence[Series],
    x: LogAxis | Axis,
    y: Axis,
    rules: Sequence[tuple[float, str, str]] = (),
    spans: Sequence[tuple[float, float | None]] = (),
    height: float = 150.0,
    y_unit: float = 100.0,
) -> Chart:
    """Place curves on a drawing of 360 units: ``x`` and ``y`` turn values into percent of the plot."""
    top, bottom = 10.0, height - 22.0
    inner = WIDTH - LEFT - RIGHT

    def px(value: float) -> float:
        return round(LEFT + x.at(value) / 100 * inner, 1)

    def py(value: float) -> float:
        return round(bottom - y.at(value) / 100 * (bottom - top), 1)

    curves = []
    for one in series:
        line = [(px(p[0]), py(p[1])) for p in one.points]
        band = [(px(p[0]), py(p[3])) for p in one.points] + [(px(p[0]), py(p[2])) for p in reversed(one.points)]
        wide = any(p[2] < p[3] for p in one.points)
        dots = tuple(Dot(px(p[0]), py(p[1]), p[4]) for p in one.points if p[4])
        curves.append(Curve(one.kind, _path(line), _path(band) + "Z" if wide else "", dots))
    x_ticks = x.labels if isinstance(x, LogAxis) else tuple((x.at(t), f"{x.unit * t:g}") for t in x.ticks)
    edges = [(px(low), inner + LEFT if high is None else px(high)) for low, high in spans]
    return Chart(
        height,
        top,
        bottom,
        tuple((round(LEFT + at / 100 * inner, 1), text) for at, text in x_ticks),
        tuple((py(tick), f"{round(y_unit * tick, 6) or 0.0:g}") for tick in y.ticks),
        tuple(curves),
        tuple((py(value), kind, label) for value, kind, label in rules),
        tuple((left, round(right - left, 1)) for left, right in edges),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if index else 'M'}{px:g} {py:g}" for index, (px, py) in enumerate(points))


def scale_axis(scales: Sequence[float]) -> LogAxis | Axis:
    """The axis of a profile's scales: logarithmic, mirrored where scales have both signs; a zero stands apart."""
    sizes = [abs(scale) for scale in scales if scale != 0]
    if not sizes:
        return axis([0.0], unit=1.0)
    low, high = min(sizes), max(sizes)
    if low == high:
        low, high = low / 2, high * 2
    signed = min(scales) < 0
    made = ticked(low, high, 3 if signed else 5, signed=signed)
    if 0.0 in scales and not signed:
        return LogAxis(low, high, (0.0, *made.ticks), zero=True)
    return made


@dataclass(frozen=True)
class Cell:
    """One value of the plane as a rectangle of the heat map."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    title: str


@dataclass(frozen=True)
class HeatMap:
    """The plane without a script: cells with their exact values, models as marks, the range of colours."""

    cells: tuple[Cell, ...]
    marks: tuple[tuple[float, float, str], ...]
    x_labels: tuple[tuple[float, str], ...]
    y_labels: tuple[tuple[float, str], ...]
    low: float
    high: float
    height: float


def colour(share: float) -> str:
    """The colour of a share in [0, 1]: dark is low, light is high, in both themes; told apart without hue.

    >>> colour(0.0), colour(1.0)
    ('#3a1c5c', '#f2e07a')
    """
    share = min(max(share, 0.0), 1.0)
    for (start, one), (end, other) in pairwise(STOPS):
        if share <= end:
            part = (share - start) / (end - start)
            return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(one, other, strict=True))
    raise AssertionError("unreachable: shares end at 1")


def heat_map(plane: Plane, companion: bool = False) -> HeatMap:
    """A heat map of a plane: columns are ``xs``, rows are ``ys``, upwards; cells meet halfway between points."""
    values = plane.companions if companion else plane.values
    flat = [value for row in values for value in row]
    low, high = min(flat), max(flat)
    size = WIDTH - LEFT - RIGHT
    xs, ys = _edges(plane.xs), _edges(plane.ys)

    def px(value: float) -> float:
        return round(LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * size, 1)

    def py(value: float) -> float:
        return round(8 + (ys[-1] - value) / (ys[-1] - ys[0]) * size, 1)

    cells = []
    for j, row in enumerate(values):
        for i, value in enumerate(row):
            left, top = px(xs[i]), py(ys[j + 1])
            text = f"{value:.4g}" if companion else f"{100 * value:.1f}%"
            words = f"{sigma(plane.xs[i])}, {sigma(plane.ys[j])}: {text}"
            share = (value - low) / (high - low) if high > low else 0.5
            shape = round(px(xs[i + 1]) - left + 0.3, 1), round(py(ys[j]) - top + 0.3, 1)
            cells.append(Cell(left, top, *shape, colour(share), words))
    marks = tuple((px(model.x), py(model.y), model.name) for model in plane.models)
    x_ticks, y_ticks = axis(plane.xs, 4, 0.0).ticks, axis(plane.ys, 5, 0.0).ticks
    return HeatMap(
        tuple(cells),
        marks,
        tuple((px(tick), sigma(tick)) for tick in x_ticks),
        tuple((py(tick), sigma(tick)) for tick in y_ticks),
        low,
        high,
        size + 34,
    )


def _edges(values: Sequence[float]) -> list[float]:
    """The borders of cells around points: halfway between neighbours, as far outside at the ends."""
    if len(values) == 1:
        return [values[0] - 0.5, values[0] + 0.5]
    inner = [(a + b) / 2 for a, b in pairwise(values)]
    return [2 * values[0] - inner[0], *inner, 2 * values[-1] - inner[-1]]
