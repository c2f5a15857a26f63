"""Along the way from one model to another: the room of a fine-tune, and the barrier between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from catchment.landscape.directions import Towards
from catchment.landscape.evaluator import Evaluator, Ground, NotStoredError, paired_node
from catchment.records import Barrier, Interval, Node, Room, Row, SubspaceCard
from catchment.statistics import crossing, mean_interval

BETWEEN = (0.5, 0.25, 0.75)
BEYOND = (1.5, 2.0, 3.0, 4.0)
BISECTIONS = 2
LADDER = (*BETWEEN, 1.0, *BEYOND)
Stop = Callable[[], bool]


class Ray:
    """Rows of several tasks along ``theta0 + t (tuned - base)``, measured as they are asked for.

    Args:
        evaluator: Of the base.
        way: From the base to the tuned model.
        tuned: The tuned model's own rows per task, which stand at t = 1.
    """

    def __init__(self, evaluator: Evaluator, way: Towards, tuned: Mapping[str, Mapping[str, Row]]) -> None:
        self.evaluator = evaluator
        self.way = way
        self.points: dict[str, dict[float, Mapping[str, Row]]] = {
            task: {0.0: evaluator.grounds[task].base, 1.0: rows} for task, rows in tuned.items()
        }

    def at(self, tasks: Sequence[str], t: float) -> None:
        """Measure these tasks at t, all their items."""
        due = [task for task in tasks if t not in self.points[task]]
        if due:
            wanted = {task: self.evaluator.grounds[task].items for task in due}
            rows = self.evaluator.rows(self.way.family, f"{t!r}", wanted, (self.way, t * self.way.alpha))
            for task in due:
                self.points[task][t] = rows[task]

    def scores(self, task: str, t: float) -> list[float]:
        ground = self.evaluator.grounds[task]
        return [ground.value(self.points[task][t][item]) for item in ground.items]

    def drop(self, task: str, t: float) -> float:
        start, there = self.scores(task, 0.0), self.scores(task, t)
        return (sum(start) - sum(there)) / len(start)


def measure(ray: Ray, tasks: Sequence[str], stop: Stop = lambda: False) -> None:
    """Measure what rooms and barriers are read from: the inner points, then outward until one point beyond the first
    mean drop above tau, then bisections around the first crossing. What is left when ``stop`` says so stays out, and
    rooms are wider.
    """

    def below(task: str, t: float) -> bool:
        return ray.drop(task, t) <= ray.evaluator.grounds[task].tau

    try:
        _measure(ray, tasks, below, stop)
    except NotStoredError:
        return


def _measure(ray: Ray, tasks: Sequence[str], below: Callable[[str, float], bool], stop: Stop) -> None:
    for t in BETWEEN:
        if stop():
            return
        ray.at(tasks, t)
    reaching = [task for task in tasks if all(below(task, t) for t in (*BETWEEN, 1.0))]
    crossed: list[str] = []
    for t in BEYOND:
        if stop() or not reaching + crossed:
            break
        ray.at(reaching + crossed, t)  # one point beyond the first crossing, which is often too near to be shown
        crossed = [task for task in reaching if not below(task, t)]
        reaching = [task for task in reaching if task not in crossed]
    for _ in range(BISECTIONS):
        for task in tasks:
            known = sorted(t for t in ray.points[task])
            gap = next(((a, b) for a, b in pairwise(known) if not below(task, b)), None)
            if gap is None or stop():
                continue
            ray.at([task], (gap[0] + gap[1]) / 2)


def room(ray: Ray, task: str, card: SubspaceCard, level: float = 0.95, family: int = 1) -> Room:
    """The room of one task, from the points measured; nothing is measured here.

    The direction is one, so the intervals are over items only, paired, simultaneous over the points and over
    ``family`` tasks. ``low`` is the largest t before which every point is inside (drop at most tau, shown),
    ``high`` the first one that is outside (shown).
    """
    ground = ray.evaluator.grounds[task]
    known = sorted(t for t in ray.points[task] if t > 0)
    most = len(LADDER) + BISECTIONS
    nodes = tuple(_node(ray, ground, t, level, most * family) for t in known)
    high = next((node.scale for node in nodes if node.outcome == "outside"), None)
    low = 0.0
    for node in nodes:
        if node.outcome != "inside":
            break
        low = node.scale
    drops = [ray.drop(task, t) for t in known]
    return Room(
        task=task, tau=ground.tau, t=crossing(known, drops, ground.tau), low=low, high=high, reach=known[-1],
        nodes=nodes, alpha=ray.way.alpha, subspace=card, barrier=barrier(ray, task, level), level=level,
    )  # fmt: skip


def _node(ray: Ray, ground: Ground, t: float, level: float, family: int) -> Node:
    return paired_node(ground, t, ray.scores(ground.name, 0.0), ray.scores(ground.name, t), level, family)


def barrier(ray: Ray, task: str, level: float = 0.95) -> Barrier | None:
    """How far the scores between two models fall below the straight line between the two's own:
    ``max_t [(1 - t) S(0) + t S(1) - S(t)]`` over the inner points measured (Frankle et al., arXiv 1912.05671).

    The interval is over items, at the point of the largest fall, corrected for having chosen it among the points.
    ``None`` when no inner point was measured.
    """
    inner = [t for t in ray.points[task] if 0 < t < 1]
    if not inner:
        return None
    start, end = ray.scores(task, 0.0), ray.scores(task, 1.0)

    def falls(t: float) -> list[float]:
        return [(1 - t) * a + t * b - s for a, b, s in zip(start, end, ray.scores(task, t), strict=True)]

    at = max(inner, key=lambda t: sum(falls(t)))
    interval = mean_interval([(1 + d) / 2 for d in falls(at)], 1 - (1 - level) / len(inner))
    low, middle, high = (2 * end - 1 for end in (interval.low, interval.estimate, interval.high))
    height = Interval(middle, low, high, interval.level, interval.method, len(inner))
    return Barrier(task, height, at, len(inner))
