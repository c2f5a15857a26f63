"""What every proof leaves: ``<claim>/results/<date>.json`` of one schema, and the same for people."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catchment.errors import InputError
from catchment.records import from_json
from catchment.runs import make_folder, write_atomic

PACKAGES = ("catchment", "torch", "transformers", "peft", "accelerate", "lm-eval", "datasets", "numpy", "scipy")
STATUSES = ("done", "missing", "failed", "refused")


@dataclass(frozen=True)
class Cell:
    """One thing that was measured, or was to be.

    Attributes:
        n: Items, rows or repetitions that ``values`` are of; by part where a cell has several.
        reason: Why it was not measured.
        values: What came out.
    """

    name: str
    n: int | dict[str, int]
    status: str = "done"
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One run of a proof. ``outcome``: the primary outcome and what belongs to it; ``decision``: by ``prereg.md``."""

    date: str
    claim: str
    command: str
    conditions: dict[str, Any]
    cells: tuple[Cell, ...]
    outcome: dict[str, Any]
    decision: str


def check(result: Result) -> None:
    """Refuse what a reader could not rely on.

    Raises:
        InputError: An unknown status, a name twice, a cell without n that is called done, or without a reason else.
    """
    names = [cell.name for cell in result.cells]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{result.claim}, {result.date}: expected cells, each name once.")
    for cell in result.cells:
        smallest = min(cell.n.values(), default=0) if isinstance(cell.n, Mapping) else cell.n
        there = smallest > 0 and cell.values if cell.status == "done" else cell.reason
        if cell.status not in STATUSES or not there:
            raise InputError(
                f"{result.claim}, {result.date}: cell {cell.name!r} is {cell.status!r} with n {cell.n}, reason "
                f"{cell.reason!r} and {len(cell.values)} values; expected n and values of what is done, and the reason "
                "of what is not."
            )
    if not (result.conditions and result.outcome and result.decision and result.command):
        raise InputError(f"{result.claim}, {result.date}: expected a command, conditions, an outcome and a decision.")


def read(path: Path) -> Result:
    """A committed result."""
    return from_json(Result, path.read_text(encoding="utf-8"))


def write(result: Result, folder: Path, text: str) -> None:
    """``<date>.json`` and ``<date>.md``."""
    check(result)
    make_folder(folder)
    content = json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / f"{result.date}.json", content + "\n")
    write_atomic(folder / f"{result.date}.md", text.rstrip() + "\n")


def conditions() -> dict[str, Any]:
    """Versions and machine."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    here = {name for name in PACKAGES if importlib.util.find_spec(name.replace("-", "_"))}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if name in here}
    return {"versions": {**versions, "python": platform.python_version()}, "cpu": cpu,
            "threads": torch.get_num_threads()}  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows for people."""
    first, *rest = ("| " + " | ".join(map(str, row)) + " |" for row in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *rest]) + "\n"


def ends(values: Sequence[float], by: float = 100.0, form: str = "+.1f") -> str:
    """``estimate [low, high]``, in points."""
    return "{} [{}, {}]".format(*(format(by * value, form) for value in values))


def markdown(result: Result) -> str:
    """A result for people: cells with n, what came out, and what follows; where a claim has no tables of its own."""
    rows = [[cell.name, _n(cell.n), cell.status, cell.reason or _said(cell.values)] for cell in result.cells]
    outcome = "\n".join(f"- {name}: {_flat(value)}" for name, value in result.outcome.items())
    head = f"# {result.claim}, {result.date}\n\nReproduce: `{result.command}`.\n"
    return f"{head}\n{table(['cell', 'n', 'state', 'values'], rows)}\n{outcome}\n\n{result.decision}\n"


def _flat(value: object) -> object:
    return "; ".join(f"{k} {_flat(v)}" for k, v in value.items()) if isinstance(value, Mapping) else value


def _n(n: int | Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in n.items()) if isinstance(n, Mapping) else f"{n:,}"


def _said(values: Mapping[str, Any]) -> str:
    """Numbers and words of a cell; lists are in the JSON file."""
    plain = {name: value for name, value in values.items() if isinstance(value, (str, int, float)) and value != ""}
    short = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in plain.items()}
    return ", ".join(f"{name} {value}" for name, value in short.items() if len(str(value)) < 100)
