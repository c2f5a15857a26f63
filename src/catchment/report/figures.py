"""Geometry of the figures: where things stand, in percent of the plot's width. Templates draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from catchment.records import Drift, DriftRow, Interval
from catchment.statistics import Tally, ruler

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A linear scale. ``ticks`` are values in data units; they are labelled as ``unit`` times the value."""

    low: float
    high: float
    ticks: tuple[float, ...]
    unit: float = 100.0

    def at(self, value: float) -> float:
        """Position of a value in percent of the width; values outside stand on the edge.

        >>> Axis(-1.0, 1.0, (0.0,)).at(0.5)
        75.0
        """
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)


def axis(values: Iterable[float], most: int = 7, padding: float = 0.06, unit: float = 100.0) -> Axis:
    """A scale that holds all values, with at most about ``most`` round ticks.

    >>> axis([-0.12, 0.35]).ticks
    (-0.1, 0.0, 0.1, 0.2, 0.3)
    """
    low, high = _range(values)
    span = high - low
    low, high = low - padding * span, high + padding * span
    step = _step(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(round(i * step, 12) for i in range(first, last + 1)), unit)


def _range(values: Iterable[float]) -> tuple[float, float]:
    known = list(values) or [0.0]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _step(span: float, most: int) -> float:
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * step for step in STEPS if span / (power * step) <= most)


@dataclass(frozen=True)
class Mark:
    """An interval with its estimate on an axis, in percent of the width."""

    low: float
    high: float
    middle: float


def mark(scale: Axis, interval: Interval) -> Mark:
    """Where an interval stands on an axis."""
    return Mark(scale.at(interval.low), scale.at(interval.high), scale.at(interval.estimate))


@dataclass(frozen=True)
class HeatRow:
    """One kind of tensor over the layers; ``None`` where a layer has no such tensor."""

    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Heat:
    """Drift by layer and kind: the first row is each layer as a whole."""

    name: str
    layers: tuple[int, ...]
    rows: tuple[HeatRow, ...]
    top: float

    def strength(self, value: float) -> float:
        """Share of the strongest value, in [0, 1]."""
        return round(value / self.top, 3) if self.top > 0 else 0.0


@dataclass(frozen=True)
class Moved:
    """Tensors taken together: ``rms`` = ||delta|| / sqrt(size); ``relative`` = rms / the ruler of these tensors."""

    name: str
    size: int
    relative: float | None
    rms: float
    changed: int


def together(name: str, tensors: Sequence[DriftRow]) -> Moved:
    """Drift of several tensors as one vector: squared distances add. Relative to the RMS of the matrices among them,
    so that gains of norms do not hide how far these moved; of one tensor it is ||delta|| / ||base||."""
    size = sum(tensor.size for tensor in tensors)
    rms = math.sqrt(sum(tensor.distance**2 for tensor in tensors) / size) if size else 0.0
    return Moved(name, size, _relative(tensors, rms), rms, sum(tensor.changed for tensor in tensors))


def _relative(tensors: Sequence[DriftRow], rms: float) -> float | None:
    """``None``: an old record, which does not say which of several tensors are matrices."""
    if len(tensors) == 1:
        return tensors[0].relative
    if any(tensor.matrix is None for tensor in tensors):
        return None
    measure = ruler([Tally(t.name, bool(t.matrix), t.size, t.norm**2) for t in tensors])
    return rms / measure.rms if measure is not None and measure.rms > 0 else float(rms > 0)


def heats(drift: Drift) -> tuple[Heat, Heat] | None:
    """The two grids, relative and RMS; ``None`` when no tensor belongs to a layer."""
    inside = [tensor for tensor in drift.tensors if tensor.layer is not None]
    if not inside:
        return None
    layers = tuple(sorted({tensor.layer for tensor in inside if tensor.layer is not None}))
    kinds = tuple(dict.fromkeys(tensor.kind for tensor in inside))
    cells: dict[tuple[str, int | None], list[DriftRow]] = {}
    for tensor in inside:
        cells.setdefault((tensor.kind, tensor.layer), []).append(tensor)
        cells.setdefault(("", tensor.layer), []).append(tensor)
    moved = {key: together("", tensors) for key, tensors in cells.items()}

    def grid(name: str, relative: bool) -> Heat:
        def value(kind: str, layer: int) -> float | None:
            cell = moved.get((kind, layer))
            return None if cell is None else cell.relative if relative else cell.rms

        rows = tuple(
            HeatRow(kind or "whole layer", tuple(value(kind, layer) for layer in layers)) for kind in ("", *kinds)
        )
        top = max((v for row in rows for v in row.values if v is not None), default=0.0)
        return Heat(name, layers, rows, top)

    return grid("relative", True), grid("rms", False)


def outside_layers(drift: Drift) -> list[Moved]:
    """Drift of what belongs to no layer (embeddings, final norm, output head), by kind."""
    kinds: dict[str, list[DriftRow]] = {}
    for tensor in drift.tensors:
        if tensor.layer is None:
            kinds.setdefault(tensor.kind, []).append(tensor)
    return [together(kind, tensors) for kind, tensors in kinds.items()]


def scientific(value: float) -> str:
    """A small number with two significant digits.

    >>> scientific(0.0), scientific(0.00031), scientific(0.25)
    ('0', '3.1e-04', '0.25')
    """
    if value == 0:
        return "0"
    return f"{value:.2g}" if abs(value) >= 0.01 else f"{value:.1e}"


def passed_at(scale: float | None, below: float | None, reach: float) -> str:
    """Where a bound was passed; an end that was not measured is said in words.

    >>> passed_at(0.02, None, 0.1), passed_at(None, 0.01, 0.1), passed_at(None, None, 0.1)
    ('0.02', 'below 0.01', 'beyond 0.1')
    """
    if scale is not None:
        return scientific(scale)
    return f"beyond {scientific(reach)}" if below is None else f"below {scientific(below)}"


def share(value: float) -> str:
    """A share as percent that does not hide a small change behind zero.

    >>> share(0.0), share(0.00004), share(0.031)
    ('0%', '0.004%', '3.1%')
    """
    if value == 0:
        return "0%"
    return f"{100 * value:.1f}%" if value >= 0.001 else f"{100 * value:.1g}%"
