"""Does ``tune --protect`` keep the gain and lose less? The same data, settings and seeds, with and without protection.

stories15M on SST-2 as a completion task, three seeds, all three story tasks protected; stories15M with a learning rate
that is far too high, which must be called harmful; and SmolLM2-135M-Instruct on sums, one seed, ``recall`` and
``format`` protected. SIFT at 1%. A call is one ``catchment.tune`` with its two trainings.
"""

from __future__ import annotations

import csv
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "proofs"), str(ROOT / "recipes")]
import demo_increments as recipe
from results import Cell, Result, ends, table

from catchment.capabilities import packs
from catchment.commands.study.calls import Call
from catchment.commands.tune.record import Tune, TuneRun
from catchment.commands.tune.run import run
from catchment.commands.tune.settings import TuneSettings
from catchment.records import Interval

SHARED = ROOT.parent / "shared"
SHARED_SETTINGS: dict[str, Any] = {"method": "sift", "sparsity": 0.01}
STORIES: dict[str, Any] = {
    "protect": packs.STORIES, "max_drop": 0.05, "tasks": ("stories",), "limit": 200, "held_out": 200, "batch_size": 8,
    "max_length": 128,
}  # fmt: skip
SUMS: dict[str, Any] = {**recipe.SETTINGS, "protect": ("recall", "format")}
"""Sums as the demo's increments are made, which have to be smaller."""


def sst2(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Film sentences with their sentiment as a completion."""
    with (SHARED / "data/glue/SST-2/train.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    rows = [row for row in rows if len(row[0].split()) >= 6]
    chosen = random.Random(seed).sample(rows, count)
    words = ("negative", "positive")
    return [{"prompt": f"Review: {text.strip()} Sentiment:", "completion": f" {words[int(y)]}"} for text, y in chosen]


def tuned(call: Call, data: str, seed: int, rate: float, steps: int) -> dict[str, Any]:
    """One tune with its plain twin; goes on from its last checkpoint."""
    sums = data == "sums"
    base = recipe.BASE if sums else str(SHARED / "models/stories15M")
    rows = recipe.problems(recipe.PROBLEMS, seed) if sums else sst2(2200)
    where = {"out": call.folder / "tune", "store": call.store.root}
    own = {"learning_rate": rate, "max_steps": steps, "seed": seed, **where}
    return numbers(run(TuneSettings(base, rows, **{**(SUMS if sums else STORIES), **SHARED_SETTINGS, **own}), call))


def numbers(tune: Tune) -> dict[str, Any]:
    """What a reader of the proof needs, without models' and machine's paths. A row of ``tasks``: n, base, tuned,
    difference with its ends, verdict; of ``against``: n, plain, protected, difference with its ends."""
    return {
        "n": {a.task: a.n for a in tune.against},
        "created": tune.created[:10],
        "headline": tune.headline,
        "sentence": tune.sentence,
        "settings": tune.settings,
        "conditions": {k: v for k, v in tune.conditions.items() if k != "device"},
        "protected": list(tune.protected),
        "max_drop": tune.max_drop,
        "runs": [_run(part) for part in tune.runs],
        "against": {a.task: [a.n, a.plain, a.protected, *_ends(a.difference)] for a in tune.against},
    }


def _run(run: TuneRun) -> dict[str, Any]:
    return {
        "name": run.name, "trainable": run.trainable, "steps": run.steps, "tokens": run.tokens,
        "seconds": run.seconds, "bytes": run.bytes, "loss": run.loss, "stopped": run.stopped,
        "held_out": run.held_out and [run.held_out.base, run.held_out.tuned, *_ends(run.held_out.difference)],
        "tasks": {t.task: [t.n, t.base, t.tuned, *_ends(t.difference), t.verdict] for t in run.tasks},
        "pulls": len({look.step for look in run.looks if look.factor < 1}),
    }  # fmt: skip


def _ends(interval: Interval) -> list[float]:
    return [interval.estimate, interval.low, interval.high]


def judge(cells: Sequence[Cell]) -> tuple[dict[str, Any], str]:
    """Per tune the protected tasks that were lost plain and protected, and whether the gain was shown to shrink."""
    done = [cell.values for cell in cells if cell.status == "done"]
    plain = sum(v["runs"][-1]["tasks"][task][-1] == "lost" for v in done for task in v["protected"])
    fenced = sum(v["runs"][0]["tasks"][task][-1] == "lost" for v in done for task in v["protected"])
    shrunk = sum(row[-1] < 0 for v in done for task, row in v["against"].items() if task not in v["protected"])
    outcome = {
        "protected tasks": sum(len(v["protected"]) for v in done), "lost plain": plain, "lost protected": fenced,
        "other tasks shown to be worse than plain": shrunk, "tunes": f"{len(done)} of {len(cells)}",
        "called harmful": sum(v["headline"] == "harmful" for v in done),
    }  # fmt: skip
    holds = fenced == 0 < plain and shrunk == 0
    said = f"{fenced} of {plain} losses are left, {shrunk} other tasks are shown to be worse than without protection."
    return outcome, f"The claim {'holds as far as it was measured' if holds else 'does not hold'}: {said}"


def tables(result: Result) -> str:
    """One row per tune and task."""
    rows: list[list[object]] = []
    done = {cell.name: cell.values for cell in result.cells if cell.status == "done"}
    for cell in result.cells:
        if cell.status != "done":
            rows.append([cell.name, f"{cell.status}: {cell.reason}", *[""] * 7])
            continue
        protected, plain = cell.values["runs"][0]["tasks"], cell.values["runs"][-1]["tasks"]
        for task, (n, without, fenced, *against) in cell.values["against"].items():
            star = "*" if task in cell.values["protected"] else ""
            (_, base, _, *b, b_verdict), (_, _, _, *a, a_verdict) = protected[task], plain[task]
            scores = [f"{100 * score:.1f}" for score in (base, without, fenced)]
            rows.append([cell.name, task + star, n, *scores, f"{ends(a)} {a_verdict}", f"{ends(b)} {b_verdict}",
                         ends(against)])  # fmt: skip
        rows += [
            [cell.name, f"loss of held-out rows, {run['name']}", "", f"{run['held_out'][0]:.3f}", "",
             f"{run['held_out'][1]:.3f}", "", ends(run["held_out"][2:], 1, "+.3f"), ""]
            for run in cell.values["runs"] if run["held_out"]
        ]  # fmt: skip
    rows += together(done)
    head = ["cell", "task", "n", "base", "plain", "protected", "plain - base", "protected - base", "protected - plain"]
    said = "\n".join(f"- **{name}**: {values['sentence']}" for name, values in done.items())
    return (
        f"# `tune --protect` against plain `tune`, {result.date}\n\nSIFT; same data, order, settings and seed. Points; "
        "intervals at 95%, over items, simultaneous over the tasks of a cell. Protected tasks (*) are judged on items "
        "that the fence never saw. `held_out` is what was tuned on: accuracy on rows that were not trained on.\n\n"
        f"{table(head, rows)}\n{said}\n\n{result.decision}\n"
    )


def together(done: Mapping[str, Mapping[str, Any]]) -> list[list[object]]:
    """Means over tunes that differ in nothing but the seed, of what is judged on items of each seed's own: held-out
    rows, of which two seeds share a tenth. Protected tasks are small pools, which the seeds share."""
    seeds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for values in done.values():
        s = values["settings"]
        seeds.setdefault((s["learning_rate"], s["max_steps"], tuple(values["protected"])), []).append(values)
    rows: list[list[object]] = []
    for cells in seeds.values():
        judged = [task for task in cells[0]["against"] if task not in cells[0]["protected"]]
        for task in judged if len(cells) > 1 else ():
            against = [cell["against"][task] for cell in cells]
            plain, fenced = ([cell["runs"][k]["tasks"][task] for cell in cells] for k in (-1, 0))
            scores = [fmean(row[1] for row in plain), fmean(row[1] for row in against), fmean(r[2] for r in against)]
            changes = [mean([row[-4:-1] for row in plain]), mean([row[-4:-1] for row in fenced])]
            changes.append(mean([row[-3:] for row in against]))
            rows.append([f"mean of {len(cells)} seeds", task, sum(row[0] for row in against),
                         *(f"{100 * score:.1f}" for score in scores), *map(ends, changes)])  # fmt: skip
    return rows


def mean(intervals: Sequence[Sequence[float]]) -> list[float]:
    """The distances of the ends from the estimates add up in squares (MOVER: Zou and Donner 2008, Statistics in
    Medicine 27)."""
    middle = fmean(e for e, _, _ in intervals)
    low = math.hypot(*(e - low for e, low, _ in intervals)) / len(intervals)
    high = math.hypot(*(high - e for e, _, high in intervals)) / len(intervals)
    return [middle, middle - low, middle + high]
