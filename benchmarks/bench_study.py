"""What a large study costs: 100,000 cells planned, listed and resumed, and a report over their 10 million rows.

Each step runs in a fresh process over one store, which is written first and not timed against a bar: cells of 100 rows,
100 cells at a time, as a study writes them. Measured are wall and processor seconds inside the step, and the peak of
the memory. The bars: what plans, lists and resumes together within 10 s and 1 GB, a report within 60 s. Writes
``benchmarks/results/<date>-study.json``.

    python benchmarks/bench_study.py [--cells 100000]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bench_store import calibration, file_system, flush_milliseconds

from catchment.commands.study import output
from catchment.commands.study.design import read_design
from catchment.commands.study.plan import plan_of
from catchment.commands.study.report import study_of, table_of
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.standing import Site, Stand
from catchment.commands.study.tunings import FILE, Tuned, folder_of
from catchment.commands.study.worker import work
from catchment.measuring import Progress
from catchment.options import read_config
from catchment.records import ModelCard, Row, to_json
from catchment.runs import Store, append_all

ROWS, TASKS, FORMATS, SEEDS, BATCH, SOME = 100, 20, 2, 100, 100, 200
BARS = {"resume_seconds": 10.0, "resume_mb": 1024.0, "report_seconds": 60.0, "scheduler_share": 0.02, "loads": 1 / 3}
RESUME, REPORT = ("plan",), ("report",)
"""The steps that each bar is about."""


def grid(root: Path, cells: int) -> Site:
    """A study of about so many cells, beside the store: a tiny model, tunings at several rates with 100 seeds each, 20
    tasks of 100 items under two formats. Nothing is trained: the trainings are written as if they had been."""
    folder = root.parent / "grid"
    if not (folder / "study.yaml").is_file():
        write_inputs(folder, max(1, round(cells / (TASKS * FORMATS * SEEDS))))
    path = folder / "study.yaml"
    given = read_config(path, StudySettings)
    settings = StudySettings(**{**given, "study": path, "store": root, "out": root.parent / "out"})
    return Site.open(settings, read_design(settings))


def write_inputs(folder: Path, rates: int) -> None:
    """Model, tasks, rows and the YAML file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    words = ["<s>", "<unk>", "red", "blue", "green", *map(str, range(2000))]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>",
                            pad_token="<s>").save_pretrained(folder / "model")  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(folder / "model")
    for task in range(TASKS):
        items = [{"prompt": f"{task} asks {(k * 7919 + task) % 1999} of {k * 31 % 97} and {k}",
                  "choices": ["red", "blue", "green"], "gold": k % 3} for k in range(ROWS)]  # fmt: skip
        (folder / f"task{task:02d}.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "rows.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{k}", "completion": " red"}) for k in range(9))
    )
    tuning = {"name": "rows", "data": "rows.jsonl", "method": "full", "max_steps": 3,
              "learning_rate": [1e-5 * (k + 1) for k in range(rates)]}  # fmt: skip
    study = {"models": "model", "tunings": [tuning], "seeds": list(range(SEEDS)), "formats": FORMATS, "device": "cpu",
             "tasks": [f"task{task:02d}.jsonl" for task in range(TASKS)]}  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def rows(stand: Stand, number: int, pool: list[float]) -> list[Row]:
    """Rows of a cell: 0 or 1 as the score, three log-probabilities, a companion; drawn anew for every cell."""
    start = random.Random(number).randrange(9000)
    return [
        Row(item.id, float(pool[start + k] < -0.7), f"the answer is {k}", tuple(pool[start + k : start + k + 3]),
            -pool[start + k], ())
        for k, item in enumerate(stand.question.items)
    ]  # fmt: skip


def write(root: Path, cells: int) -> dict[str, Any]:
    """The trainings, and the rows of all cells but the last batch, which a resumed study finds missing."""
    site = grid(root, cells)
    (place,) = site.design.places
    base = site.card(place)
    assert isinstance(base, ModelCard)
    for number, unit in enumerate(site.design.units(place)):
        if unit.trains:
            key = site.known(unit).key
            folder = folder_of(site.store, key)
            folder.mkdir(parents=True)
            card = dataclasses.replace(base, weights_hash=f"{number:064x}")
            (folder / FILE).write_text(to_json(Tuned(card, {}, 3, 10, 1.0, 5, 10)))
    stands = list(grid(root, cells).stands())
    draw = random.Random(0)
    pool = [-draw.expovariate(1.0) for _ in range(9973)]
    for start in range(0, len(stands) - BATCH, BATCH):
        due = [(site.store.cell(s.key, {"task": s.question.name}), rows(s, start + k, pool))
               for k, s in enumerate(stands[start : start + BATCH])]  # fmt: skip
        append_all(due)
    site.store.compact_used()
    return {
        "cells": len(stands),
        "mb": round(sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6),
    }


def plan(root: Path, cells: int) -> dict[str, Any]:
    """What ``study plan`` and ``study status`` do, and a run before its first cell: the grid, the key and standing of
    every cell, prices."""
    site = grid(root, cells)
    stands = list(site.stands())
    told = plan_of(site, stands)
    return {"cells": len(stands), "open": sum(stand.open for stand in stands), "done": told.counts["done"]}


def schedule(root: Path, cells: int) -> dict[str, Any]:
    """The base's cells into an empty store by one worker: what a cell costs beside its forward passes and the load, as
    a share of a cell of 5 seconds; and how often weights are read."""
    site = grid(root, cells)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        alone = dataclasses.replace(site.design.settings, store=Path(folder), tunings=())
        began = time.perf_counter()
        Site.open(alone, read_design(alone)).subject(site.design.places[0]).loaded.release()
        load = time.perf_counter() - began
        began = time.perf_counter()
        done = work(alone, 0, None)
        beside = time.perf_counter() - began - load - done.seconds
    each = beside / done.cells
    return {"cells": done.cells, "loads": done.loads, "beside_ms": round(1000 * each, 1),
            "share_of_5_seconds": round(each / 5, 4), "loads_per_cell": round(done.loads / done.cells, 4)}  # fmt: skip


def report(root: Path, cells: int) -> dict[str, Any]:
    """All rows read, the analysis, the record, the page and the tables."""
    site = grid(root, cells)
    stands = list(site.stands())
    table, short = table_of(site, stands)
    record = study_of(site, stands, table)
    output.write(site.design.settings, record, table, Progress())
    rows_read = sum(scored.n for scored in table.scored.values())
    return {"rows": rows_read, "short": len(short), "changes": len(record.changes)}


def columns(root: Path, cells: int) -> dict[str, Any]:
    """Scores and companions of every row, as a report needs them."""
    store = Store(root)
    total = read = 0.0
    for _, table in store.columns(store.counts()):
        read += len(table.items)
        total += table.scores.sum() + table.companions.sum()
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
        for _ in range(2):
            begin = time.perf_counter()
            merged.merge(Store(root))
            seconds.append(round(time.perf_counter() - begin, 1))
    return {"first_seconds": seconds[0], "again_seconds": seconds[1]}


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "write": write, "plan": plan, "schedule": schedule, "columns": columns, "one_by_one": one_by_one,
    "report": report, "merge": merge,
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
        "scheduler_share": found["schedule"]["share_of_5_seconds"],
        "loads": found["schedule"]["loads_per_cell"],
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
