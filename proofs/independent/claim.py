"""Do the verdicts of ``catchment compare`` agree with an independent evaluation?

Three real pairs: the demo's two fine-tunes of SmolLM2-135M-Instruct, and stories15M against a fine-tune of all its
weights (made by ``recipes/stories_pair.py``). For each, ``catchment.compare`` on built-in tasks; the same items through
the lm-evaluation-harness with its own prompts and HF backend (``harness.py``); another statistic (``verdicts.py``).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "proofs"))
import harness
import judging
from results import Cell, Result, table

from catchment import compare, demo, models
from catchment.capabilities import Task, packs, prepare, sample
from catchment.commands.study.calls import Call
from catchment.errors import ModelError
from catchment.records import Row, TaskResult, from_json, to_json
from catchment.runs import Store, read_json, write_atomic

CACHE = ROOT / "proofs/.cache"
STORIES = ROOT.parent / "shared/models/stories15M"
TUNED = CACHE / "stories-tuned"
PAIRS = {
    "stories": ("stories15M", "stories-tuned"), "plain": ("smollm2", "plain"), "protected": ("smollm2", "protected"),
}  # fmt: skip
GENERAL = ("arithmetic", "recall", "format", "knowledge", "language")
ITEMS = {"stories": 400, "plain": 100, "protected": 100}
BATCH, SEED = 16, 0


def tasks_of(pair: str) -> tuple[str, ...]:
    return packs.STORIES if pair == "stories" else GENERAL


def make_ready() -> str:
    """Make the tuned stories15M where its base is; its cells fail, and say so, where it is not."""
    if STORIES.is_dir() and not (TUNED / "recipe.json").is_file():
        recipe = [sys.executable, str(ROOT / "recipes/stories_pair.py"), "--base", str(STORIES), "--out", str(TUNED)]
        subprocess.run(recipe, check=True)
    return ""


def spec_of(model: str) -> str:
    """How a model is loaded."""
    if model.startswith("stories"):
        folder = STORIES if model == "stories15M" else TUNED
        if not folder.is_dir():
            raise ModelError(f"{model}: there is no folder {folder.name} here.")
        return str(folder)
    return demo.BASE if model == "smollm2" else f"{demo.BASE}+{demo.path(model)}"


def ours(call: Call, pair: str, items: int) -> dict[str, Any]:
    """``catchment.compare`` of one pair: the result of each task, and the rows of both models."""
    specs = [spec_of(model) for model in PAIRS[pair]]
    comparison = compare(
        *specs, tasks=tasks_of(pair), limit=items, seed=SEED, formats=1, text="none", out=call.folder / "compare",
        store=call.store.root, progress=call,
    )  # fmt: skip
    cards = (comparison.base, comparison.tuned)
    return {
        "n": items,
        "margin": comparison.margin,
        "weights": [card.weights_hash for card in cards],
        "dtype": comparison.base.dtype,
        "tasks": {task.task: to_json(task) for task in comparison.tasks},
        "rows": {
            name: [_rows(call.store, card.weights_hash, packs.load(name)) for card in cards] for name in tasks_of(pair)
        },
    }


def _rows(store: Store, weights: str, task: Task) -> dict[str, dict[str, Any]]:
    """All rows of a model and task under the default format, by item."""
    wanted, rows = (weights, task.hash(), task.formats[0].name), {}
    for key in store.counts():
        c = store.conditions(key)
        if (c.get("weights"), c.get("task"), c.get("format")) == wanted and "moved" not in c:
            rows.update(store.cell(key, c).rows())
    return {item: dataclasses.asdict(row) for item, row in rows.items()}


def theirs(call: Call, model: str, task: str, items: int) -> dict[str, Any]:
    """One model on one task in lm-eval, a chunk of items at a time, each kept."""
    asked, path = packs.load(task), call.folder / "rows.json"
    kept = read_json(path) if path.is_file() else {"rows": {}, "seconds": 0.0, "tokens": 0, "same": 0}
    missing = [item for item in sample(asked.items, items, SEED) if item.id not in kept["rows"]]
    lm = _lm(model) if missing else None
    for at in range(0, len(missing), harness.CHUNK):
        call.status(f"{len(kept['rows'])} of {items} items")
        chunk = missing[at : at + harness.CHUNK]
        started = time.monotonic()
        rows = harness.evaluate(lm, asked, chunk, call.folder / f"{chunk[0].id}.jsonl")
        kept["seconds"] += time.monotonic() - started
        encoded = {e.item.id: e for e in prepare(lm.tokenizer, asked, items=chunk).encoded}
        kept["same"] += sum(harness.same_tokens(lm, asked, rows[item.id], encoded[item.id]) for item in chunk)
        kept["tokens"] += sum(len(e.prompt) * max(len(e.answers), 1) for e in encoded.values())
        kept["rows"].update(rows)
        write_atomic(path, json.dumps(kept, ensure_ascii=False))
    return {"n": len(kept["rows"]), **kept}


@lru_cache(maxsize=1)
def _lm(model: str) -> Any:
    """lm-eval's own model over an ordinary folder; tasks of one model share it."""
    from lm_eval.models.huggingface import HFLM

    spec = spec_of(model)
    folder = Path(spec) if (Path(spec) / "config.json").is_file() else _saved(spec)
    return HFLM(pretrained=str(folder), device="cpu", dtype="auto", batch_size=BATCH)


def _saved(spec: str) -> Path:
    """A base with its increment as an ordinary folder."""
    loaded = models.load(spec)
    weights = loaded.card.weights_hash
    folder = CACHE / "models" / weights[:12]
    if not (folder / "complete").is_file():
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        if models.load(str(folder)).card.weights_hash != weights:
            raise ModelError(f"{spec}: saving changed the weights.")
        (folder / "complete").touch()
    loaded.release()
    return folder


def cells(made: Sequence[Cell]) -> list[Cell]:
    """What has been measured, judged twice, by pair and task; a task that lacks one of its sides is open."""
    calls = {cell.name: cell for cell in made}
    return [_judged(calls, pair, task) for pair in PAIRS for task in tasks_of(pair)]


def _judged(calls: dict[str, Cell], pair: str, name: str) -> Cell:
    items, task = ITEMS[pair], packs.load(name)
    sides = [calls[f"theirs(model={model}, task={name}, items={items})"] for model in PAIRS[pair]]
    own = calls[f"ours(pair={pair}, items={items})"]
    short = [side for side in (own, *sides) if side.status != "done"]
    if short:
        return Cell(f"{pair}: {name}", 0, short[0].status, f"{short[0].name}: {short[0].reason}")
    asked = sample(task.items, items, SEED)
    rows = [{item: Row(**row) for item, row in part.items()} for part in own.values["rows"][name]]
    result = from_json(TaskResult, own.values["tasks"][name])
    both = [*rows, *(side.values["rows"] for side in sides)]
    values = judging.task_row(task, asked, both, result, own.values["margin"])
    same = [sum(side.values["same"] for side in sides), sum(len(side.values["rows"]) for side in sides)]
    seconds = sum(side.values["seconds"] for side in sides)
    return Cell(f"{pair}: {name}", len(asked), values={**values, "same_tokens": same, "lm_eval_seconds": seconds})


def judge(cells: Sequence[Cell]) -> tuple[dict[str, Any], str]:
    """All verdicts agree, or the claim does not hold."""
    done = [cell for cell in cells if cell.status == "done"]
    agree = sum(cell.values["agree"] for cell in done)
    differing = sum(len(cell.values["decided_differently"]) for cell in done)
    outcome = {"agree": agree, "verdicts": len(done), "of": len(cells), "decided_differently": differing,
               "decisions": 2 * sum(int(cell.n) for cell in done)}  # fmt: skip
    if agree < len(done):
        return outcome, f"The claim does not hold: {len(done) - agree} of {len(done)} verdicts differ."
    open_ = "" if len(done) == len(cells) else f"; {len(cells) - len(done)} are open"
    return outcome, f"The claim holds as far as it was measured: {agree} of {len(done)} verdicts agree{open_}."


def tables(result: Result) -> str:
    """The table, for people."""
    rows = []
    for cell in result.cells:
        if cell.status != "done":
            rows.append([cell.name, cell.status, cell.reason, *[""] * 8])
            continue
        v, o, t = cell.values, cell.values["ours"], cell.values["independent"]
        causes = ", ".join(sorted({d["cause"] for d in v["decided_differently"]}))
        rows.append([
            cell.name, cell.n, f"{o['base']:.3f}/{o['tuned']:.3f}", f"{t['base']:.3f}/{t['tuned']:.3f}",
            f"{len(v['decided_differently'])} of {2 * int(cell.n)} {causes}".strip(),
            "[{:+.3f}, {:+.3f}]".format(*o["interval"]), f"[{t['low']:+.3f}, {t['high']:+.3f}]", f"{t['p']:.2g}",
            o["verdict"], t["verdict"], "yes" if v["agree"] else "NO",
        ])  # fmt: skip
    head = ["pair: task", "n", "base/tuned ours", "base/tuned lm-eval", "items decided differently", "our interval",
            "bootstrap interval", "McNemar p", "our verdict", "independent verdict", "agree"]  # fmt: skip
    return (
        f"# Verdicts against an independent evaluation, {result.date}\n\n{result.decision} Same items, same prompts, "
        "lm-eval's HF backend; exact McNemar and a paired bootstrap at the same Bonferroni level.\n"
        f"Reproduce: `{result.command}`.\n\n{table(head, rows)}"
    )
