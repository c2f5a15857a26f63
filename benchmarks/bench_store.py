"""How fast rows are kept and found again: the store, the store before a change, SQLite, and a Parquet file per cell.

Every contender keeps the same cells of 100 rows, in a fresh process, with the same promise: what was handed over is on
the disk when the call returns (flushed file and folder; SQLite: WAL with ``synchronous=FULL``). Then another fresh
process opens it and lists every cell with its number of rows, and another reads some cells. Two batches: 100 cells
together (``--cells``), and one cell at a time (``--alone``). Seconds are wall time inside the calls; making the rows is
not timed. Writes ``benchmarks/results/<date>-store.json``. The bars: 10,000 cells written within 60 s, opened and
listed within 2 s; what wrote fewer cells is held to its share.

    python benchmarks/bench_store.py [--before SRC_OF_AN_OLDER_CHECKOUT]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROWS, READ = 100, 200
BARS = {"write": 60.0, "list": 2.0}
OURS = ("ours, 100 cells together", "ours, cell by cell")
PEERS = ("sqlite, 100 cells together", "sqlite, cell by cell", "parquet, a file per cell")
COLUMNS = ("item", "score", "prediction", "logprobs", "companion", "flags")
Values = tuple[str, float, str, tuple[float, ...], float | None, tuple[str, ...]]


def conditions(number: int) -> dict[str, Any]:
    """As many fields as the address of a displaced point has."""
    same = {name: name * 8 for name in ("weights", "config", "tokenizer", "template", "task", "policy")}
    return {**same, "name": "knowledge", "dtype": "float32", "moved": {"kind": "gaussian", "seed": 0, "index": number}}


def values(number: int) -> list[Values]:
    draw = random.Random(number)
    return [
        (
            f"point {number}:knowledge-{item:04d}", float(draw.random() < 0.5), f"the answer is {item}",
            tuple(-draw.expovariate(1.0) for _ in range(4)), draw.random(), (),
        )
        for item in range(ROWS)
    ]  # fmt: skip


class Watch:
    """Adds up the seconds spent inside its blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.begin


def batches(cells: int, batch: int) -> Iterator[list[tuple[int, list[Values]]]]:
    for start in range(0, cells, batch):
        yield [(number, values(number)) for number in range(start, min(start + batch, cells))]


def write_ours(root: Path, cells: int, batch: int) -> dict[str, float]:
    """Seconds to write, and for what a command ends with."""
    from catchment import runs
    from catchment.records import Row

    store, write, end = runs.Store(root), Watch(), Watch()
    for numbered in batches(cells, batch):
        due = [(conditions(number), [Row(*fields) for fields in rows]) for number, rows in numbered]
        with write:
            opened = [(store.cell(runs.cell_key(asked), asked), rows) for asked, rows in due]
            for cell, _ in opened:
                cell.rows()
            if batch == 1:
                opened[0][0].append(opened[0][1])
            else:
                runs.append_all(opened)
    with end:
        if hasattr(store, "compact_used"):
            store.compact_used()
        else:
            for number in range(cells):
                store.cell(runs.cell_key(conditions(number)), conditions(number)).finish()
            store.compact()
    return {"write": write.seconds, "end": end.seconds}


def list_ours(root: Path) -> tuple[int, int]:
    from catchment.runs import Store

    store = Store(root)
    counts = store.counts() if hasattr(store, "counts") else {info.key: info.rows for info in store.cells()}
    return len(counts), sum(counts.values())


def read_ours(root: Path, numbers: list[int]) -> int:
    from catchment.runs import Store, cell_key

    store = Store(root)
    return sum(len(store.cell(cell_key(conditions(n)), conditions(n)).rows()) for n in numbers)


def _base(root: Path) -> sqlite3.Connection:
    root.mkdir(parents=True, exist_ok=True)
    base = sqlite3.connect(root / "rows.db", isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    return base


def write_sqlite(root: Path, cells: int, batch: int) -> dict[str, float]:
    base, write, end = _base(root), Watch(), Watch()
    base.execute("CREATE TABLE cells (cell TEXT PRIMARY KEY, conditions TEXT)")
    base.execute(f"CREATE TABLE rows (cell TEXT, {', '.join(COLUMNS)}, PRIMARY KEY (cell, item)) WITHOUT ROWID")
    for numbered in batches(cells, batch):
        with write:
            base.execute("BEGIN")
            for n, rows in numbered:
                base.execute("INSERT INTO cells VALUES (?, ?)", (f"{n:064x}", json.dumps(conditions(n))))
                base.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [(f"{n:064x}", i, s, p, json.dumps(log), c, json.dumps(f)) for i, s, p, log, c, f in rows],
                )
            base.execute("COMMIT")
    with end:
        base.close()  # checkpoints
    return {"write": write.seconds, "end": end.seconds}


def list_sqlite(root: Path) -> tuple[int, int]:
    found = _base(root).execute("SELECT cell, count(*) FROM rows GROUP BY cell").fetchall()
    return len(found), sum(count for _, count in found)


def read_sqlite(root: Path, numbers: list[int]) -> int:
    base, total = _base(root), 0
    for n in numbers:
        total += len(
            [
                (i, s, p, json.loads(log), c, json.loads(f))
                for _, i, s, p, log, c, f in base.execute("SELECT * FROM rows WHERE cell = ?", (f"{n:064x}",))
            ]
        )
    return total


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_parquet(root: Path, cells: int, batch: int) -> dict[str, float]:
    import pyarrow
    from pyarrow import parquet

    root.mkdir(parents=True)
    write = Watch()
    for numbered in batches(cells, 1):
        ((n, rows),) = numbered
        with write:
            table = pyarrow.table(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
            table = table.replace_schema_metadata({"conditions": json.dumps(conditions(n))})
            beside, path = root / f".{n:064x}", root / f"{n:064x}.parquet"
            parquet.write_table(table, beside)
            _flush(beside)
            os.replace(beside, path)
            _flush(root)
    return {"write": write.seconds, "end": 0.0}


def list_parquet(root: Path) -> tuple[int, int]:
    from pyarrow import parquet

    found = [parquet.read_metadata(path).num_rows for path in root.glob("*.parquet")]
    return len(found), sum(found)


def read_parquet(root: Path, numbers: list[int]) -> int:
    from pyarrow import parquet

    return sum(len(parquet.read_table(root / f"{n:064x}.parquet").to_pylist()) for n in numbers)


WRITE: dict[str, Callable[[Path, int, int], dict[str, float]]] = {
    "ours": write_ours, "sqlite": write_sqlite, "parquet": write_parquet,
}  # fmt: skip
LIST = {"ours": list_ours, "sqlite": list_sqlite, "parquet": list_parquet}
READS = {"ours": read_ours, "sqlite": read_sqlite, "parquet": read_parquet}


def grow(root: Path) -> list[float]:
    """Seconds for the first, second and third thousand appends to one cell."""
    from catchment.records import Row
    from catchment.runs import Store, cell_key

    cell = Store(root).cell(cell_key(conditions(0)), conditions(0))
    seconds = []
    for thousand in range(3):
        begin = time.perf_counter()
        for number in range(1000):
            cell.append([Row(f"{thousand}:{number}", 1.0, "")])
        seconds.append(time.perf_counter() - begin)
    return seconds


def step(what: str, kind: str, root: Path, cells: int, batch: int) -> dict[str, Any]:
    """One step in this process; its seconds and what it took of the processor and of memory."""
    memory = _peak()
    begin = time.perf_counter()
    if what == "write":
        found: dict[str, Any] = WRITE[kind](root, cells, batch)
    elif what == "list":
        counts = LIST[kind](root)
        found = {"list": time.perf_counter() - begin}
        assert counts == (cells, ROWS * cells), counts
    elif what == "read":
        numbers = random.Random(1).sample(range(cells), min(READ, cells))
        assert READS[kind](root, numbers) == ROWS * len(numbers)
        found = {"read": time.perf_counter() - begin}
    else:
        found = {"thousands": grow(root)}
    return {**found, "cpu": time.process_time(), "peak_mb": _peak(), "peak_before_mb": memory}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(what: str, contender: str, root: Path, cells: int, source: str) -> dict[str, Any]:
    kind, batch = contender.split(",")[0].split()[0], 100 if "100" in contender else 1
    done = subprocess.run(
        [sys.executable, __file__, "--step", what, kind, str(root), str(cells), str(batch)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def contend(contender: str, folder: Path, cells: int, source: str) -> dict[str, Any]:
    root = folder / "store"
    wrote = apart("write", contender, root, cells, source)
    listed, read = apart("list", contender, root, cells, source), apart("read", contender, root, cells, source)
    files = [path for path in root.rglob("*") if path.is_file()]
    found = {
        "write_seconds": round(wrote["write"], 2), "end_seconds": round(wrote["end"], 2),
        "write_cpu_seconds": round(wrote["cpu"], 2), "write_peak_mb": round(wrote["peak_mb"]),
        "open_and_list_seconds": round(listed["list"], 3), "list_peak_mb": round(listed["peak_mb"]),
        f"read_{READ}_cells_seconds": round(read["read"], 3),
        "files": len(files), "mb": round(sum(path.stat().st_size for path in files) / 1e6),
    }  # fmt: skip
    shutil.rmtree(root)
    if kind_of(contender) == "ours" and "together" not in contender:
        found["thousands_of_appends_seconds"] = [
            round(s, 2) for s in apart("grow", contender, root, cells, source)["thousands"]
        ]
        shutil.rmtree(root)
    print(contender, found, flush=True)
    return found


def kind_of(contender: str) -> str:
    return contender.split(",")[0].split()[0]


def flush_milliseconds(folder: Path) -> float:
    """Median time to flush a new file of 20 kB and its folder."""
    times = []
    for number in range(40):
        path = folder / f"flush {number}"
        begin = time.perf_counter()
        with open(path, "wb") as file:
            file.write(bytes(20_000))
            file.flush()
            os.fsync(file.fileno())
        _flush(folder)
        times.append(time.perf_counter() - begin)
        path.unlink()
    return round(1000 * sorted(times)[20], 2)


def file_system(folder: Path) -> str:
    found = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def calibration() -> str:
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-m", "tests.calibrate"], capture_output=True, text=True, cwd=root)
    return found.stdout.strip()


def contenders(before: str | None) -> Iterator[tuple[str, str]]:
    """Names, and the source tree that each runs from."""
    here = str(Path(__file__).parents[1] / "src")
    yield from ((name, here) for name in (*OURS, *PEERS))
    if before:
        yield "ours before, cell by cell", before


def write_record(found: dict[str, Any], conditions: dict[str, Any]) -> None:
    met = {
        name: {
            "write": f["write_seconds"] + f["end_seconds"] < BARS["write"] * f["cells"] / 10_000,
            "list": f["open_and_list_seconds"] < BARS["list"] * f["cells"] / 10_000,
        }
        for name, f in found.items()
    }
    today = datetime.date.today().isoformat()
    record = {"date": today, "found": found, "limits": BARS, "met": met, "conditions": conditions}
    path = Path(__file__).parent / "results" / f"{today}-store.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--alone", type=int, default=2_000, help="cells for those that flush each cell by itself")
    parser.add_argument("--before", help="src folder of an older checkout")
    parser.add_argument("--folder", help="on the disk to be measured; a temporary folder by default")
    options = parser.parse_args()
    conditions = {
        "python": platform.python_version(), "cpus": os.cpu_count(), "rows_per_cell": ROWS,
        "calibration": calibration(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        conditions |= {"file_system": file_system(folder), "flush_ms": [flush_milliseconds(folder)]}
        conditions["load"] = [round(os.getloadavg()[0], 1)]
        found = {}
        for contender, source in contenders(options.before):
            cells = options.cells if "together" in contender else options.alone
            found[contender] = {"cells": cells, **contend(contender, folder, cells, source)}
            conditions["flush_ms"].append(flush_milliseconds(folder))
            conditions["load"].append(round(os.getloadavg()[0], 1))
            write_record(found, conditions)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))))
    else:
        main()
