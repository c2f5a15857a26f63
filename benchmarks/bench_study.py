"""What a large study costs: 100,000 cells planned, listed and resumed, and a report over their 10 million rows.

Each step runs in a fresh process over one store, which is written first and not timed against a bar: cells of 100 rows,
100 cells at a time, as a study writes them. Measured are wall and processor seconds inside the step, and the peak of
the memory. The bars: what plans, lists and resumes together within 10 s and 1 GB, a report within 60 s. Writes
``benchmarks/results/<date>-study.json``.

    python benchmarks/bench_study.py [--cells 100000]
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_store import calibration, file_system, flush_milliseconds

from catchment.records import Row
from catchment.runs import Store, append_all, cell_key

ROWS, TASKS, BATCH, SOME = 100, 50, 100, 200
BARS = {"resume_seconds": 10.0, "resume_mb": 1024.0, "report_seconds": 60.0}
RESUME, REPORT = ("keys", "counts"), ("columns",)
"""The steps that each bar is about."""


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def conditions(number: int) -> dict[str, Any]:
    """As many fields as the address of an evaluation cell of a study has: model by task by format."""
    model, task = divmod(number, TASKS)
    weights = text_hash(f"weights {model}")
    hashes = {name: text_hash(f"{name} {model % 7}") for name in ("config", "tokenizer", "template", "shots")}
    return {
        "weights": weights, **hashes, "system": None, "date": "2026-11-29", "task": text_hash(f"task {task}"),
        "name": f"task-{task:02d}", "format": "default", "dtype": "float32", "attention": "sdpa", "device": "cpu",
        "quantization": None, "policy": "greedy", "scorer": "choice", "backend": "transformers",
    }  # fmt: skip


def rows(numbers: range) -> Iterator[list[Row]]:
    """Rows of cells: 0 or 1 as the score, four log-probabilities, a companion; drawn anew for every cell."""
    items = [[text_hash(f"item {task} {item}")[:16] for item in range(ROWS)] for task in range(TASKS)]
    draw = random.Random(0)
    pool = [-draw.expovariate(1.0) for _ in range(9973)]
    for number in numbers:
        start = random.Random(number).randrange(9000)
        yield [
            Row(item, float(pool[start + k] < -0.7), f"the answer is {k}", tuple(pool[start + k : start + k + 4]),
                pool[start + k] + 1.0, ())
            for k, item in enumerate(items[number % TASKS])
        ]  # fmt: skip


def write(root: Path, cells: int) -> dict[str, Any]:
    """The store that the other steps look at."""
    store = Store(root)
    for start in range(0, cells, BATCH):
        numbers = range(start, min(start + BATCH, cells))
        due = [(conditions(number), made) for number, made in zip(numbers, rows(numbers), strict=True)]
        append_all([(store.cell(cell_key(asked), asked), made) for asked, made in due])
    store.compact_used()
    return {"mb": round(sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6)}


def keys(root: Path, cells: int) -> dict[str, Any]:
    """The address of every cell."""
    return {"keys": len({cell_key(conditions(number)) for number in range(cells)})}


def counts(root: Path, cells: int) -> dict[str, Any]:
    """How many rows every cell has."""
    found = Store(root).counts()
    assert len(found) == cells
    return {"rows": sum(found.values())}


def columns(root: Path, cells: int) -> dict[str, Any]:
    """Scores and companions of every row, as a report needs them."""
    store = Store(root)
    total = read = 0.0
    for _, table in store.columns(store.counts()):
        read += len(table.items)
        total += table.scores.sum() + table.companions.sum()
    assert read == cells * ROWS
    return {"rows": int(read), "sum": total}


def one_by_one(root: Path, cells: int) -> dict[str, Any]:
    """Some cells by rows and by columns; processor milliseconds per cell."""
    store = Store(root)
    some = list(store.counts())[:SOME]
    opened = [store.cell(key, {}) for key in some]
    spent = {}
    for name, read in (("rows", lambda cell: cell.rows()), ("columns", lambda cell: cell.columns())):
        begin = time.process_time()
        for cell in opened:
            read(cell)
        spent[f"{name}_ms"] = round(1000 * (time.process_time() - begin) / len(opened), 3)
    return spent


def merge(root: Path, cells: int) -> dict[str, Any]:
    """All cells into an empty store, and again; seconds of each."""
    seconds = []
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        merged = Store(folder)
        for expected in (cells * ROWS, 0):
            begin = time.perf_counter()
            assert merged.merge(Store(root)) == expected
            seconds.append(round(time.perf_counter() - begin, 1))
    return {"first_seconds": seconds[0], "again_seconds": seconds[1]}


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "write": write, "keys": keys, "counts": counts, "columns": columns, "one_by_one": one_by_one, "merge": merge,
    # the study's own steps come here: plan, list, report; and into RESUME and REPORT
}  # fmt: skip


def step(name: str, root: Path, cells: int) -> dict[str, Any]:
    begin, before = time.perf_counter(), time.process_time()
    found = STEPS[name](root, cells)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, cpu = time.perf_counter() - begin, time.process_time() - before
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(peak), **found}


def apart(name: str, root: Path, cells: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", name, str(root), str(cells)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    print(name, found, flush=True)
    return found


def write_record(found: dict[str, Any], conditions: dict[str, Any]) -> None:
    totals = {
        "resume_seconds": round(sum(found[name]["seconds"] for name in RESUME), 2),
        "resume_mb": max(found[name]["peak_mb"] for name in RESUME),
        "report_seconds": round(sum(found[name]["seconds"] for name in REPORT), 2),
        "resume_cpu_seconds": round(sum(found[name]["cpu_seconds"] for name in RESUME), 2),
        "report_cpu_seconds": round(sum(found[name]["cpu_seconds"] for name in REPORT), 2),
    }
    today = datetime.date.today().isoformat()
    record = {
        "date": today, "found": found, "totals": totals, "limits": BARS,
        "met": {name: totals[name] < bar for name, bar in BARS.items()}, "conditions": conditions,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / f"{today}-study.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--folder", help="on the disk to be measured; a temporary folder by default")
    parser.add_argument("--keep", help="folder whose store is measured; it is written where there is none, and stays")
    options = parser.parse_args()
    told = {
        "python": platform.python_version(), "cpus": os.cpu_count(), "cells": options.cells, "rows_per_cell": ROWS,
        "calibration": calibration(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        root = Path(options.keep or folder) / "store"
        told |= {"file_system": file_system(folder), "flush_ms": flush_milliseconds(folder), "load": []}
        found = {}
        for step_name in STEPS:
            if step_name == "write" and root.exists():
                continue
            told["load"].append(round(os.getloadavg()[0], 1))
            found[step_name] = apart(step_name, root, options.cells)
    write_record(found, told)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
