"""The stage that draws the plane: through the model along two random directions, or towards other models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from catchment import landscape, models
from catchment.capabilities import gates
from catchment.commands.scan.bench import Allotment, Bench, Note, Stage, half_of_budget
from catchment.errors import CatchmentError, InputError
from catchment.landscape import Direction, Towards
from catchment.records import Plane, PlanePoint

PLANE_ITEMS = 24


@dataclass(frozen=True)
class Axes:
    """Two directions with their reach and names, and the other models that lie in their plane.

    Attributes:
        notes: What is to be known of the other models.
    """

    pair: tuple[Direction, Direction]
    reach: tuple[float, float]
    names: tuple[str, str]
    places: Sequence[PlanePoint] = ()
    notes: tuple[Note, ...] = ()


def draw(bench: Bench, time: Allotment) -> Iterator[Note | Plane]:
    """The whole plane or nothing."""
    task = bench.flagship
    ground = bench.evaluator.grounds[task]
    axes = _axes(bench, task)
    yield from axes.notes
    opened = bench.opened
    grid = landscape.Grid(
        axes.pair, axes.reach, opened.settings.plane, axes.names, opened.subject.card.name, axes.places
    )
    plane = landscape.plane(bench.evaluator, task, ground.items[:PLANE_ITEMS], grid, stop=time.stop)
    if plane is not None:
        yield plane


def _axes(bench: Bench, task: str) -> Axes:
    s, mover = bench.opened.settings, bench.evaluator.mover
    bench.evaluator.home()
    first, second = (landscape.gaussian(mover.subspace, s.seed, 2**20 + i) for i in (0, 1))
    if s.through:
        return _through(bench, first)
    middle = _middle(bench, task)
    if not s.filter_normalised:
        return Axes((first, second), (2.5 * middle, 2.5 * middle), ("random 1", "random 2"))
    model = bench.evaluator.engine.model
    pair = (landscape.filter_normalised(model, first), landscape.filter_normalised(model, second))
    return Axes(pair, (1.0, 1.0), ("filter-normalised 1", "filter-normalised 2"))


def _middle(bench: Bench, task: str) -> float:
    """The scale that the plane is laid out for: that of the first run, so that a later one finds its points."""
    noted = bench.journal.notes.middle
    if noted is not None:
        return noted
    basin, crossed = landscape.basin(bench.field, task), landscape.estimate(bench.field, task)
    middle = crossed.estimate if crossed else basin.high or basin.low or bench.field.design.ladder[-1]
    if not bench.evaluator.frozen:
        bench.journal.note(middle=middle)
    return middle


def _through(bench: Bench, random: Direction) -> Axes:
    """Axes towards one or two other models; where there is one, across to it a random one."""
    names, mover = bench.opened.settings.through, bench.evaluator.mover
    ways, notes = zip(*(_way(bench, spec) for spec in names), strict=True)
    said = tuple(note for some in notes for note in some)
    if len(ways) == 1:
        way = ways[0]
        one = landscape.Stored(mover.subspace, {n: way.delta(n) for n in mover.subspace.shapes}, way.address)
        pair = (one, landscape.orthogonal(one, random, mover))
        place = PlanePoint(names[0], way.alpha, 0.0)
        return Axes(pair, (1.5 * way.alpha, 1.5 * way.alpha), (f"to {names[0]}", "random"), [place], said)
    one, two, places = landscape.through(*ways)
    named = [dataclasses.replace(p, name=n) for p, n in zip(places, names, strict=True)]
    reach = (1.5 * max(abs(p.x) for p in places), 1.5 * max(abs(p.y) for p in places))
    return Axes((one, two), reach, (f"to {names[0]}", f"to {names[1]}, across"), named, said)


def _way(bench: Bench, spec: str) -> tuple[Towards, tuple[Note, ...]]:
    """The direction towards another model, and its notes."""
    model, opened = bench.evaluator.engine.model, bench.opened
    if models.named_weights(model, "adapter"):
        raise InputError(f"--through {str(spec)!r}: the model stands under an adapter; merge it and save it first.")
    options = {k: v for k, v in opened.settings.model_options().items() if k != "revision"}
    other = models.load(spec, **{**options, "dtype": opened.subject.card.dtype})
    gates.check_model(other.card.name, other.newly_initialised, models.non_finite(other.model))
    try:
        way = landscape.towards(model, other.model, opened.subspace, other.card.weights_hash)
    except CatchmentError as error:
        raise InputError(f"--through {str(spec)!r}: {error}") from error
    return way, tuple(Note(f"{other.card.name}: {note}") for note in other.card.notes)


def _price(bench: Bench) -> float:
    points = bench.opened.settings.plane**2
    return bench.seconds(points * bench.tokens(bench.flagship, PLANE_ITEMS), points)


PLANE = Stage("plane", "Plane", 0.6, draw, half_of_budget, price=_price)
