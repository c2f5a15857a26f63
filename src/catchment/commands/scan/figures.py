"""Geometry of a scan's figures: the axis of brackets, the plane as a heat map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from catchment.measuring import estimate_of
from catchment.pages import LEFT, RIGHT, WIDTH, LogAxis, axis, colour, log_axis, sigma
from catchment.records import Basin, Plane


def basin_axis(basins: Sequence[Basin], more: Iterable[float] = ()) -> LogAxis:
    """A scale for brackets: it holds every end, estimate and decided rung of the basins, and ``more``."""
    values = [*more]
    for basin in basins:
        values += [basin.low, basin.high or 0.0, *(node.scale for node in basin.nodes)]
        crossed = estimate_of(basin)
        values += [crossed.estimate] if crossed else []
    return log_axis(values)


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
