"""How many evaluations an interval for the basin takes: ours against a 21-point x 20-direction grid.

The grid is what landscape tools draw: 21 equally spaced scales from -H to H, 20 random directions, all items at every
point; its interval for the crossing comes from the bootstrap over the 20 directions. Ours may use one sixth of its
evaluations (pilot, search and what is left over), over the same items. Both are asked for the crossing of tau over
directions and these items. First on a simulated model whose crossing is known, many times, so that coverage can be
counted; then once on a real one. Bar: an interval as tight (ratio of its ends), with at least the grid's coverage.

    python benchmarks/bench_basin.py
    python benchmarks/bench_basin.py --real 0          # the simulation only
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from catchment.capabilities import Format, Item, Task, make_engine, packs, prepare, run, sample
from catchment.landscape import (
    Design,
    Evaluator,
    Field,
    Ground,
    Mover,
    Subspace,
    basin,
    estimate,
    gaussian,
    scout,
    search,
    sharpen,
)
from catchment.models import load
from catchment.records import Row
from catchment.statistics import crossing_interval, ladder

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CATCHMENT_SHARED", ROOT.parent / "shared"))
POINTS, DIRECTIONS, SHARE = 21, 20, 6
LEVEL = 0.95
Normal = statistics.NormalDist()


class Simulated(Evaluator):
    """Scores of a model that loses item i under direction d with probability Phi((ln s - m_i - v_d) / 0.25): items and
    directions both matter, so evaluations under one direction are correlated."""

    def __init__(self, ground: Ground, seed: int) -> None:
        mover: Any = SimpleNamespace(subspace=Subspace("all", "simulated", {"w": (1,)}), close=lambda: None)
        super().__init__(SimpleNamespace(), mover, [ground])  # type: ignore[arg-type]
        draw = np.random.default_rng(seed)
        self.place = {item: math.log(0.01) + 0.8 * draw.standard_normal() for item in ground.items}

    def rows(self, family: Mapping[str, Any], label: str, wanted: Mapping[str, Sequence[str]], *moves: Any) -> Any:
        direction, scale = moves[0]
        draw = np.random.default_rng([direction.seed, direction.index, scale > 0])
        shift = 0.2 * np.random.default_rng([direction.seed, direction.index]).standard_normal()
        found = {}
        for task, items in wanted.items():
            self.evaluations += len(items)
            ground = self.grounds[task]
            lost = [Normal.cdf((math.log(abs(scale)) - self.place[i] - shift) / 0.25) for i in items]
            kept = draw.random(len(items)) > np.array(lost)
            found[task] = {i: Row(i, ground.base[i].score * float(k), "") for i, k in zip(items, kept, strict=True)}
        return found

    def cost(self, task: str, items: Sequence[str]) -> int:
        return 0

    def crossing(self, ground: Ground) -> float:
        """The true sigma*: the mean over directions in closed form, v_d and the 0.25 added up."""
        spread = math.hypot(0.2, 0.25)

        def drop(scale: float) -> float:
            each = [ground.base[i].score * Normal.cdf((math.log(scale) - self.place[i]) / spread) for i in ground.items]
            return sum(each) / len(each)

        low, high = 1e-6, 1.0
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if drop(middle) <= ground.tau else (low, middle)
        return low


def simulated_ground(items: int) -> Ground:
    task = Task("simulated", tuple(Item(f"{i}?", ("a", "b"), 0) for i in range(items)), "choice", (Format("plain"),))
    base = {item.id: Row(item.id, float(k % 20 != 0), "") for k, item in enumerate(task.items)}
    prepared: Any = SimpleNamespace(task=task, encoded=tuple(SimpleNamespace(item=i) for i in task.items))
    return Ground(prepared, base, tuple(base), 0.5, 0.1 * (0.95 - 0.5))


def by_grid(evaluator: Evaluator, ground: Ground, reach: float, seed: int) -> dict[str, Any]:
    """The grid's interval. Scales +s and -s of a direction are averaged, as ours are."""
    scales = [reach * k / (POINTS // 2) for k in range(1, POINTS // 2 + 1)]
    before, start = evaluator.evaluations, time.perf_counter()
    table = []
    for d in range(DIRECTIONS):
        direction = gaussian(evaluator.mover.subspace, seed, d)
        drops = []
        for scale in scales:
            sides = []
            for signed in (scale, -scale):
                rows = evaluator.rows(
                    {"grid": seed}, f"{d}/{signed!r}", {ground.name: ground.items}, (direction, signed)
                )
                sides.append(sum(map(ground.value, rows[ground.name].values())) / len(ground.items))
            drops.append(ground.score - sum(sides) / 2)
        table.append(drops)
    found = crossing_interval(scales, table, ground.tau, level=LEVEL, seed=seed)
    spent = evaluator.evaluations - before
    low, high = (found.low, found.high) if found else (scales[-1], math.inf)
    return {"low": low, "high": high, "evaluations": spent, "seconds": time.perf_counter() - start}


def by_search(evaluator: Evaluator, ground: Ground, rungs: Sequence[float], allowed: int, seed: int) -> dict[str, Any]:
    """Ours: pilot, search for the bracket, and what is left at the rungs around the estimate."""
    before, start = evaluator.evaluations, time.perf_counter()
    field = Field(evaluator, Design(tuple(rungs), depth=2, items_each=4, cap=400, fixed=True, seed=seed))
    name = ground.name

    def stop(share: float) -> Any:
        return lambda: evaluator.evaluations - before > share * allowed - 2 * field.design.items_each

    scout(field, [name], 6, stop(0.2))
    search(field, [name], stop(0.6))
    sharpen(field, [name], 4000, stop(1.0))
    found, crossed = basin(field, name), estimate(field, name)
    spent, seconds = evaluator.evaluations - before, time.perf_counter() - start
    return {
        "low": crossed.low if crossed else 0.0, "high": crossed.high if crossed else math.inf,
        "bracket_low": found.low, "bracket_high": found.high, "evaluations": spent, "seconds": seconds,
    }  # fmt: skip


def ratio(found: Mapping[str, Any], low: str = "low", high: str = "high") -> float:
    """Ratio of the ends of an interval: 1 is a point."""
    a, b = found[low], found[high]
    return b / a if a and b and math.isfinite(b) else math.inf


def simulation(runs: int, items: int) -> dict[str, Any]:
    ground = simulated_ground(items)
    rows = []
    for seed in range(runs):
        evaluator = Simulated(ground, seed)
        truth = evaluator.crossing(ground)
        grid = by_grid(evaluator, ground, reach=4 * truth, seed=seed)
        ours = by_search(evaluator, ground, ladder(truth / 20, truth * 20, 15), grid["evaluations"] // SHARE, seed)
        rows.append((truth, grid, ours))
    covered = {
        "grid": sum(g["low"] <= t <= g["high"] for t, g, _ in rows) / runs,
        "ours": sum(o["low"] <= t <= o["high"] for t, _, o in rows) / runs,
        "ours, bracket": sum(o["bracket_low"] <= t <= (o["bracket_high"] or math.inf) for t, _, o in rows) / runs,
    }
    return {
        "runs": runs, "items": items, "evaluations": {
            "grid": statistics.mean(g["evaluations"] for _, g, _ in rows),
            "ours": statistics.mean(o["evaluations"] for _, _, o in rows),
        },
        "ratio_of_ends_median": {
            "grid": statistics.median(ratio(g) for _, g, _ in rows),
            "ours": statistics.median(ratio(o) for _, _, o in rows),
            "ours, bracket": statistics.median(ratio(o, "bracket_low", "bracket_high") for _, _, o in rows),
        },
        "coverage": covered,
        "ours_as_tight": sum(ratio(o) <= ratio(g) for _, g, o in rows) / runs,
    }  # fmt: skip


def real(model: str, name: str, items: int, reach: float | None) -> dict[str, Any]:
    """One run on a real model; the grid reaches to 4 times the estimate of ours, which flatters it."""
    loaded = load(model, dtype="float32")
    task = packs.load(name)
    engine = make_engine(loaded.model, loaded.tokenizer, 1024)
    prepared = prepare(loaded.tokenizer, task, items=sample(task.items, items, 0))
    base = {row.item: row for row in run(engine, prepared)}
    ground = Ground(prepared, base, tuple(base), task.chance_level, 1.0)
    tau = 0.1 * (ground.score - task.chance_level)
    ground = Ground(prepared, base, tuple(base), task.chance_level, tau)
    subspace = Subspace.all(loaded.model)
    rms = subspace.ruler(loaded.model).rms
    with Evaluator(engine, Mover(loaded.model, subspace, files=loaded.files), [ground]) as evaluator:
        allowed = (POINTS - 1) * DIRECTIONS * len(base) // SHARE
        ours = by_search(evaluator, ground, ladder(rms / 256, rms / 2, 15), allowed, 0)
        middle = math.sqrt(max(ours["low"], rms / 256) * min(ours["high"], rms / 2))
        grid = by_grid(evaluator, ground, reach or 4 * middle, 0)
    shown = {"grid": ratio(grid), "ours": ratio(ours), "ours, bracket": ratio(ours, "bracket_low", "bracket_high")}
    return {
        "model": Path(model).name,
        "task": name,
        "items": len(base),
        "tau": tau,
        "grid": grid,
        "ours": ours,
        "ratio_of_ends": shown,
    }


def finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="simulated models")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--real", type=int, default=60, help="items of the real run; 0 leaves it out")
    parser.add_argument("--model", default=str(SHARED / "models" / "stories15M"))
    parser.add_argument("--task", default="stories_cloze")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    date = datetime.date.today().isoformat()
    record: dict[str, Any] = {
        "date": date,
        "conditions": {"torch": torch.__version__, "threads": torch.get_num_threads(), "level": LEVEL},
        "simulation": simulation(options.runs, options.items),
    }
    print(json.dumps(record["simulation"], indent=1))
    if options.real and (Path(options.model).exists() or ":" in options.model):
        record["real"] = real(options.model, options.task, options.real, None)
        print(json.dumps(finite(record["real"]), indent=1))
    out = options.out or ROOT / "benchmarks" / "results" / f"{date}-basin.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(finite(record), indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
