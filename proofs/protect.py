"""Does ``tune --protect`` keep the gain and lose less? The same data, settings and seeds, with and without protection.

stories15M on SST-2 as a completion task, three seeds, all three story tasks protected; SmolLM2-135M-Instruct on sums,
one seed, ``recall`` and ``format`` protected; and stories15M with a learning rate that is far too high, which must be
called harmful. SIFT at 1%. A cell is one ``catchment.tune`` with its two trainings; its training is counted in
tokens, it is resumed where it stopped, and the table is written after every cell.

    python proofs/protect.py --budget 60m
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from catchment.capabilities import packs
from catchment.commands.tune.record import Tune
from catchment.commands.tune.run import run as run_tune
from catchment.commands.tune.settings import TuneSettings
from catchment.errors import CatchmentError
from catchment.measuring import Progress
from catchment.options import parse_seconds
from catchment.records import from_json

ROOT = Path(__file__).resolve().parent.parent
Found = dict[str, Any]
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models/stories15M"
RESULTS = ROOT / "proofs/results"
sys.path.insert(0, str(ROOT / "recipes"))
import demo_increments as recipe  # noqa: E402


@dataclass(frozen=True)
class Cell:
    """One tune with and without protection."""

    name: str
    base: str
    data: str
    protect: tuple[str, ...]
    rate: float
    steps: int
    seed: int
    tokens: int


def cells() -> list[Cell]:
    """Core first: three seeds of the small model, then the harmful rate, then the real chat model."""
    small = {"protect": packs.STORIES, "base": str(STORIES), "data": "sst2", "steps": 240, "tokens": 60_000}
    made = [Cell(f"stories15M, SST-2, seed {seed}", rate=2e-3, seed=seed, **small) for seed in range(3)]
    harmful = {**small, "steps": 60, "tokens": 15_000}
    made.append(Cell("stories15M, SST-2, harmful rate", rate=0.3, seed=0, **harmful))
    made.append(Cell("SmolLM2-135M, sums", recipe.BASE, "sums", ("recall", "format"), 6e-4, 100, 1, 72_000))
    return made


def sst2(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Film sentences with their sentiment as a completion."""
    with (SHARED / "data/glue/SST-2/train.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    rows = [row for row in rows if len(row[0].split()) >= 6]
    chosen = random.Random(seed).sample(rows, count)
    words = ("negative", "positive")
    return [{"prompt": f"Review: {text.strip()} Sentiment:", "completion": f" {words[int(y)]}"} for text, y in chosen]


def asked(cell: Cell) -> Found:
    """Settings of the cell's tune."""
    own = {
        "method": "sift", "sparsity": 0.01, "learning_rate": cell.rate, "max_steps": cell.steps, "seed": cell.seed,
        "protect": cell.protect,
    }  # fmt: skip
    if cell.data == "sums":  # as the demo's increments are made, which have to be smaller
        return {**recipe.SETTINGS, **own}
    return {
        **own, "max_drop": 0.05, "tasks": ("stories",), "limit": 200, "held_out": 200, "batch_size": 8,
        "max_length": 128,
    }  # fmt: skip


def settings(cell: Cell, out: Path) -> TuneSettings:
    rows = recipe.problems(recipe.PROBLEMS, cell.seed) if cell.data == "sums" else sst2(2200)
    return TuneSettings(cell.base, rows, out=out, **asked(cell))


class Told(Progress):
    """What is being done, a line each."""

    def __init__(self) -> None:
        self.last = ""

    def status(self, text: str) -> None:
        head = text.split(" · step")[0]
        if head != self.last:
            self.last = head
            print(f"  {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="60m", help="stop before the next cell when so much time is spent")
    parser.add_argument("--work", type=Path, default=ROOT / "proofs/.cache/protect", help="folder of the cells")
    parser.add_argument("--only", default="", help="cells whose name begins so")
    args = parser.parse_args()
    end = time.monotonic() + (parse_seconds(args.budget) or 3600)
    done: dict[str, Found | str] = {}
    earlier = committed()
    for number, cell in enumerate(cells()):
        out = args.work / str(number)
        kept = out / "tune.json"
        here = numbers(from_json(Tune, kept.read_text(encoding="utf-8"))) if kept.is_file() else None
        if here is not None and _same(cell, here):
            done[cell.name] = here
        elif cell.name in earlier:
            done[cell.name] = earlier[cell.name]
        elif time.monotonic() > end or not cell.name.startswith(args.only):
            done[cell.name] = f"not run; {cell.tokens:,} training tokens, twice"
        elif cell.base == str(STORIES) and not STORIES.is_dir():
            done[cell.name] = "no stories15M here"
        else:
            print(cell.name, flush=True)
            try:
                done[cell.name] = numbers(run_tune(settings(cell, out), Told()))
            except CatchmentError as error:
                done[cell.name] = str(error)
        write(done)
    print(table(done))


def committed() -> dict[str, Found]:
    """Cells of the newest results, as another machine has measured them; only those with today's settings."""
    newest = max(RESULTS.glob("protect-*.json"), default=None)
    if newest is None:
        return {}
    content = json.loads(newest.read_text(encoding="utf-8"))
    named = {cell.name: cell for cell in cells()}
    return {
        name: found
        for name, found in content.items()
        if isinstance(found, dict) and name in named and _same(named[name], found)
    }


def _same(cell: Cell, found: Found) -> bool:
    """Whether all settings that a result tells are those that the cell asks for, or their defaults."""
    fields = {f.name: f.default for f in dataclasses.fields(TuneSettings)}
    wanted = {**fields, **asked(cell)}
    told = {k: v for k, v in found["settings"].items() if k in wanted}
    told |= {"protect": found["protected"], "max_drop": found.get("max_drop")}
    return all(wanted[k] == (tuple(v) if isinstance(v, list) else v) for k, v in told.items())


def write(done: dict[str, Found | str]) -> None:
    """The table, and the numbers behind it."""
    dates = [found["created"] for found in done.values() if isinstance(found, dict)]
    if not dates:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"protect-{max(dates)}.md").write_text(table(done), encoding="utf-8")
    (RESULTS / f"protect-{max(dates)}.json").write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


def numbers(tune: Tune) -> Found:
    """What a reader of the proof needs, without models' and machine's paths. A row of ``tasks``: n, base, tuned,
    difference with its ends, verdict; of ``against``: n, plain, protected, difference with its ends."""
    return {
        "created": tune.created[:10],
        "headline": tune.headline,
        "sentence": tune.sentence,
        "settings": tune.settings,
        "conditions": {k: v for k, v in tune.conditions.items() if k != "device"},
        "protected": list(tune.protected),
        "max_drop": tune.max_drop,
        "runs": [
            {
                "name": run.name, "trainable": run.trainable, "steps": run.steps, "tokens": run.tokens,
                "seconds": run.seconds, "bytes": run.bytes, "loss": run.loss, "stopped": run.stopped,
                "held_out": run.held_out and [run.held_out.base, run.held_out.tuned, *_ends(run.held_out.difference)],
                "tasks": {t.task: [t.n, t.base, t.tuned, *_ends(t.difference), t.verdict] for t in run.tasks},
                "pulls": len({look.step for look in run.looks if look.factor < 1}),
            }
            for run in tune.runs
        ],
        "against": {a.task: [a.n, a.plain, a.protected, *_ends(a.difference)] for a in tune.against},
    }  # fmt: skip


def _ends(interval: Any) -> list[float]:
    return [interval.estimate, interval.low, interval.high]


def table(done: dict[str, Found | str]) -> str:
    """One row per cell and task."""
    lines = [
        "# `tune --protect` against plain `tune`",
        "",
        "SIFT; same data, order, settings and seed. Points; intervals at 95%, over items, simultaneous over the "
        "tasks of a cell. Protected tasks (*) are judged on items that the fence never saw. `held_out` is what was "
        "tuned on: accuracy on rows that were not trained on.",
        "",
        "| cell | task | n | base | plain | protected | plain - base | protected - base | protected - plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in done.items():
        if isinstance(found, str):
            lines.append(f"| {name} | {found} | | | | | | | |")
            continue
        protected, plain = found["runs"][0]["tasks"], found["runs"][-1]["tasks"]
        for task, (n, without, fenced, *against) in found["against"].items():
            star = "*" if task in found["protected"] else ""
            (_, base, _, *b, b_verdict), (_, _, _, *a, a_verdict) = protected[task], plain[task]
            lines.append(
                f"| {name} | {task}{star} | {n} | {100 * base:.1f} | {100 * without:.1f} | {100 * fenced:.1f} | "
                f"{_said(a)} {a_verdict} | {_said(b)} {b_verdict} | {_said(against)} |"
            )
        for run in found["runs"]:
            if run["held_out"]:
                base, tuned, *difference = run["held_out"]
                lines.append(
                    f"| {name} | loss of held-out rows, {run['name']} | | {base:.3f} | | {tuned:.3f} | | "
                    f"{difference[0]:+.3f} [{difference[1]:+.3f}, {difference[2]:+.3f}] | |"
                )
    lines += _together(done)
    said = {name: found["sentence"] for name, found in done.items() if isinstance(found, dict)}
    return "\n".join([*lines, "", *(f"- **{name}**: {sentence}" for name, sentence in said.items()), ""])


def _together(done: dict[str, Found | str]) -> list[str]:
    """Means over cells that differ in nothing but the seed, of what is judged on items of each seed's own: held-out
    rows, of which two seeds share a tenth. The distances of the ends from the estimates add up in squares (MOVER: Zou
    and Donner 2008, Statistics in Medicine 27). Protected tasks are small pools, which the seeds share."""
    seeds: dict[str, list[Found]] = {}
    for name, found in done.items():
        if isinstance(found, dict) and ", seed " in name:
            seeds.setdefault(name.partition(", seed ")[0], []).append(found)
    lines = []
    for name, cells in seeds.items():
        judged = [task for task in cells[0]["against"] if task not in cells[0]["protected"]]
        for task in judged if len(cells) > 1 else ():
            against = [cell["against"][task] for cell in cells]
            runs = [[cell["runs"][k]["tasks"][task] for cell in cells] for k in (-1, 0)]
            scores = [fmean(row[1] for row in runs[0]), fmean(row[1] for row in against), fmean(r[2] for r in against)]
            differences = [_mean([row[-4:-1] for row in runs[0]]), _mean([row[-4:-1] for row in runs[1]])]
            differences.append(_mean([row[-3:] for row in against]))
            lines.append(
                f"| {name}, mean of {len(cells)} seeds | {task} | {sum(row[0] for row in against)} | "
                + " | ".join([*(f"{100 * score:.1f}" for score in scores), *map(_said, differences)]) + " |"
            )  # fmt: skip
    return lines


def _mean(intervals: list[list[float]]) -> list[float]:
    middle = fmean(e for e, _, _ in intervals)
    low = math.hypot(*(e - low for e, low, _ in intervals)) / len(intervals)
    high = math.hypot(*(high - e for e, _, high in intervals)) / len(intervals)
    return [middle, middle - low, middle + high]


def _said(ends: list[float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * end for end in ends))


if __name__ == "__main__":
    main()
