"""What is read off a scanned model: crossings of raw losses with bootstrap intervals, and the shape number."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import results
import words

from catchment import landscape
from catchment.landscape import Design, Field, Ground
from catchment.records import Gradients, Row
from catchment.statistics import crossing, units_needed

LEVELS = (0.1, 0.5, 0.9)
RESAMPLES = 1000
KINDS = ("score", "companion", "nats")
FLOOR = 1e-9
"""Of a probability whose logarithm is taken."""
HOWS = ("fresh", "fresh_squared", "static", "static_squared")
Losses = dict[float, np.ndarray]


def needed(ground: Ground, design: Design) -> int:
    """Units without any drop that show a task to be inside."""
    return units_needed(ground.tau, design.error)


def losses(field: Field, task: str, kind: str) -> Losses:
    """Per scale the loss of each pair, ``(base - moved) / (base - guess)``: base and moved on the pair's own items,
    the denominator over all items. Raw: 0 is the model itself, 1 is guessing, noise goes below and above.

    Of the score; of the companion, the probability of the right answer; or of its logarithm, which has no ceiling that
    could make a basin (``nats``; guessing is log chance, so not for tasks whose chance is 0).
    """
    ground = field.evaluator.grounds[task]
    scales = [s for s in field.scales(task) if len(field.units.get((task, s), [])) > 1]
    if kind == "score":
        return {s: np.array(field.drops(task, s)) / (ground.score - ground.chance) for s in scales}
    if any(ground.base[i].companion is None for i in ground.items) or (kind == "nats" and not ground.chance):
        return {}

    def value(row: Row) -> float:
        probability = row.companion or 0.0
        return math.log(max(probability, FLOOR)) if kind == "nats" else probability

    def mean(rows: Sequence[Row]) -> float:
        return statistics.fmean(value(row) for row in rows)

    guess = math.log(ground.chance) if kind == "nats" else ground.chance
    above = mean([ground.base[i] for i in ground.items]) - guess
    return {
        s: np.array([mean(u.base) - (mean(u.plus) + mean(u.minus)) / 2 for u in field.units[task, s]]) / above
        for s in scales
    }


def span(field: Field, task: str) -> tuple[float, float]:
    """Where the mean loss first passes 0.1 and 0.9; the ends of the ladder where it does not."""
    curve = losses(field, task, "score")
    scales = sorted(curve)
    means = [float(curve[s].mean()) for s in scales]
    low, high = (crossing(scales, means, level) for level in (0.1, 0.9))
    return low or scales[-1], high or scales[-1]


def shape(tables: Mapping[str, Losses]) -> dict[str, Any]:
    """Crossings of the mean loss and the shape number ``r = sigma(0.1) / sigma(0.5)``, per kind, and the difference of
    r between score and companion. Pairs are drawn again within each scale, the same ones for both kinds; percentiles.

    Straight lines join the scales, from a loss of 0 at 0: a crossing below the first scale is a guess.
    """
    scales = sorted(tables["score"])
    if len(scales) < 3:
        return {}
    rng = np.random.default_rng(0)
    drawn = {s: rng.integers(0, tables["score"][s].size, (RESAMPLES, tables["score"][s].size)) for s in scales}
    found: dict[str, Any] = {}
    ratios = {}
    for kind, table in tables.items():
        if not table:
            continue
        own = _crossings(scales, np.array([[table[s].mean() for s in scales]]))
        redrawn = _crossings(scales, np.stack([table[s][drawn[s]].mean(axis=1) for s in scales], axis=1))
        found[kind] = {f"{level:g}": _interval(own[0, i], redrawn[:, i]) for i, level in enumerate(LEVELS)}
        with np.errstate(invalid="ignore"):  # neither crossing was reached: no ratio
            ratios[kind] = own[0, 0] / own[0, 1], redrawn[:, 0] / redrawn[:, 1]
        found[kind]["r"] = _interval(*ratios[kind])
        found[kind]["first_scale"] = scales[0]
    if "companion" in ratios:
        (a, x), (b, y) = ratios["score"], ratios["companion"]
        with np.errstate(invalid="ignore"):
            found["r_score_minus_companion"] = _interval(a - b, x - y)
    return found


def _crossings(scales: Sequence[float], means: np.ndarray) -> np.ndarray:
    """Shape (curves, levels); infinite where a curve does not get there."""
    return np.array([[crossing(scales, row, level) or math.inf for level in LEVELS] for row in means])


def _interval(own: float, redrawn: np.ndarray) -> dict[str, Any]:
    """Estimate and 95% percentiles; ``None`` beyond the ladder. Ratios of two that were not reached are left out."""
    kept = redrawn[~np.isnan(redrawn)]
    low, high = np.quantile(kept, [0.025, 0.975], method="nearest") if kept.size else (math.nan, math.nan)
    return {k: float(v) if math.isfinite(v) else None for k, v in (("estimate", own), ("low", low), ("high", high))}


def result(bench: Any) -> dict[str, Any]:
    """Everything that was measured of one model, as JSON."""
    opened, admitted, profiles = bench.opened, bench.admitted, bench.profiles
    seen = [t for t in admitted.tasks if any(len(u) > 1 for (name, _), u in profiles[t].units.items() if name == t)]
    tasks = {task: _task(bench, task) for task in seen}
    rows = {
        "name": bench.subject.name,
        "weights": opened.subject.card.weights_hash,
        "parameters": opened.subject.card.parameters,
        "dtype": opened.subject.card.dtype,
        "stored_as": words.STORED.get(bench.subject.name, ""),
        "moved": opened.card.size,
        "rms": opened.card.rms,
        "ruler": dataclasses.asdict(opened.ruler),
        "ladder": list(bench.brackets.design.ladder),
        "error_per_decision": bench.brackets.design.error,
        "search_items_each": bench.brackets.design.items_each,
        "admissions": [dataclasses.asdict(a) for a in admitted.admissions],
        "cells": bench.done,
        "tasks": tasks,
        "gradients": {task: _gradients(found) for task, found in bench.gradients.items()},
        "not_finite": bench.evaluator.broken,
        "conditions": {
            **results.conditions(),
            "clean_weights": bench.evaluator.mover.mode,
            "resamples": RESAMPLES,
        },
    }
    return json.loads(json.dumps(rows, default=_plain))


def _gradients(found: Gradients) -> dict[str, Any]:
    """Shares over all weights, and of the tensors of each kind the median, smallest and largest."""
    content: dict[str, Any] = {
        "items": found.items, "tokens": found.tokens, "gaussian": found.gaussian,
        "oscillation": [dataclasses.asdict(o) for o in found.oscillation],
    }  # fmt: skip
    for weights, shares in (("pretrained", found.pretrained), ("random", found.random)):
        content[weights] = []
        for whole in (s for s in shares if s.name == "all"):
            parts = [s for s in shares if s.name != "all" and s.top == whole.top]
            kinds = {"any": parts} | {k: [s for s in parts if s.kind == k] for k in sorted({s.kind for s in parts})}
            content[weights].append(dataclasses.asdict(whole) | {
                "tensors": {
                    kind: {"n": len(of), **{how: _spread([getattr(s, how) for s in of]) for how in HOWS}}
                    for kind, of in kinds.items()
                }
            })  # fmt: skip
    return content


def _spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set)) else str(value)


def _task(bench: Any, task: str) -> dict[str, Any]:
    profiles, searched = bench.profiles[task], bench.brackets
    ground = bench.evaluator.grounds[task]
    tables = {kind: losses(profiles, task, kind) for kind in KINDS}
    decided = landscape.basin(searched, task)
    estimate = landscape.estimate(profiles, task)
    worst = bench.worst.get(task)
    looked = bool(searched.decided.get(task)) or any(t == task and u for (t, _), u in searched.units.items())
    return {
        "items": len(ground.items),
        "items_each": profiles.design.items_each,
        "base": ground.score,
        "chance": ground.chance,
        "tau": ground.tau,
        "basin": {k: v for k, v in dataclasses.asdict(decided).items() if k != "strict"} if looked else None,
        "units_needed": needed(ground, searched.design),
        "units_there": searched.design.units(ground),
        "sigma": dataclasses.asdict(estimate) if estimate else None,
        "profile": dataclasses.asdict(landscape.profile(profiles, task)),
        "losses": {
            kind: [{"scale": s, "mean": float(x.mean()), "pairs": int(x.size)} for s, x in sorted(table.items())]
            for kind, table in tables.items()
        },
        "shape": shape(tables),
        "worst": dataclasses.asdict(worst) if worst else None,
    }
