"""Changes: every tuned model against its base, task by task, and the forgetting matrices they make."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from catchment.capabilities import JUDGED_SCORERS
from catchment.commands.study.analysis.contrasts import NEAR_ZERO
from catchment.commands.study.analysis.index import Index, Key, Refusals
from catchment.commands.study.analysis.intervals import UNKNOWN, normal, standard_error
from catchment.commands.study.analysis.learned import Learned
from catchment.commands.study.analysis.paired import Judged, Rule, judge
from catchment.commands.study.record import BASE, Change, Flag, Gap, Matrix
from catchment.commands.study.scores import Scored
from catchment.records import Interval
from catchment.statistics import NoiseFloor, forgetting_matrix, seed_noise, transfer


def changes(index: Index, refusals: Refusals, learned: Learned) -> tuple[list[Change], list[Flag], list[Gap]]:
    """All changes that have both scores; flags where models have different items; gaps where a tuned model has no base.

    The family of the simultaneous intervals is all of them but those that a gate refused.
    """
    pairs, gaps = _pairs(index)
    family = max(sum(not refusals.change(key) for key in pairs), 1)
    rule = Rule(index.table.alpha, index.table.margin, family)
    floors = _floors(index, pairs)
    domains = {card.label: set(index.domain(card.label)) for card in index.table.tunings}
    rows, lacking = [], {}
    for key in pairs:
        base, seeds = index.seeds(key._replace(tuning=BASE))[0], index.seeds(key)
        judged = _judged(key, base, seeds, rule, floors)
        if judged.lacking:
            lacking[key] = judged
        rows.append(_change(key, base, seeds, judged, refusals, learned, key.task in domains[key.tuning]))
    return rows, _lacking(lacking), gaps


def _pairs(index: Index) -> tuple[list[Key], list[Gap]]:
    pairs: list[Key] = []
    without: list[Key] = []
    for key in index.keys:
        if key.tuning != BASE:
            (pairs if index.seeds(key._replace(tuning=BASE)) else without).append(key)
    gaps = []
    for tuning in dict.fromkeys(key.tuning for key in without):
        keys = [key for key in without if key.tuning == tuning]
        what = ", ".join(f"{key.task} at {key.revision}" for key in keys[:8]) + (", ..." if len(keys) > 8 else "")
        gaps.append(Gap(f"changes of tuning {tuning}: {what}", len(keys), "the base has no score there", "missing"))
    return pairs, gaps


def _floors(index: Index, pairs: Sequence[Key]) -> dict[tuple[str, str], NoiseFloor]:
    """Noise of seeds, pooled over the tunings and checkpoints of a task."""
    cells: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for key in pairs:
        seeds = index.seeds(key)
        if len(seeds) > 1:
            cells[key.model, key.task].append([s.mean for s in seeds])
    return {place: seed_noise(scores) for place, scores in cells.items()}


def _judged(
    key: Key, base: Scored, seeds: Sequence[Scored], rule: Rule, floors: Mapping[tuple[str, str], NoiseFloor]
) -> Judged:
    judged = None
    if base.scores is not None and all(s.scores is not None for s in seeds):
        generated = base.generated or base.cell.scorer in JUDGED_SCORERS
        floor = floors.get((key.model, key.task))
        judged = judge(base, seeds, rule, chance=base.chance or 0.0, generated=generated, floor=floor)
    tuned = float(np.mean([s.mean for s in seeds]))
    n = min([base.n, *(s.n for s in seeds)])
    return judged or Judged(_unpaired(base, seeds, rule), "", base.mean, tuned, n)


def _unpaired(base: Scored, seeds: Sequence[Scored], rule: Rule) -> Interval:
    """From standard errors, ``sqrt(se_base^2 + se_tuned^2)``, and over k seeds s^2/k beside them. That the items are
    the same ones, which the table does not show, mostly makes the true spread smaller."""
    tuned = float(np.mean([s.mean for s in seeds]))
    change, level = tuned - base.mean, 1 - rule.error
    errors = [standard_error([base]), standard_error(seeds)]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return Interval(change, -1.0, 1.0, 1.0, UNKNOWN)
    variance, quantile, method = sum(error**2 for error in known), normal(rule.error), "normal, unpaired"
    if len(seeds) > 1:
        from scipy.special import stdtrit

        variance += float(np.var([s.mean for s in seeds], ddof=1)) / len(seeds)
        quantile = float(stdtrit(len(seeds) - 1, 1 - rule.error / 2))
        method = f"t over {len(seeds)} seeds, unpaired"
    half = quantile * math.sqrt(variance)
    return Interval(change, max(change - half, -1.0), min(change + half, 1.0), level, method, rule.family)


def _change(
    key: Key, base: Scored, seeds: Sequence[Scored], judged: Judged, refusals: Refusals, learned: Learned,
    in_domain: bool,
) -> Change:  # fmt: skip
    chance, refused = base.chance or 0.0, refusals.change(key)
    return Change(
        *key,
        base=judged.base,
        tuned=judged.tuned,
        chance=chance,
        n=judged.n,
        seeds=len(seeds),
        interval=judged.interval,
        adjusted=(judged.tuned - judged.base) / (1 - chance),
        in_domain=in_domain,
        verdict="not measurable" if refused and judged.verdict else judged.verdict,
        learned=None if refused else learned.get((key.model, key.revision, key.task)),
        near_zero=judged.base < NEAR_ZERO,
        refused=refused,
    )


def _lacking(changes: Mapping[Key, Judged]) -> list[Flag]:
    flags = []
    for tuning, task in dict.fromkeys((key.tuning, key.task) for key in changes):
        those = {key: judged for key, judged in changes.items() if (key.tuning, key.task) == (tuning, task)}
        key, worst = max(those.items(), key=lambda entry: entry[1].lacking)
        flags.append(Flag(
            "items that a model lacks", f"{tuning} -> {task}",
            f"at {key.revision} base and tuned share {worst.n} items and {worst.lacking} others are not in all of "
            f"them ({len(those)} changes in all): the change is over the shared items.", task=task, tuning=tuning,
        ))  # fmt: skip
    return flags


def matrices(index: Index, rows: Sequence[Change]) -> list[Matrix]:
    """The forgetting matrix of every checkpoint with a tuned score, over the tasks that no gate refused."""
    by_checkpoint: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in rows:
        if not change.refused:
            by_checkpoint[change.model, change.revision].append(change)
    present = {change.task for change in rows if not change.refused}
    tasks = tuple(task for task in index.table.tasks if task in present)
    return [_matrix(index, *place, tasks, own) for place, own in by_checkpoint.items()]


def _matrix(index: Index, model: str, revision: str, tasks: tuple[str, ...], rows: Sequence[Change]) -> Matrix:
    labels = tuple(card.label for card in index.table.tunings)
    matrix = forgetting_matrix(
        {(c.tuning, c.task): c.interval.estimate for c in rows},
        dict.fromkeys(tasks, 0.0),
        trains=labels,
        evals=tasks,
        in_domain={label: [task for task in index.domain(label) if task in tasks] for label in labels},
    )
    values = tuple(
        tuple(None if math.isnan(value) else value for value in row) for row in matrix.change.tolist()
    )  # fmt: skip
    means = tuple(t.mean for t in transfer(matrix))
    return Matrix(model, revision, labels, tasks, values, means, len(matrix.missing))
