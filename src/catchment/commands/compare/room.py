"""The room of a fine-tune inside ``compare``: where it stands on its own way, and the barrier on it.

Measured in this order, as far as the budget goes: the ray itself, random moves in the same subspace (``typical``), an
attack there (``worst``). No verdict rests on the last two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from catchment import landscape, models
from catchment.capabilities import Task, seeded_order
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.results import result_of
from catchment.commands.compare.state import State, accept
from catchment.commands.compare.way import ground_of, open_way
from catchment.landscape import Design, Effort, Evaluator, Field, Ground, NotStoredError, Towards
from catchment.measuring import failure, short_of
from catchment.records import Room
from catchment.statistics import ladder

ROOM_SHARE = 0.3
"""Of the time left after the pilot that is kept for the room."""
MOST_ROOM, LEAST_ROOM = 256, 32
"""Items per point of a room."""
LEAST_ITEMS = 8
"""Items without which a task has no room."""
RAY_POINTS = 6
"""Points of a room, as far as plans go."""
TYPICAL = Design(ladder(1 / 16, 16.0, 9), depth=0, items_each=8, fixed=True)
"""Random moves: scales as multiples of the tune's own alpha."""
TYPICAL_UNITS = 6
ATTACK_ITEMS, JUDGED_ITEMS = 12, 64
EFFORT = Effort(restarts=1, steps=4, looks=4)

Stop = Callable[[], bool]


def room_items(state: State, tasks: Sequence[Task], seconds: float) -> int:
    """Items per point of the room of these tasks that so many seconds pay for; 0 where they are too few."""
    plan, prices = state.plan, state.prices
    if plan.budget is None:
        return MOST_ROOM
    if prices is not None:
        each = RAY_POINTS * sum(prices.each(plan.of(task.name), plan.budget) for task in tasks) / 2
    else:
        each = RAY_POINTS * sum(plan.of(task.name).tokens for task in tasks) / (plan.speed or 1.0)
    items = int(0.8 * seconds / max(each, 1e-9))
    return 0 if items < LEAST_ROOM // 2 else max(LEAST_ROOM, min(MOST_ROOM, items))


def measure_rooms(pair: Pair, state: State) -> tuple[State, tuple[Room, ...], list[str]]:
    """Rooms of the tasks that were lost or kept, and notes. No room, with a note, where the two models cannot be
    subtracted, or where memory or numbers fail on the way: a comparison is whole without them."""
    tasks = [
        task for task in state.tables.measured(pair.tasks) if result_of(pair, state, task).verdict in ("lost", "kept")
    ]
    if not _possible(pair) or not tasks:
        return state, (), []
    if state.plan.room_items is None:
        items = room_items(state, tasks, pair.clock.left)
        state = accept(pair, state, dataclasses.replace(state.plan, room_items=items))
    if state.plan.room_items == 0:
        return state, (), ["no room: the budget ended before it"]
    try:
        pair.progress.status("the way from base to tuned")
        if models.named_weights(pair.base.loaded.model, "adapter"):
            note = "no room: the base stands under an adapter; merge it and save it for a way to start from"
            return state, (), [note]
        rooms, notes = _on_the_way(pair, state, tasks)
    except Exception as error:
        reason = failure(error)
        if reason is None:
            raise
        return state, (), [f"no room: {reason}"]
    if not state.plan.room_done:
        state = accept(pair, state, dataclasses.replace(state.plan, room_done=True))
    return state, rooms, notes


def _possible(pair: Pair) -> bool:
    a, b = pair.base.card, pair.tuned.card
    same = a.weights_hash == b.weights_hash or a.architecture != b.architecture
    return pair.settings.room and not same and not (a.quantization or b.quantization or pair.base.classifies)


def _ground(pair: Pair, state: State, task: Task) -> Ground:
    base, tuned = state.tables.both(task)
    shared = [item for item in task.items if item.id in base and item.id in tuned]
    drawn = seeded_order(shared, f"room:{pair.settings.seed}:")[: state.plan.room_items]
    return ground_of(pair, state.tables, task, drawn)


def over(pair: Pair, began: float) -> bool:
    """Whether the time of a room that was begun so many seconds after the start is up."""
    budget = pair.clock.budget or math.inf
    return pair.clock.late or (pair.clock.resumed and pair.clock.elapsed - began > ROOM_SHARE * budget)


def _on_the_way(pair: Pair, state: State, tasks: Sequence[Task]) -> tuple[tuple[Room, ...], list[str]]:
    grounds = [ground for task in tasks if len((ground := _ground(pair, state, task)).items) >= LEAST_ITEMS]
    names = [ground.name for ground in grounds]
    tuned = {task.name: state.tables.of("tuned", task) for task in tasks if task.name in names}
    began, frozen = pair.clock.elapsed, state.plan.room_done

    def stop() -> bool:
        return not frozen and pair.clock.budget is not None and over(pair, began)

    with open_way(pair, state.plan, grounds, frozen=frozen) as (evaluator, way):
        pair.progress.status("room of the fine-tune")
        card = way.subspace.card(evaluator.mover.model)  # of the base: it is not displaced yet
        ray = landscape.Ray(evaluator, way, tuned)
        landscape.measure(ray, names, stop)
        rooms = {name: landscape.room(ray, name, card, 1 - pair.settings.alpha, len(names)) for name in names}
        for name, span in _typical(pair, evaluator, way, stop).items():
            rooms[name] = dataclasses.replace(rooms[name], typical=span)
        effort = landscape.within(EFFORT, card.ruler.rms if card.ruler else 0.0)
        notes = []
        for ground in grounds:
            if not stop():
                pair.progress.status(f"worst case · {ground.name}")
                worst, said = _worst(evaluator, way, ground, effort, stop)
                rooms[ground.name] = dataclasses.replace(rooms[ground.name], worst=worst)
                notes += said
    return tuple(rooms.values()), notes


def _typical(pair: Pair, evaluator: Evaluator, way: Towards, stop: Stop) -> dict[str, tuple[float, float | None]]:
    """sigma_S / alpha_S as an interval, an estimate over few directions; empty when the budget is spent. The ends are
    scales that were measured, because the pilot's lie far apart."""
    if stop():
        return {}
    pair.progress.status("random moves of the tune's size")
    scales = tuple(way.alpha * scale for scale in TYPICAL.ladder)
    field = Field(evaluator, dataclasses.replace(TYPICAL, ladder=scales, seed=pair.settings.seed))
    landscape.scout(field, list(evaluator.grounds), TYPICAL_UNITS, stop)
    spans: dict[str, tuple[float, float | None]] = {}
    for name in evaluator.grounds:
        seen = field.scales(name)
        estimate = landscape.estimate(field, name) if len(seen) > 1 else None
        if estimate is not None:
            below = max((scale for scale in seen if scale <= estimate.low), default=0.0)
            above = min((scale for scale in seen if scale >= estimate.high and scale < seen[-1]), default=None)
            spans[name] = (below / way.alpha, None if above is None else above / way.alpha)
        elif len(seen) > 1 and not math.isclose(seen[0], seen[-1]):
            spans[name] = (seen[-1] / way.alpha, None)
    return spans


def _worst(
    evaluator: Evaluator, way: Towards, ground: Ground, effort: Effort, stop: Stop
) -> tuple[float | None, list[str]]:
    """Attack radius / ||tuned - base||, where an attack was found in the time left and in the memory there is; and why
    none was looked for."""
    half = min(ATTACK_ITEMS, len(ground.items) // 2)
    attack, judged = ground.items[:half], ground.items[half : half + JUDGED_ITEMS]
    needed = landscape.attack_memory(way.subspace)
    reason = "" if evaluator.frozen else short_of(needed, evaluator.mover, evaluator.engine.device)
    worst = None
    try:
        if not reason:
            batches = landscape.batches_of(evaluator, ground, attack)
            worst = landscape.worst(evaluator, ground.with_items(judged), batches, effort, stop=stop)
    except NotStoredError:
        return None, []
    except Exception as error:
        failed = failure(error)
        if failed is None:
            raise
        reason = failed
    notes = [f"no worst case in the room of {ground.name}: {reason}"] if reason else []
    return None if worst is None or worst.radius is None else worst.radius / way.alpha, notes
