"""Geometry of charts: bars of brackets, curves with bands, colours. Templates draw them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from catchment.pages.axes import Axis, LogAxis
from catchment.records import Interval

WIDTH, LEFT, RIGHT = 360.0, 46.0, 8.0
STOPS = ((0.0, (58, 28, 92)), (0.35, (45, 92, 140)), (0.7, (62, 160, 140)), (1.0, (242, 224, 122)))


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


@dataclass(frozen=True)
class Plot:
    """Where values stand on a drawing of 360 units: ``x`` and ``y`` turn them into percent of the plot, which leaves
    ``right`` units free beside it."""

    x: LogAxis | Axis
    y: Axis
    height: float = 150.0
    right: float = RIGHT

    top = 10.0

    @property
    def bottom(self) -> float:
        return self.height - 22.0

    @property
    def inner(self) -> float:
        return WIDTH - LEFT - self.right

    def px(self, value: float) -> float:
        return self.across(self.x.at(value))

    def py(self, value: float) -> float:
        return round(self.bottom - self.y.at(value) / 100 * (self.bottom - self.top), 1)

    def across(self, percent: float) -> float:
        return round(LEFT + percent / 100 * self.inner, 1)


def chart(
    series: Sequence[Series],
    plot: Plot,
    rules: Sequence[tuple[float, str, str]] = (),
    spans: Sequence[tuple[float, float | None]] = (),
    x_labels: Sequence[tuple[float, str]] | None = None,
    y_unit: float = 100.0,
) -> Chart:
    """Place curves on a plot. ``x_labels``: texts at values, instead of those of the axis."""
    x, px, py = plot.x, plot.px, plot.py
    curves = []
    for one in series:
        line = [(px(p[0]), py(p[1])) for p in one.points]
        band = [(px(p[0]), py(p[3])) for p in one.points] + [(px(p[0]), py(p[2])) for p in reversed(one.points)]
        wide = any(p[2] < p[3] for p in one.points)
        dots = tuple(Dot(px(p[0]), py(p[1]), p[4]) for p in one.points if p[4])
        curves.append(Curve(one.kind, _path(line), _path(band) + "Z" if wide else "", dots))
    edges = [(px(low), plot.across(100) if high is None else px(high)) for low, high in spans]
    return Chart(
        plot.height,
        plot.top,
        plot.bottom,
        tuple((plot.across(at), text) for at, text in _x_labels(x, x_labels)),
        tuple((py(tick), f"{round(y_unit * tick, 6) or 0.0:g}") for tick in plot.y.ticks),
        tuple(curves),
        tuple((py(value), kind, label) for value, kind, label in rules),
        tuple((left, round(right - left, 1)) for left, right in edges),
        right=plot.across(100),
    )


def _x_labels(x: LogAxis | Axis, given: Sequence[tuple[float, str]] | None) -> Sequence[tuple[float, str]]:
    if given is not None:
        return [(x.at(value), text) for value, text in given]
    return x.labels if isinstance(x, LogAxis) else [(x.at(tick), f"{x.unit * tick:g}") for tick in x.ticks]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if index else 'M'}{px:g} {py:g}" for index, (px, py) in enumerate(points))


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
