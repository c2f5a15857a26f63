"""Tables of ``scans.py``: crossings of raw losses with bootstrap intervals, the shape number, the paper's numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scan_words as words
import torch

from catchment import landscape
from catchment.landscape import Design, Field, Ground
from catchment.runs import write_atomic
from catchment.statistics import crossing, units_needed

LEVELS = (0.1, 0.5, 0.9)
RESAMPLES = 1000
KINDS = ("score", "companion")
Losses = dict[float, np.ndarray]


def name() -> str:
    return f"scans-{datetime.now(UTC).date().isoformat()}"


def needed(ground: Ground, design: Design) -> int:
    """Units without any drop that show a task to be inside."""
    return units_needed(ground.tau, design.error)


def losses(field: Field, task: str, kind: str) -> Losses:
    """Per scale the loss of each pair, ``(base - moved) / (base - chance)``: base and moved on the pair's own items,
    the denominator over all items. Raw: 0 is the model itself, 1 is guessing, noise goes below and above."""
    ground = field.evaluator.grounds[task]
    scales = [s for s in field.scales(task) if len(field.units.get((task, s), [])) > 1]
    if kind == "score":
        return {s: np.array(field.drops(task, s)) / (ground.score - ground.chance) for s in scales}
    known = [ground.base[i].companion for i in ground.items]
    if any(c is None for c in known):
        return {}
    above = statistics.fmean(c or 0.0 for c in known) - ground.chance
    found = {}
    for s in scales:
        drops = []
        for unit in field.units[task, s]:
            base, plus, minus = (
                sum(row.companion or 0.0 for row in rows) for rows in (unit.base, unit.plus, unit.minus)
            )
            drops.append((base - (plus + minus) / 2) / len(unit.base))
        found[s] = np.array(drops) / above
    return found


def span(field: Field, task: str) -> tuple[float, float]:
    """Where the mean loss first passes 0.1 and 0.9; the ends of the ladder where it does not."""
    curve = losses(field, task, "score")
    scales = sorted(curve)
    means = [float(curve[s].mean()) for s in scales]
    low, high = (crossing(scales, means, level) for level in (0.1, 0.9))
    return low or scales[-1], high or scales[-1]


def shape(tables: Mapping[str, Losses]) -> dict[str, Any]:
    """Crossings of the mean loss and the shape number ``r = sigma(0.1) / sigma(0.5)``, per kind, and the difference of
    r between them. Pairs are drawn again within each scale, the same ones for both kinds; percentiles.

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
    if len(ratios) == 2:
        (a, x), (b, y) = ratios["score"], ratios["companion"]
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
    job, profiles = bench.job, bench.profiles
    seen = [t for t in job.admitted if any(len(u) > 1 for (name, _), u in profiles[t].units.items() if name == t)]
    tasks = {task: _task(bench, task) for task in seen}
    rows = {
        "name": bench.subject.name,
        "weights": job.side.card.weights_hash,
        "parameters": job.side.card.parameters,
        "dtype": job.side.card.dtype,
        "stored_as": words.STORED.get(bench.subject.name, ""),
        "moved": job.card.size,
        "rms": job.card.rms,
        "ladder": list(bench.brackets.design.ladder),
        "error_per_decision": bench.brackets.design.error,
        "search_items_each": bench.brackets.design.items_each,
        "admissions": [dataclasses.asdict(a) for a in job.admissions],
        "cells": bench.done,
        "tasks": tasks,
        "gradients": {task: dataclasses.asdict(found) for task, found in bench.gradients.items()},
        "not_finite": bench.evaluator.broken,
        "conditions": conditions(bench),
    }
    return json.loads(json.dumps(rows, default=_plain))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set)) else str(value)


def _task(bench: Any, task: str) -> dict[str, Any]:
    profiles, searched = bench.profiles[task], bench.brackets
    ground = bench.evaluator.grounds[task]
    tables = {kind: losses(profiles, task, kind) for kind in KINDS}
    decided = landscape.basin(searched, task)
    estimate = landscape.basin(profiles, task).estimate
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


def conditions(bench: Any) -> dict[str, Any]:
    """Versions and machine."""
    names = ("catchment", "torch", "transformers", "numpy", "scipy")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "versions": {n: importlib.metadata.version(n) for n in names} | {"python": platform.python_version()},
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "clean_weights": bench.evaluator.mover.mode,
        "resamples": RESAMPLES,
    }


def write(results: Mapping[str, Any], out: Path) -> None:
    """``scans-<date>.json`` and ``.md``; a model that an earlier run of the day measured and this one did not look at
    is kept."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name()}.json"
    before = json.loads(path.read_text("utf-8"))["models"] if path.is_file() else {}
    kept = {k: v for k, v in before.items() if k not in results or "left_out" in results[k]}
    models = {**results, **{k: v for k, v in kept.items() if "left_out" not in v}}
    order = sorted(models, key=lambda k: models[k].get("parameters", 0))
    content = {"date": name()[6:], "models": {k: models[k] for k in order}}
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(out / f"{name()}.md", words.markdown(content))
