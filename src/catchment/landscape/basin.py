"""Most-case landscapes: the search for a task's bracket, and its basin and profile, read off the same units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from catchment.capabilities import NON_FINITE
from catchment.landscape.evaluator import Ground, NotStoredError
from catchment.landscape.units import CHUNK, Design, Field, values
from catchment.records import Basin, Interval, Node, Profile, ProfilePoint, Row, Strict
from catchment.statistics import (
    bracket,
    cluster_band,
    crossing,
    crossing_interval,
    mean_sequence,
    next_down,
    strict,
)

Stop = Callable[[], bool]
Place = Literal["prompt", "inside", "outside"]


def scout(field_: Field, tasks: Sequence[str], count: int, stop: Stop = lambda: False) -> None:
    """Guess each task's crossing from ``count`` pilot units at every second rung, from the largest scale down, so that
    what is lost everywhere is seen first; where a task is lost at all of them, at every fourth rung below the ladder
    until it is not. Pilot units decide nothing; they do enter estimates and profiles."""
    design = field_.design
    try:
        for scale in reversed(design.ladder[1::2]):
            if not _pilot(field_, tasks, scale, count, stop):
                return
        lower = design.below[::-1]
        for scale in (*lower[3:-1:4], *lower[-1:]):
            lost = [task for task in tasks if _lost(field_, task)]
            if not lost or not _pilot(field_, lost, scale, count, stop):
                return
    except NotStoredError:
        return
    finally:
        for task in tasks:
            field_.guesses[task] = _guess(field_, task)


def _pilot(field_: Field, tasks: Sequence[str], scale: float, count: int, stop: Stop) -> bool:
    """Whether all units of the pilot at a scale were measured before ``stop``."""
    for number in range(count):
        if stop():
            return False
        for task, unit in field_.unit(tasks, scale, number, "/pilot").items():
            field_.pilot.setdefault((task, scale), []).append(unit)
    return True


def _lost(field_: Field, task: str) -> bool:
    """Whether the pilot's mean drop exceeds tau at the smallest scale that it looked at."""
    ground = field_.evaluator.grounds[task]
    drops = values(ground, field_.pilot[task, min(scale for name, scale in field_.pilot if name == task)])
    return sum(drops) / len(drops) > ground.tau


def _guess(field_: Field, task: str) -> float | None:
    scales = sorted(scale for name, scale in field_.pilot if name == task)
    ground = field_.evaluator.grounds[task]
    drops = [sum(values(ground, field_.pilot[task, s])) / len(field_.pilot[task, s]) for s in scales]
    return crossing(scales, drops, ground.tau) if scales else None


def search(field_: Field, tasks: Sequence[str], stop: Stop = lambda: False) -> None:
    """Measure until the bracket of every task is found, or ``stop`` says so.

    The task with the fewest decided scales (of those, with the fewest units there) chooses the next one; tasks that
    want the same scale share its displaced points. :data:`CHUNK` pairs at a time, until decided or at the cap.
    """
    design = field_.design
    decided = field_.decided
    try:
        while True:
            wants: dict[str, float] = {}
            for task in tasks:
                known = decided.setdefault(task, {})
                node = next_down(known, design.ladder, design.below, design.depth, field_.guesses.get(task))
                if node is not None:
                    wants[task] = node
            if not wants:
                return
            first = min(wants, key=lambda t: (len(decided[t]), len(field_.units.get((t, wants[t]), []))))
            scale = wants[first]
            due = [task for task in wants if wants[task] == scale]
            settled = [field_.settle(task, scale) for task in due]
            if any(settled):
                continue
            if stop():
                return
            have = min(len(field_.units.get((task, scale), [])) for task in due)
            field_.measure(due, scale, have + CHUNK - have % CHUNK)
    except NotStoredError:
        return


def fill(field_: Field, tasks: Sequence[str], scales: Sequence[float], count: int, stop: Stop = lambda: False) -> None:
    """At least ``count`` units at every scale, for profiles; the scales in turns, so that an early end is even."""
    held, most = field_.units, {t: field_.design.units(field_.evaluator.grounds[t]) for t in tasks}
    fewest = min((len(held.get((t, s), [])) for t in tasks for s in scales), default=count)
    try:
        for reached in range(fewest + 1, min(count, max(most.values(), default=0)) + 1):
            for scale in scales:
                due = [t for t in tasks if len(held.get((t, scale), [])) < reached <= most[t]]
                if due and stop():
                    return
                if due:
                    field_.measure(due, scale, reached)
    except NotStoredError:
        return


def sharpen(field_: Field, tasks: Sequence[str], count: int, stop: Stop = lambda: False, rungs: int = 4) -> None:
    """Up to ``count`` units at the ``rungs`` rungs nearest to each task's estimate, in turns over the tasks: estimates
    become narrower, brackets stay as they are."""
    near: dict[str, list[float]] = {}
    for task in tasks:
        crossed = estimate(field_, task)
        if crossed is not None:
            order = sorted(field_.design.whole, key=lambda s: abs(math.log(s / crossed.estimate)))
            near[task] = sorted(order[:rungs])
    for reached in range(CHUNK, count + CHUNK, CHUNK):
        for task, scales in near.items():
            if stop():
                return
            fill(field_, [task], scales, min(reached, count), stop)


def basin(field_: Field, task: str) -> Basin:
    """The bracket, the estimate and the nodes of one task, from its units; measures nothing."""
    ground, design = field_.evaluator.grounds[task], field_.design
    known = field_.decided.get(task, {})
    went_below = any(scale < design.ladder[0] for scale in known)
    low, high, earlier = bracket(known, design.whole if went_below else design.ladder)
    evaluations, tokens = field_.spent.get(task, (0, 0))
    nodes = tuple(_node(field_, task, scale) for scale in field_.scales(task) if field_.units.get((task, scale)))
    return Basin(
        task, ground.score, ground.chance, ground.tau, low, high, _bracketed(field_, task, low, high), nodes, earlier,
        1 - design.gamma / design.family, design.sampling(ground), evaluations, tokens, stricts(field_, task),
        place(ground), _note(design, low, high), design.floor if high == design.whole[0] else "",
    )  # fmt: skip


def _note(design: Design, low: float, high: float | None) -> str:
    """What is to be known of a basin without a lower end."""
    if low > 0 or high is None or high > design.ladder[0]:
        return ""
    if high == design.whole[0] and design.floor:
        return f"the model loses more than tau at the smallest step that {design.floor} holds at weights of this size"
    if not design.below:
        return "the model loses more than tau at the first rung already; choose a lower --ladder"
    return "the model loses more than tau at the first rung already; what lies below was not decided"


def _bracketed(field_: Field, task: str, low: float, high: float | None) -> Interval | None:
    """The estimate, if a bracket with two ends holds it: elsewhere straight lines say nothing."""
    crossed = estimate(field_, task)
    inside = crossed is not None and high is not None and 0 < low <= crossed.estimate <= high
    return crossed if inside else None


def _node(field_: Field, task: str, scale: float) -> Node:
    drops, design = field_.drops(task, scale), field_.design
    outcome = field_.decided.get(task, {}).get(scale, "undecided")
    evaluations = 2 * sum(len(unit.base) for unit in field_.units[task, scale])
    return Node(scale, outcome, mean_sequence(drops, min(2 * design.error, 0.5)), len(drops), evaluations)


def estimate(field_: Field, task: str) -> Interval | None:
    """Where the mean curve crosses tau by all units, the pilot's too, whether anything was decided there or not: for
    choosing where to look, and for profiles. ``None``: it does not cross, or no scale has two units."""
    scales = field_.scales(task)
    ground = field_.evaluator.grounds[task]
    drops = [values(ground, field_.seen(task, scale)) for scale in scales]
    if not scales or max(len(x) for x in drops) < 2:
        return None
    table = [[x[i] if i < len(x) else math.nan for x in drops] for i in range(max(map(len, drops)))]
    return crossing_interval(scales, table, ground.tau, level=0.95, seed=field_.design.seed, shared=False)


def stricts(field_: Field, task: str) -> tuple[Strict, ...]:
    """Share of directions on which no item of the unit was lost, at every scale (the + half of each pair only)."""
    value = field_.evaluator.grounds[task].value
    shares = []
    for scale in field_.scales(task):
        units = field_.seen(task, scale)
        kept = sum(all(value(p) >= value(b) for b, p in zip(unit.base, unit.plus, strict=True)) for unit in units)
        shares.append(strict(kept, len(units), scale, len(units[0].base)))
    return tuple(shares)


def profile(field_: Field, task: str, level: float = 0.95) -> Profile:
    """Mean score, and its companion, at every scale measured, with bands over directions; measures nothing."""
    ground = field_.evaluator.grounds[task]
    scales = [scale for scale in field_.scales(task) if len(field_.seen(task, scale)) > 1]  # one shows no spread
    points = tuple(_point(field_, ground, scale, level) for scale in scales)
    companions = [row.companion for row in (ground.base[i] for i in ground.items)]
    known = [c for c in companions if c is not None]
    whole = len(known) == len(companions) and ground.prepared.task.scorer != "text"
    return Profile(
        ground.name,
        "gaussian",
        ground.score,
        ground.chance,
        points,
        sum(known) / len(known) if whole and known else None,
    )


def _point(field_: Field, ground: Ground, scale: float, level: float) -> ProfilePoint:
    units = field_.seen(ground.name, scale)
    rows = [[*unit.plus, *unit.minus] for unit in units]
    score = cluster_band([(sum(map(ground.value, r)), len(r)) for r in rows], level, field_.design.seed)
    companion = None
    if ground.prepared.task.scorer != "text" and all(_known(row) for r in rows for row in r):
        sums = [(sum(row.companion or 0.0 for row in r), len(r)) for r in rows]
        companion = cluster_band(sums, level, field_.design.seed)
    return ProfilePoint(scale, score, len(units), sum(map(len, rows)), companion)


def _known(row: Row) -> bool:
    return row.companion is not None or NON_FINITE in row.flags


def place(ground: Ground) -> Place:
    """What the answers rest on: ``prompt`` (modelling the text itself), ``inside`` (the answer stands in the prompt
    of most items), ``outside`` (it has to be known)."""
    if ground.prepared.task.scorer == "text":
        return "prompt"
    items = [ground.encoded[i].item for i in ground.items]
    answers = [_answer(item.gold, item.choices) for item in items]
    inside = sum(bool(a) and a.lower() in item.prompt.lower() for a, item in zip(answers, items, strict=True))
    return "inside" if inside > len(items) / 2 else "outside"


def _answer(gold: object, choices: Sequence[str]) -> str:
    if isinstance(gold, int) and choices:
        return choices[gold].strip()
    return str(gold[0] if isinstance(gold, tuple) else gold or "").strip()
