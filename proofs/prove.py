"""Run the study of a claim within a budget, and write what it shows.

    python proofs/prove.py independent --budget 60m

The study is ``proofs/<claim>/study.yaml`` (``sift/large``: ``proofs/sift/large.yaml``). What was measured lies in
``proofs/.cache``: stop it when you like, the same command goes on. ``claim.py`` beside it may have

- ``make_ready()``: makes what the study reads; returns why it cannot be run here, or "",
- ``cells(made)``: the cells of the result from those of the study,
- ``judge(cells)``: the outcome, and the decision by ``prereg.md``,
- ``tables(result)``: the result for people.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import results
from results import Cell, Result

from catchment.commands.study.calls import read_result, stand_of
from catchment.commands.study.design import read_design
from catchment.commands.study.record import CellResult, Study
from catchment.commands.study.report import table_of
from catchment.commands.study.run import run
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.standing import Site, read_remarks
from catchment.measuring import Progress
from catchment.options import parse_seconds, read_config

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "proofs/.cache"


class Told(Progress):
    """What is being done, a line each."""

    def __init__(self) -> None:
        self.last = ""

    def status(self, text: str) -> None:
        head = text.split(" · step")[0]
        if head != self.last:
            self.last = head
            print(f"  {text}", flush=True)


def claim_of(folder: Path) -> ModuleType | None:
    """``claim.py`` of a claim, where it has one."""
    path = folder / "claim.py"
    if not path.is_file():
        return None
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("claim", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["claim"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(site: Site, evaluations: list[CellResult]) -> Iterator[Cell]:
    """Every cell of a study as one of a result: evaluations with their scores, calls with what they returned."""
    for found in evaluations:
        c = found.cell
        seed = "" if c.seed is None else f", seed {c.seed}"
        values = {} if found.score is None else {"score": found.score.estimate, "low": found.score.low,
                                                 "high": found.score.high}  # fmt: skip
        name = f"{c.model} + {c.tuning}{seed}: {c.task}, {c.format}"
        yield Cell(name, found.n, found.status, found.reason or ("" if values else "not reached"), values)
    reasons = {key: told.reason for key, told in read_remarks(site.store).items()}
    for call in site.design.calls:
        status, reason = stand_of(site.store, call, reasons)
        content = read_result(site.store, call) or {"n": 0}
        values = {name: value for name, value in content.items() if name != "n"}
        yield Cell(call.name, content["n"], status, "" if values else reason or "not reached", values)


def judge(cells: list[Cell], record: Study) -> tuple[dict[str, Any], str]:
    """What a claim without a rule of its own shows: how many verdicts of each kind."""
    done = sum(cell.status == "done" for cell in cells)
    verdicts = Counter(change.verdict for change in record.changes if change.verdict)
    return {"cells done": f"{done} of {len(cells)}", **verdicts}, record.sentence or "Nothing was measured."


def prove(name: str, seconds: float, workers: int) -> Result | None:
    """Run a study and write its result; ``None`` where it cannot be run here."""
    folder, file = ROOT / "proofs" / name.partition("/")[0], f"{name.partition('/')[2] or 'study'}.yaml"
    own = claim_of(folder)
    reason = own.make_ready() if hasattr(own, "make_ready") else ""
    if reason:
        print(f"{name} cannot be run here: {reason}")
        return None
    given = read_config(folder / file, StudySettings)
    settings = StudySettings(**{
        **given, "study": folder / file, "hours": seconds / 3600, "workers": workers,
        "store": CACHE / "store", "out": CACHE / "studies" / name.replace("/", "-"),
    })  # fmt: skip
    record = run(settings, Told())
    site = Site.open(settings, read_design(settings))
    cells = list(made(site, list(table_of(site, list(site.stands()))[0].cells)))
    cells = own.cells(cells) if hasattr(own, "cells") else cells
    outcome, decision = own.judge(cells) if hasattr(own, "judge") else judge(cells, record)
    command = f"make proofs NAME={name} BUDGET=60m"
    date = datetime.now(UTC).date().isoformat()
    return Result(date, name, command, results.conditions(), tuple(cells), outcome, decision)


def main() -> None:
    """Measure within the budget, then write what has been reached; a result of nothing is not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="folder of a claim, or folder/study")
    parser.add_argument("--budget", default="60m", help="time; what is at work then is taken up by the next run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the result; that of the claim by default")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    result = prove(args.name, parse_seconds(args.budget) or 3600.0, args.workers)
    if result is None:
        return
    left = sum(cell.status != "done" for cell in result.cells)
    if left:
        print(f"{left} of {len(result.cells)} cells are open; the same command goes on from here")
    if left < len(result.cells):
        own = sys.modules.get("claim")
        text = own.tables(result) if hasattr(own, "tables") else results.markdown(result)
        results.write(result, args.out or ROOT / "proofs" / args.name.partition("/")[0] / "results", text)
        print(text)


if __name__ == "__main__":
    main()
