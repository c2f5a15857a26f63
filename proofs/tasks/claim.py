"""Which real model can do which built-in task: writes docs/tasks.md."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "proofs"))
from results import Cell, Result, table

from catchment.capabilities import JUDGED_SCORERS, packs
from catchment.statistics import admission

HEAD = """# Built-in tasks, and who can do them

{count} tasks, all ours: generated from seeds or written by hand, Apache-2.0. A base is *admitted* to a task when it
scores at least 0.15 above chance with its 95% interval above chance (generated answers: and at least 0.5). Only then
may `compare` call the task "kept"; a loss is said wherever the base is above chance, and "not measurable" where neither
it nor a gain is shown. `catchment compare --tasks NAME` takes any of them.
"""
BASE = " + base: "
"""Between model and task in the name of a cell."""


def _row(cell: Cell) -> list[object]:
    """A model on a task. Scores of built-in tasks are 0 or 1, so their mean says all."""
    name = cell.name.partition(BASE)[2].partition(",")[0]
    if cell.status != "done":
        return [name, cell.n, cell.status, cell.reason, ""]
    task, n, v = packs.load(name), int(cell.n), cell.values
    right = round(v["score"] * n)
    able = admission([1] * right + [0] * (n - right), task.chance_level, task.scorer in JUDGED_SCORERS)[0]
    return [name, n, f"{v['score']:.3f}", f"{v['low']:.3f} to {v['high']:.3f}", "yes" if able else "no"]


def tables(result: Result) -> str:
    """The text of docs/tasks.md, which is written when nothing is open."""
    about = []
    for task in map(packs.load, packs.NAMES):
        chance = "" if task.scorer == "text" else f"{task.chance_level:.2f}"
        about.append([task.name, f"{len(task.items):,}", task.scorer, chance, task.description])
    parts = [HEAD.format(count=len(about)), table(["task", "items", "scorer", "chance", "what it asks"], about)]
    for model in dict.fromkeys(cell.name.partition(BASE)[0] for cell in result.cells):
        rows = [_row(cell) for cell in result.cells if cell.name.startswith(model + BASE)]
        parts += [f"## {model}\n", table(["task", "n", "score", "95% interval", "admitted"], rows)]
    text = "\n".join([*parts, f"Measured {result.date} by `{result.command}`, seed 0.\n"])
    if all(cell.status == "done" for cell in result.cells):
        (ROOT / "docs/tasks.md").write_text(text, encoding="utf-8")
    return text
