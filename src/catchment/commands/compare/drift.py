"""Drift of the weights as it is drawn: by layer and kind, and what belongs to no layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from catchment.records import Drift, DriftRow
from catchment.statistics import Tally, ruler


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


MOST_HINTS = 1000


def heat_cell(heat: Heat) -> float:
    """Width of a cell in units of the drawing."""
    return min(24.0, max(6.0, round(430 / len(heat.layers), 1)))


def heat_hints(heat: Heat) -> bool:
    """Whether cells carry their value as a hint; on large grids the hints would outweigh the rest of the page."""
    return len(heat.layers) * len(heat.rows) <= MOST_HINTS


def layer_every(heat: Heat) -> int:
    """How many layers lie from one label to the next."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 1000) if step * heat_cell(heat) >= 26)


def heat_gutter(heat: Heat) -> float:
    """Room for the names of the kinds."""
    return 16 + 6.2 * min(24, max(len(row.kind) for row in heat.rows))
