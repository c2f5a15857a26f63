"""Are the cells of a real study those of the lm-evaluation-harness? See ``prereg.md``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "proofs"), str(ROOT / "proofs/independent")]
import harness
from results import Cell, Result, table

from catchment.commands.study.calls import Call
from catchment.commands.study.design import Unit, read_design
from catchment.commands.study.questions import Question
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.standing import Site
from catchment.commands.study.tunings import artefact
from catchment.errors import ModelError
from catchment.options import read_config
from catchment.runs import Store

STUDY = Path(__file__).parent / "study.yaml"
ROWS = ROOT / "examples/studies/rows"
NEAR, BATCH = 1e-3, 16


def make_ready() -> str:
    """Make the rows to train on and to ask."""
    if not (ROOT.parent / "shared/models/stories15M").is_dir():
        return "there is no stories15M here."
    if not (ROWS / "sst2.jsonl").is_file():
        subprocess.run([sys.executable, str(ROOT / "recipes/stories_study.py")], check=True)
    return ""


def theirs(call: Call, tuning: str, task: str) -> dict[str, Any]:
    """One cell in lm-eval, and item by item beside ours."""
    unit, question, site = _place(call.store, tuning, task)
    folder = _folder(site, unit)
    card = site.known(unit).card
    assert card is not None
    assert question.task is not None
    ours = site.store.cell(_key(site, unit, question), {}).rows()
    missing = [item.id for item in question.items if item.id not in ours]
    if missing:
        raise ModelError(f"{len(missing)} items of {tuning} on {task} are not measured yet; the grid comes first.")
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=BATCH)
    rows = harness.evaluate(lm, question.task, list(question.items), call.folder / "items.jsonl")
    differing = [
        {"item": item.id, "ours": ours[item.id].score, "lead": _lead(harness.values(question.task.scorer, row, item))}
        for item in question.items
        if harness.right(question.task, row := rows[item.id], item) != ours[item.id].score
    ]
    gap = max(
        abs(a - b)
        for item in question.items
        for a, b in zip(ours[item.id].logprobs, rows[item.id]["logprobs"], strict=True)
    )
    right = sum(harness.right(question.task, rows[item.id], item) for item in question.items)
    n = len(question.items)
    ours_mean = sum(ours[item.id].score for item in question.items) / n
    return {"n": n, "ours": ours_mean, "lm_eval": right / n, "differing": differing, "largest_logprob_gap": gap}


def _place(store: Store, tuning: str, task: str) -> tuple[Unit, Question, Site]:
    """The model under test and the question of a cell."""
    settings = StudySettings(**{**read_config(STUDY, StudySettings), "study": STUDY, "store": store.root})
    site = Site.open(settings, read_design(settings))
    unit = next(u for u in site.design.units(site.design.places[0]) if u.tuning == tuning)
    return unit, next(q for q in site.design.questions if q.name == task), site


def _key(site: Site, unit: Unit, question: Question) -> str:
    stands = site.stands_of(site.known(unit), {}, {})
    return next(s.key for s in stands if s.question.name == question.name and s.question.format == question.format)


def _folder(site: Site, unit: Unit) -> Path:
    """An ordinary folder with the weights."""
    folder = artefact(site.store, site.known(unit).key) if unit.trains else Path(unit.place.spec)
    if folder is None:
        raise ModelError(f"{unit.name} is not trained yet, or was dropped; the grid comes first.")
    return folder


def _lead(values: Sequence[float]) -> float:
    first, second = sorted(values, reverse=True)[:2]
    return first - second


def cells(made: Sequence[Cell]) -> list[Cell]:
    """The calls, and the grid as one line per tuning and task."""
    return [cell for cell in made if cell.name.startswith("theirs") or ", " in cell.name]


def judge(cells: Sequence[Cell]) -> tuple[dict[str, Any], str]:
    """No item but ties may be scored differently."""
    checked = [cell for cell in cells if cell.name.startswith("theirs") and cell.status == "done"]
    differing = [item for cell in checked for item in cell.values["differing"]]
    apart = [item for item in differing if item["lead"] >= NEAR]
    grid = [cell for cell in cells if not cell.name.startswith("theirs")]
    outcome = {
        "cells": f"{sum(cell.status == 'done' for cell in grid)} of {len(grid)}", "checked": len(checked),
        "items": sum(int(cell.n) for cell in checked), "ties": len(differing) - len(apart), "apart": len(apart),
        "largest_logprob_gap": max((cell.values["largest_logprob_gap"] for cell in checked), default=None),
    }  # fmt: skip
    if len(checked) < 8:
        return outcome, f"Open: {len(checked)} of 8 cells are checked."
    return outcome, "The claim holds." if not apart else f"The claim does not hold: {len(apart)} items differ."


def tables(result: Result) -> str:
    """The eight cells, and the grid."""
    checked = [cell for cell in result.cells if cell.name.startswith("theirs")]
    rows = [
        [c.name, c.n, f"{c.values['ours']:.3f}", f"{c.values['lm_eval']:.3f}", len(c.values["differing"]),
         f"{c.values['largest_logprob_gap']:.1e}"] if c.status == "done" else [c.name, c.status, c.reason, "", "", ""]
        for c in checked
    ]  # fmt: skip
    grid = [[c.name, c.n, f"{c.values['score']:.3f}", f"{c.values['low']:.3f} to {c.values['high']:.3f}"]
            for c in result.cells if c not in checked and c.status == "done"]  # fmt: skip
    head = ["cell", "n", "ours", "lm-eval", "items scored differently", "largest gap of log-likelihoods (nats)"]
    return (
        f"# A real study, {result.date}\n\n{result.decision}\nReproduce: `{result.command}`.\n\n{table(head, rows)}\n"
        f"{table(['cell', 'n', 'score', '95% interval'], grid)}"
    )
