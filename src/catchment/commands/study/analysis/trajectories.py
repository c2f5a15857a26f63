"""Scores over checkpoints, where they stop rising, prompt formats, and the noise of each task."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise

import numpy as np

from catchment.commands.study.analysis.gates import near
from catchment.commands.study.analysis.index import Index, Key, Place, Refusals
from catchment.commands.study.analysis.intervals import score_interval, standard_error
from catchment.commands.study.record import BASE, Checkpoint, Point, Sensitivity, TaskNoise, Trajectory
from catchment.commands.study.scores import Scored
from catchment.records import Interval
from catchment.statistics import checkpoint_noise, plateau, retention, seed_noise, sensitivity, signal_to_noise

FEWEST = 5
"""Checkpoints below which no plateau can be told."""
TAIL = 5
"""Checkpoints at the end whose scores say how noisy a task is."""
CURVES = 50
"""Curves that the noise between checkpoints is read from, per task."""


def trajectories(index: Index, refusals: Refusals) -> list[Trajectory]:
    """Scores of each model and tuning on each task, format, number of shots and scorer, by checkpoint; and where those
    under the default view stop rising, simultaneously over the tasks of one model and tuning."""
    curves: dict[Place, list[Point]] = defaultdict(list)
    places = {(point.model, point.revision): point for points in index.checkpoints.values() for point in points}
    order = {place: number for number, place in enumerate(places)}
    for place in sorted(index.groups, key=lambda p: order[p.model, p.revision]):
        seeds = index.groups[place]
        tokens = places[place.model, place.revision].tokens
        count = 0 if place.tuning == BASE else len(seeds)
        curves[place._replace(revision="")].append(
            Point(place.revision, tokens, seeds[0].n, count, score_interval(seeds))
        )
    family = Counter((p.model, p.tuning) for p, points in curves.items() if _asked(index, p, points, refusals) is None)
    return [_trajectory(index, place, points, refusals, family) for place, points in curves.items()]


def _trajectory(
    index: Index, place: Place, points: Sequence[Point], refusals: Refusals, family: Mapping[tuple[str, str], int]
) -> Trajectory:
    form, (_, shots, scorer) = place.format, index.views[place.task]
    if (place.shots, place.scorer) != (shots, scorer):
        form += f", {place.shots} shots" + (f", {place.scorer}" if place.scorer else "")
    where, note = None, _asked(index, place, points, refusals)
    if note is None:
        where, note = _plateau(index, place, points, family[place.model, place.tuning])
    return Trajectory(place.model, place.tuning, place.task, form, tuple(points), where, note)


def _asked(index: Index, place: Place, points: Sequence[Point], refusals: Refusals) -> str | None:
    """Why a curve is not asked for its plateau; ``None`` where it is."""
    if (place.format, place.shots, place.scorer) != index.views[place.task]:
        return "not of the default format, shots and scorer"
    if refusals.task(place.task):
        return "a gate refused the task"
    if any(point.tokens is None for point in points):
        return "the tokens of the checkpoints are not known"
    if len(_trained(points)) < FEWEST:
        return f"{len(_trained(points))} checkpoints; at least {FEWEST} show a plateau"
    return None


def _trained(points: Sequence[Point]) -> list[Point]:
    """Those that have seen tokens: a logarithm has no place for none."""
    return [point for point in points if point.tokens]


def _plateau(index: Index, place: Place, points: Sequence[Point], family: int) -> tuple[Interval | None, str]:
    """Tokens from which the curve is flat, where that is shown; and what is shown, in words."""
    trained = _trained(points)
    groups = [index.groups[place._replace(revision=point.revision)] for point in trained]
    seeds = [{s.cell.seed: s.mean for s in group} for group in groups]
    shared = [seed for seed in seeds[0] if all(seed in own for own in seeds)]
    rows = [[own[seed] for own in seeds] for seed in shared] or [[p.interval.estimate for p in trained]]
    result = plateau([point.tokens or 0.0 for point in trained], rows, family=family, seed=index.table.seed)
    return (result.tokens if result.shape == "plateau" else None), f"{result.shape}: {result.reason}"


def sensitivities(index: Index) -> list[Sensitivity]:
    """Prompt formats against each other, wherever a model was asked in the default format and another."""
    return [s for key in index.keys for s in _sensitivity(index, key)]


def _sensitivity(index: Index, key: Key) -> Iterator[Sensitivity]:
    forms = [form for form in index.formats[key.task] if index.seeds(key, form)]
    if len(forms) < 2 or forms[0] != index.formats[key.task][0]:
        return
    scores, n = _on_shared_items([index.seeds(key, form) for form in forms])
    chance = index.seeds(key)[0].chance or 0.0
    default, others = scores[0], scores[1:]
    yield Sensitivity(
        *key,
        scores=tuple(zip(forms, scores, strict=True)),
        spread=sensitivity(scores),
        differences=tuple((form, default - other) for form, other in zip(forms[1:], others, strict=True)),
        retention=retention(min(others), default, chance),
        n=n,
    )


def _on_shared_items(groups: Sequence[Sequence[Scored]]) -> tuple[list[float], int]:
    """Mean scores of several formats, over the items that all have; of tables of means, as they are."""
    every = [s for seeds in groups for s in seeds]
    items = [s.items for s in every if s.items is not None]
    first = items[0] if items else None
    if first is None or len(items) < len(every) or all(i is first or np.array_equal(i, first) for i in items):
        return [float(np.mean([s.mean for s in seeds])) for seeds in groups], every[0].n
    shared = reduce(np.intersect1d, items)
    if not shared.size:
        return [float(np.mean([s.mean for s in seeds])) for seeds in groups], 0
    return [float(np.mean([_mean_over(s, shared) for s in seeds])) for seeds in groups], int(shared.size)


def _mean_over(scored: Scored, shared: np.ndarray) -> float:
    if scored.items is None or scored.scores is None:
        return scored.mean
    return float(scored.scores[np.isin(scored.items, shared)].mean())


def noise(index: Index, refusals: Refusals) -> list[TaskNoise]:
    """What differences on each task mean nothing; tasks that a gate refused are left out."""
    by_task: dict[str, list[Key]] = defaultdict(list)
    for key in index.keys:
        if not refusals.cell(key):
            by_task[key.task].append(key)
    return [_task_noise(index, task, keys) for task, keys in by_task.items()]


def _task_noise(index: Index, task: str, keys: Sequence[Key]) -> TaskNoise:
    seeds = [[s.mean for s in index.seeds(key)] for key in keys]
    repeated = [scores for scores in seeds if len(scores) > 1]
    errors = [error for error in (standard_error(index.seeds(key)) for key in keys) if error is not None]
    tails = [tail for tail in _tails(index, keys) if len(tail) > 1]
    return TaskNoise(
        task,
        seeds=seed_noise(repeated).sd.estimate if repeated else None,
        checkpoints=checkpoint_noise(tails[:CURVES]).sd.estimate if tails else None,
        items=float(np.median(errors)) if errors else None,
        signal_to_noise=_signal_to_noise(index, keys, tails),
    )


def _tails(index: Index, keys: Sequence[Key]) -> list[list[float]]:
    """For each model and tuning the scores at its last checkpoints, as far as these are near each other."""
    have = set(keys)
    tails = []
    for model, tuning, task in dict.fromkeys((k.model, k.tuning, k.task) for k in keys):
        tail = [Key(model, p.revision, tuning, task) for p in tail_of(index.checkpoints[model])]
        tails.append([mean for key in tail if key in have and (mean := index.mean(key)) is not None])
    return tails


def tail_of(points: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    """The last checkpoints that are each near the next, at most TAIL."""
    first = len(points) - 1
    for place, (one, other) in reversed(list(enumerate(pairwise(points)))):
        if not near(one, other) or len(points) - place > TAIL:
            break
        first = place
    return points[first:]


def _signal_to_noise(index: Index, keys: Sequence[Key], tails: Sequence[Sequence[float]]) -> float | None:
    """Signal over the models and tunings at their last checkpoint; noise over the last near ones of the first of them
    that has several."""
    ends = {model: points[-1].revision for model, points in index.checkpoints.items()}
    last = [index.mean(key) for key in keys if key.revision == ends[key.model]]
    scores = [mean for mean in last if mean is not None]
    if len(scores) < 2 or not tails or min(np.mean(scores), np.mean(tails[0])) <= 0:
        return None
    return signal_to_noise(scores, tails[0]).ratio
