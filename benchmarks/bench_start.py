"""How long a start takes: ``import catchment``, ``catchment --help``, and a second identical ``compare``.

Writes ``benchmarks/results/<date>-start.json``. The bars: 0.2 s, 0.5 s, and 5 s plus the
time of the imports alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARS = {"import catchment": 0.2, "catchment --help": 0.5, "second compare": 5.0}


def seconds(command: list[str], repeats: int, env: dict[str, str]) -> list[float]:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=env)
        times.append(time.perf_counter() - begin)
    return times


def second_compare(items: int, env: dict[str, str]) -> tuple[list[float], list[float]]:
    """A comparison of the demo's base and plain increment; then the same command again, and its imports alone."""
    from catchment import demo

    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "catchment", "compare", demo.BASE, f"{demo.BASE}+{demo.path('plain')}", "--tasks",
            "knowledge", "language", "--limit", str(items), "--formats", "1", "--out", f"{folder}/out", "--store",
            f"{folder}/store",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, env=env)
        again = seconds(command, 3, env)
        imports = seconds([sys.executable, "-c", "import catchment.commands.compare.run, transformers, peft"], 3, env)
    return again, imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    env = dict(os.environ)
    found = {
        "import catchment": seconds([sys.executable, "-c", "import catchment"], options.repeats, env),
        "python alone": seconds([sys.executable, "-c", "pass"], options.repeats, env),
        "catchment --help": seconds([sys.executable, "-m", "catchment", "--help"], options.repeats, env),
    }
    again, imports = second_compare(options.items, env)
    found |= {"second compare, with imports": again, "imports of a compare": imports}
    median = {name: round(statistics.median(times), 3) for name, times in found.items()}
    limits = {**BARS, "second compare": BARS["second compare"] + median["imports of a compare"]}
    median["second compare"] = median.pop("second compare, with imports")
    today = datetime.date.today().isoformat()
    record = {
        "date": today,
        "median_seconds": median,
        "limits": limits,
        "met": {name: median[name] < limit for name, limit in limits.items()},
        "conditions": {
            "python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
            "repeats": options.repeats, "items": options.items,
        },
    }  # fmt: skip
    path = Path(__file__).parent / "results" / f"{today}-start.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
