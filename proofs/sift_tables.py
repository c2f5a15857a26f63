"""The tables of ``sift.py``: everything as JSON, and for people."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catchment.statistics import decide, paired_interval, unbounded_paired_interval

Found = dict[str, Any]
Done = Mapping[str, Found]
PACKAGES = ("catchment", "torch", "transformers", "peft", "accelerate", "numpy")


def name() -> str:
    return f"sift-{datetime.now(UTC).date().isoformat()}"


def conditions() -> Found:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {n: importlib.metadata.version(n) for n in PACKAGES} | {"python": platform.python_version()}
    return {"versions": versions, "cpu": cpu, "threads": torch.get_num_threads(), "dtype": "float32"}


def line(result: Found) -> str:
    """What a cell found, in one line."""
    parts = [f"{k} {statistics.fmean(v['scores']):.3f}" for k, v in result.get("tasks", {}).items()]
    if result.get("losses"):
        parts.append(f"held-out loss {statistics.fmean(result['losses']):.3f}")
    shown = ("loss", "accuracy", "lr", "seconds", "trace", "width", "peak", "error")
    for key in shown:
        if key in result:
            value = result[key]
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)


def tuned(done: Done, model: str, data: str) -> dict[str, list[Found]]:
    """Results of the reported runs by method, seed after seed."""
    found: dict[str, list[Found]] = {}
    for cell in done.values():
        s = cell["settings"]
        if (s.get("model"), s.get("data")) == (model, data) and "losses" in cell["result"] and "method" in s:
            found.setdefault(s["method"], []).append(cell["result"])
    return found


def base_of(done: Done, model: str, data: str) -> Found | None:
    prefix = {"SmolLM2-135M-Instruct": "SmolLM2-135M"}.get(model, model)
    cell = done.get(f"{prefix}/{data}/base")
    return cell["result"] if cell and "losses" in cell["result"] else None


def span(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Mean, and smallest to largest where there are several."""
    mean = form.format(statistics.fmean(values))
    return mean if len(values) < 2 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def gain(base: Found, runs: Sequence[Found]) -> Found:
    """Held-out loss, and accuracy where answers are short; intervals over items, of the mean over seeds."""
    before, after = np.array(base["losses"]), np.mean([r["losses"] for r in runs], axis=0)
    loss = unbounded_paired_interval(before, after)
    found = {
        "n": len(before), "seeds": len(runs), "base_loss": float(before.mean()),
        "losses": [statistics.fmean(r["losses"]) for r in runs],
        "loss_change": [loss.estimate, loss.low, loss.high],
    }  # fmt: skip
    if "tuned_on" not in base["tasks"]:
        return found
    was = np.array(base["tasks"]["tuned_on"]["scores"])
    now = np.mean([r["tasks"]["tuned_on"]["scores"] for r in runs], axis=0)
    score = paired_interval(was, now)
    return {
        **found, "n": len(was), "base_score": float(was.mean()),
        "scores": [statistics.fmean(r["tasks"]["tuned_on"]["scores"]) for r in runs],
        "score_change": [score.estimate, score.low, score.high],
    }  # fmt: skip


def forgetting(base: Found, runs: Sequence[Found]) -> dict[str, Found]:
    """Per task the change of every seed with its verdict, simultaneous over the tasks."""
    tasks = [task for task in base["tasks"] if task != "tuned_on"]
    found = {}
    for task in tasks:
        was = base["tasks"][task]
        given: Any = {"chance": was["chance"], "family": len(tasks), "generated": was["generated"]}
        decided = [decide(was["scores"], r["tasks"][task]["scores"], **given) for r in runs]
        found[task] = {
            "n": len(was["scores"]), "base": statistics.fmean(was["scores"]),
            "changes": [d.interval.estimate for d in decided],
            "intervals": [[d.interval.low, d.interval.high] for d in decided],
            "verdicts": [d.verdict for d in decided],
        }  # fmt: skip
    return found


def encoder(done: Done) -> dict[tuple[str, int], list[Found]]:
    """Runs on MRPC by method and budget, seed after seed."""
    found: dict[tuple[str, int], list[Found]] = {}
    for cell in done.values():
        s = cell["settings"]
        if s.get("model") == "MiniLM" and "scores" in cell["result"]:
            found.setdefault((s["method"], s["budget"]), []).append({**cell["result"], "seed": s["seed"]})
    return found


def difference(one: Sequence[Found], other: Sequence[Found]) -> Found | None:
    """Accuracy of ``one`` minus ``other`` over the seeds that both have; the interval is over items."""
    seeds = sorted({r["seed"] for r in one} & {r["seed"] for r in other})
    if not seeds:
        return None
    a, b = (np.mean([r["scores"] for r in runs if r["seed"] in seeds], axis=0) for runs in (one, other))
    found = paired_interval(b, a)
    return {"seeds": len(seeds), "n": len(a), "difference": [found.estimate, found.low, found.high]}


def result(cells: Sequence[Any], done: Done) -> Found:
    """All that was kept, with item scores as text."""
    rows = [done[cell.name] for cell in cells if cell.name in done]
    return {
        "date": name()[5:],
        "cells": [{**row, "result": compact(row["result"])} for row in rows],
        "listed": [{"cell": c.name, "tokens": c.tokens, "done": c.name in done} for c in cells],
    }


def compact(value: Any) -> Any:
    """Lists of 0 and 1 as a string of digits, losses with 4 digits."""
    if isinstance(value, dict):
        return {k: compact(v) for k, v in value.items()}
    if isinstance(value, list) and len(value) > 30:
        whole = all(x in (0, 1) for x in value)
        return "".join(str(int(x)) for x in value) if whole else [round(x, 4) for x in value]
    return value


def expanded(value: Any) -> Any:
    """The inverse of :func:`compact`, but for the digits of losses."""
    if isinstance(value, dict):
        return {k: expanded(v) for k, v in value.items()}
    if isinstance(value, str) and len(value) > 30 and set(value) <= {"0", "1"}:
        return [int(digit) for digit in value]
    return value
