"""Two-dimensional pictures: a plane through a model, along random axes or through up to two other models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from catchment.errors import InputError
from catchment.landscape.directions import PIECE, Direction, Stored, Towards, dot, length, pieces
from catchment.landscape.displace import Mover
from catchment.landscape.evaluator import Evaluator, NotStoredError
from catchment.records import Plane, PlanePoint

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Grid:
    """A square grid ``theta + x axis1 + y axis2``, with x in ``[-reach[0], reach[0]]`` and y likewise.

    Args:
        axes: Of one subspace. The second should be orthogonal to the first; ``Plane.cosine`` says whether.
        points: Per side; odd, so that the centre is a point of the grid.
        names: Of the axes.
        centre: Name of the model in the middle.
        models: Other models that lie in the plane.

    Raises:
        InputError: An even number of points, or fewer than 3.
    """

    axes: tuple[Direction, Direction]
    reach: tuple[float, float]
    points: int
    names: tuple[str, str] = ("random 1", "random 2")
    centre: str = "model"
    models: Sequence[PlanePoint] = ()

    def __post_init__(self) -> None:
        if self.points < 3 or self.points % 2 == 0:
            raise InputError(
                f"a plane of {self.points} points a side; expected an odd number of at least 3, such as 15."
            )

    @property
    def ticks(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The x and the y of its points, rising."""
        xs, ys = (tuple(r * (2 * i / (self.points - 1) - 1) for i in range(self.points)) for r in self.reach)
        return xs, ys


def plane(
    evaluator: Evaluator, task: str, items: Sequence[str], grid: Grid, stop: Stop = lambda: False
) -> Plane | None:
    """Mean scores of the items at every point of a grid, from the centre outwards.

    Args:
        items: Scored at every point, the same ones.

    Returns:
        ``None`` when ``stop`` came first; what was measured is kept.

    Cost: ``points^2`` evaluations of ``items``.
    """
    axes, (xs, ys) = grid.axes, grid.ticks
    family = {
        "kind": "plane", "subspace": evaluator.mover.subspace.hash, "axes": [axis.address for axis in axes],
    }  # fmt: skip
    values, companions = {}, {}
    value = evaluator.grounds[task].value
    try:
        for x in sorted(xs, key=abs):
            for y in sorted(ys, key=abs):
                if stop():
                    return None
                moves = ((axes[0], x), (axes[1], y))
                rows = list(evaluator.rows(family, f"{x!r},{y!r}", {task: items}, *moves)[task].values())
                values[x, y] = sum(map(value, rows)) / len(rows)
                known = [row.companion for row in rows if row.companion is not None]
                companions[x, y] = sum(known) / len(known) if len(known) == len(rows) else math.nan
    except NotStoredError:
        return None
    evaluator.mover.restore()  # the way to another model is read off the live weights
    scores = tuple(tuple(values[x, y] for x in xs) for y in ys)
    beside = tuple(tuple(companions[x, y] for x in xs) for y in ys)
    whole = not any(math.isnan(c) for row in beside for c in row)
    models = (PlanePoint(grid.centre, 0.0, 0.0), *grid.models)
    return Plane(
        task, grid.names, xs, ys, scores, beside if whole else (), models, len(items),
        cosine(evaluator.mover, *axes), all(axis.comparable for axis in axes),
    )  # fmt: skip


def cosine(mover: Mover, one: Direction, other: Direction) -> float:
    """Of the angle between two directions, over the whole subspace, in float64, as the mover draws them. Cost: both
    are drawn once, piece by piece."""
    ab = aa = bb = 0.0
    for name in mover.subspace.shapes:
        for a, b in pieces((one, other), name, mover.device(name)):
            ab, aa, bb = ab + dot(a, b), aa + dot(a, a), bb + dot(b, b)
    return ab / math.sqrt(aa * bb) if aa * bb > 0 else math.nan


def through(first: Towards, second: Towards) -> tuple[Stored, Stored, tuple[PlanePoint, PlanePoint]]:
    """Orthogonal axes of the plane through a model and two others, and where the two stand on it.

    Gram-Schmidt: the first axis points to the first model, the second to what of the way to the second model is
    orthogonal to it. Memory: both axes.

    Raises:
        InputError: The three lie on one line, or the two ways are in different subspaces.
    """
    subspace, root = first.subspace, math.sqrt(first.subspace.size)
    if second.subspace.hash != subspace.hash:
        raise InputError("the ways to the two models lie in different subspaces; make both with the same one.")
    a = {name: first.delta(name) for name in subspace.shapes}
    b = {name: second.delta(name) for name in subspace.shapes}
    along = sum(dot(a[name], b[name]) for name in a) / subspace.size
    for name in a:
        b[name].sub_(a[name], alpha=along)
    rms = math.sqrt(sum(dot(v, v) for v in b.values())) / root
    if rms < 1e-4:
        raise InputError("the three models lie on one line; a plane needs two that differ in direction.")
    identity: dict[str, Any] = {"through": [first.identity, second.identity]}
    axes = (
        Stored(subspace, a, {**identity, "axis": 1}),
        Stored(subspace, {name: v.div_(rms) for name, v in b.items()}, {**identity, "axis": 2}),
    )
    places = (
        PlanePoint(first.identity, first.alpha, 0.0),
        PlanePoint(second.identity, second.alpha * along, second.alpha * rms),
    )
    return *axes, places


def orthogonal(one: Direction, other: Direction, mover: Mover | None = None) -> Stored:
    """``other`` without its part along ``one``, RMS 1. Memory: one direction.

    Args:
        mover: Both are drawn where it draws them, with the weights; without one on the CPU. A GPU draws other numbers.
    """
    subspace = one.subspace
    device = {name: "cpu" if mover is None else mover.device(name) for name in subspace.shapes}
    ab = aa = 0.0
    for name in subspace.shapes:
        for a, b in pieces((one, other), name, device[name]):
            ab, aa = ab + dot(a, b), aa + dot(a, a)
    kept = {}
    for name in subspace.shapes:
        kept[name] = torch.empty(length(subspace, name), device=device[name])
        parts = zip(kept[name].split(PIECE), pieces((one, other), name, device[name]), strict=True)
        for out, (a, b) in parts:
            torch.sub(b, a, alpha=ab / aa, out=out)
    rms = math.sqrt(sum(dot(v, v) for v in kept.values()) / subspace.size)
    unit = {name: v.div_(rms) for name, v in kept.items()}
    return Stored(subspace, unit, {"of": other.address, "across": one.address}, comparable=one.comparable)
