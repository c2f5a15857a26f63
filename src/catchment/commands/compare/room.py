"""The room of a fine-tune inside ``compare``: where it stands on its own way, and the barrier on it.

Measured in this order, as far as the budget goes: the ray itself, random moves in the same subspace (``typical``), an
attack there (``worst``). No verdict rests on the last two.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

from catchment import landscape, models
from catchment.capabilities import Task, seeded_order
from catchment.commands.compare.job import Job
from catchment.commands.compare.rounds import ROOM_SHARE, Measuring, late, room_items, save_plan
from catchment.landscape import Design, Effort, Evaluator, Field, Ground, Mover, NotStoredError, Towards
from catchment.measuring import CPU_BATCH, failures, verdicts
from catchment.records import Room, Row
from catchment.statistics import ladder

TAU = 0.1
TYPICAL = Design(ladder(1 / 16, 16.0, 9), depth=0, items_each=8, fixed=True)
"""Random moves: scales as multiples of the tune's own alpha."""
TYPICAL_UNITS = 6
ATTACK_ITEMS, JUDGED_ITEMS = 12, 64
EFFORT = Effort(restarts=1, steps=4, looks=4)


def rooms(job: Job, state: Measuring) -> tuple[Room, ...]:
    """Rooms of the tasks that were lost or kept. Empty, with a warning, where the two models cannot be subtracted, or
    where memory or numbers fail on the way: a comparison is whole without them."""
    try:
        return _rooms(job, state)
    except Exception as error:
        reason = failures.failure(error)
        if reason is None:
            raise
        job.warnings.append(f"no room: {reason}")
        return ()


def _rooms(job: Job, state: Measuring) -> tuple[Room, ...]:
    tasks = [task for task in job.measured if job.result(task).verdict in ("lost", "kept")]
    if not _possible(job) or not tasks:
        return ()
    if job.plan.room_items is None:
        job.plan = dataclasses.replace(job.plan, room_items=room_items(job, state, tasks, job.clock.left))
        save_plan(job)
    if job.plan.room_items == 0:
        job.warnings.append("no room: the budget ended before it")
        return ()
    base, tuned = job.base.loaded, job.tuned.loaded
    job.progress.status("the way from base to tuned")
    if models.named_weights(base.model, "adapter"):
        job.warnings.append("no room: the base stands under an adapter; merge it and save it for a way to start from")
        return ()
    with models.untied(base.model, tuned.model):
        return _on_the_way(job, tasks)


def _on_the_way(job: Job, tasks: list[Task]) -> tuple[Room, ...]:
    base, tuned = job.base.loaded, job.tuned.loaded
    way = landscape.towards(base.model, tuned.model, identity=job.tuned.card.weights_hash)
    grounds = [ground for task in tasks if len((ground := _ground(job, task)).items) >= 8]
    frozen = job.plan.room_done
    engine = job.base.engine(job.plan.batch_tokens or CPU_BATCH)
    mover = Mover(base.model, way.subspace, files=base.files)
    keep = functools.partial(job.base.moved_cell, job.store)
    with Evaluator(engine, mover, grounds, keep, frozen=frozen, on_tokens=job.progress.advance) as evaluator:
        found = _measured(job, evaluator, way, grounds)
    if not frozen:
        job.plan = dataclasses.replace(job.plan, room_done=True)
        save_plan(job)
    return found


def _possible(job: Job) -> bool:
    a, b = job.base.card, job.tuned.card
    same = a.weights_hash == b.weights_hash or a.architecture != b.architecture
    return job.settings.room and not same and not (a.quantization or b.quantization or job.base.classifies)


def _ground(job: Job, task: Task) -> Ground:
    form = task.formats[0].name
    base, tuned = (job.table(side, task, form) for side in job.sides)
    shared = [item for item in task.items if item.id in base and item.id in tuned]
    chosen = seeded_order(shared, f"room:{job.settings.seed}:")[: job.plan.room_items]
    rows = [base[item.id] for item in chosen]
    chance = verdicts.chance_of(task, rows)
    tau = TAU * max(sum(row.score for row in rows) / len(rows) - chance, 0.0)
    prepared = job.base.prepare(task, form, chosen)
    return Ground(prepared, base, tuple(item.id for item in chosen), chance, max(tau, 1e-6))


def _measured(job: Job, evaluator: Evaluator, way: Towards, grounds: list[Ground]) -> tuple[Room, ...]:
    names = [ground.name for ground in grounds]
    tables: dict[str, dict[str, Row]] = {
        task.name: job.table(job.tuned, task, task.formats[0].name) for task in job.tasks if task.name in names
    }
    ray = landscape.Ray(evaluator, way, tables)
    started = job.clock.elapsed

    def stop() -> bool:
        if evaluator.frozen or job.plan.budget is None:
            return False
        spent = job.clock.elapsed - started
        return late(job) or (job.resumed and spent > ROOM_SHARE * job.plan.budget)

    job.progress.status("room of the fine-tune")
    card = way.subspace.card(evaluator.mover.model)  # of the base: it is not displaced yet
    landscape.measure(ray, names, stop)
    found = {name: landscape.room(ray, name, card, 1 - job.settings.alpha, len(names)) for name in names}
    for name, span in _typical(evaluator, way, names, job, stop).items():
        found[name] = dataclasses.replace(found[name], typical=span)
    for ground in grounds:
        if not stop():
            job.progress.status(f"worst case · {ground.name}")
            effort = landscape.within(EFFORT, card.ruler.rms if card.ruler else 0.0)
            worst = _worst(job, evaluator, way, ground, effort, stop)
            found[ground.name] = dataclasses.replace(found[ground.name], worst=worst)
    return tuple(found.values())


def _typical(
    evaluator: Evaluator, way: Towards, names: list[str], job: Job, stop: Callable[[], bool]
) -> dict[str, tuple[float, float | None]]:
    """sigma_S / alpha_S as an interval, an estimate over few directions; empty when the budget is spent. The ends are
    scales that were measured, because the pilot's lie far apart."""
    if stop():
        return {}
    job.progress.status("random moves of the tune's size")
    scales = tuple(way.alpha * scale for scale in TYPICAL.ladder)
    field = Field(evaluator, dataclasses.replace(TYPICAL, ladder=scales, seed=job.settings.seed))
    landscape.scout(field, names, TYPICAL_UNITS, stop)
    spans: dict[str, tuple[float, float | None]] = {}
    for name in names:
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
    job: Job, evaluator: Evaluator, way: Towards, ground: Ground, effort: Effort, stop: Callable[[], bool]
) -> float | None:
    """Attack radius / ||tuned - base||, where an attack was found in the time left and in the memory there is."""
    half = min(ATTACK_ITEMS, len(ground.items) // 2)
    attack, judged = ground.items[:half], ground.items[half : half + JUDGED_ITEMS]
    needed = landscape.attack_memory(way.subspace)
    reason = "" if evaluator.frozen else failures.short_of(needed, evaluator.mover, evaluator.engine.device)
    found = None
    try:
        if not reason:
            batches = landscape.batches_of(evaluator, ground, attack)
            found = landscape.worst(evaluator, ground.with_items(judged), batches, effort, stop=stop)
    except NotStoredError:
        return None
    except Exception as error:
        failed = failures.failure(error)
        if failed is None:
            raise
        reason = failed
    if reason:
        job.warnings.append(f"no worst case in the room of {ground.name}: {reason}")
    return None if found is None or found.radius is None else found.radius / way.alpha
