"""Do the verdicts of ``catchment compare`` agree with an independent evaluation?

Three real pairs: the demo's two fine-tunes of SmolLM2-135M-Instruct, and stories15M against a fine-tune of all its
weights (made by ``recipes/stories_pair.py``). For each, ``catchment.compare`` on built-in tasks; the same items through
the lm-evaluation-harness with its own prompts and HF backend (``harness.py``); another statistic (``verdicts.py``).
What was measured is kept under ``proofs/.cache``: stop it when you like, the same command goes on.

    python proofs/independent.py --budget 60m --items 400
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import tables

from catchment import compare, demo, models
from catchment.capabilities import Task, packs, prepare, sample
from catchment.commands.compare.record import Comparison
from catchment.measuring import Progress
from catchment.options import parse_seconds
from catchment.records import Row
from catchment.runs import Store, write_atomic

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "proofs/.cache"
STORIES = ROOT.parent / "shared/models/stories15M"
SEED = 0
NAMES = ("stories", "plain", "protected")


class BudgetSpentError(Exception):
    """Time is up; everything measured so far is kept."""


@dataclass(frozen=True)
class Pair:
    """Two models and the tasks on which they are compared."""

    name: str
    base: str
    tuned: str
    tasks: tuple[str, ...]


class Clock(Progress):
    """Counts tokens and time, and stops the work between two batches when the budget is spent."""

    def __init__(self, budget: float) -> None:
        self.end, self.tokens = time.monotonic() + budget, 0.0

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise BudgetSpentError

    def advance(self, tokens: float) -> None:
        self.tokens += tokens
        self.check()

    def status(self, text: str) -> None:
        print(f"  {text}", flush=True)


def pairs(stories: Path, tuned: Path, names: list[str]) -> list[Pair]:
    """The pairs of these names; the stories pair is made when it is missing, and left out without its base."""
    found = []
    if "stories" in names and not stories.is_dir():
        print(f"no folder {stories}: the stories pair is left out; give --stories")
    elif "stories" in names:
        if not (tuned / "recipe.json").is_file():
            print(f"making {tuned}", flush=True)
            recipe = [
                sys.executable,
                str(ROOT / "recipes/stories_pair.py"),
                "--base",
                str(stories),
                "--out",
                str(tuned),
            ]
            subprocess.run(recipe, check=True)
        found.append(Pair("stories", str(stories), str(tuned), packs.STORIES))
    tasks = ("arithmetic", "recall", "format", "knowledge", "language")
    plain = [Pair(n, demo.BASE, f"{demo.BASE}+{demo.path(n)}", tasks) for n in ("plain", "protected")]
    return found + [pair for pair in plain if pair.name in names]


class Ours:
    """``catchment.compare`` of one pair, and its item rows."""

    def __init__(self, pair: Pair, items: int, clock: Clock) -> None:
        self.pair, self.items, self.clock = pair, items, clock
        self.cards = [models.card_of(spec) or models.load(spec).card for spec in (pair.base, pair.tuned)]

    def compare(self) -> Comparison:
        tuned = self.cards[1].weights_hash[:12]
        started, before = time.monotonic(), self.clock.tokens
        cost_path = CACHE / "compare" / f"{self.pair.name}-{tuned}.cost.json"
        cost = json.loads(cost_path.read_text()) if cost_path.is_file() else {"seconds": 0.0, "tokens": 0.0}
        try:
            return compare(
                self.pair.base, self.pair.tuned, tasks=self.pair.tasks, limit=self.items, seed=SEED, formats=1,
                text="none", out=CACHE / "compare" / f"{self.pair.name}-{tuned}", store=CACHE / "store",
                progress=self.clock,
            )  # fmt: skip
        finally:
            if self.clock.tokens > before:
                cost["seconds"] += time.monotonic() - started
                cost["tokens"] += self.clock.tokens - before
                write_atomic(cost_path, json.dumps(cost))

    @property
    def cost(self) -> dict[str, float]:
        path = CACHE / "compare" / f"{self.pair.name}-{self.cards[1].weights_hash[:12]}.cost.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def reached(self, task: Task) -> int:
        """Items of the sample that both models have answered."""
        both = set(self.rows(0, task)) & set(self.rows(1, task))
        return sum(i.id in both for i in sample(task.items, self.items, SEED))

    def rows(self, role: int, task: Task) -> dict[str, Row]:
        """All rows of this model and task under the default format."""
        wanted = (self.cards[role].weights_hash, task.hash(), task.formats[0].name)
        store, found = Store(CACHE / "store"), {}
        for key in store.counts():
            conditions = store.conditions(key)
            if (conditions["weights"], conditions["task"], conditions.get("format")) == wanted:
                found.update(store.cell(key, conditions).rows())
        return found


class Theirs:
    """One model in lm-eval: an ordinary folder, loaded when first asked; answers kept per item."""

    def __init__(self, spec: str, card: Any, clock: Clock, batch: int) -> None:
        self.spec, self.card, self.clock, self.batch = spec, card, clock, batch
        self._lm: Any = None

    @property
    def lm(self) -> Any:
        if self._lm is None:
            from lm_eval.models.huggingface import HFLM

            folder = self._folder()
            self._lm = HFLM(pretrained=str(folder), device="cpu", dtype="auto", batch_size=self.batch)
        return self._lm

    def _folder(self) -> Path:
        if (Path(self.spec) / "config.json").is_file():
            return Path(self.spec)
        folder = CACHE / "models" / self.card.weights_hash[:12]
        if not (folder / "complete").is_file():
            loaded = models.load(self.spec)
            loaded.model.save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)
            loaded.release()
            again = models.load(str(folder)).card
            assert again.weights_hash == self.card.weights_hash, "saving changed the weights"
            (folder / "complete").touch()
        return folder

    def _path(self, task: Task) -> Path:
        return CACHE / "lm-eval" / f"{self.card.weights_hash[:12]}-{task.name}-{task.hash()[:12]}.json"

    def read(self, task: Task) -> dict[str, Any]:
        path = self._path(task)
        return json.loads(path.read_text()) if path.is_file() else {"rows": {}, "seconds": 0.0, "tokens": 0, "same": 0}

    def fill(self, task: Task, items: int) -> None:
        """Evaluate what is missing, a chunk at a time."""
        kept = self.read(task)
        self._path(task).parent.mkdir(parents=True, exist_ok=True)
        missing = [i for i in sample(task.items, items, SEED) if i.id not in kept["rows"]]
        for at in range(0, len(missing), harness.CHUNK):
            self.clock.check()
            chunk = missing[at : at + harness.CHUNK]
            _ = self.lm
            started = time.monotonic()
            rows = harness.evaluate(self.lm, task, chunk, CACHE / "items" / f"{task.name}-{chunk[0].id}.jsonl")
            kept["seconds"] += time.monotonic() - started
            encoded = {e.item.id: e for e in prepare(self.lm.tokenizer, task, items=chunk).encoded}
            kept["same"] += sum(harness.same_tokens(self.lm, task, rows[i.id], encoded[i.id]) for i in chunk)
            kept["tokens"] += sum(len(e.prompt) * max(len(e.answers), 1) for e in encoded.values())
            kept["rows"].update(rows)
            write_atomic(self._path(task), json.dumps(kept, ensure_ascii=False))
            print(f"  lm-eval · {task.name} · {self.spec[-30:]} · {len(kept['rows'])}", flush=True)


def measure(found: list[Pair], items: int, clock: Clock, batch: int) -> None:
    """All cells, until done or out of time."""
    theirs: dict[str, Theirs] = {}
    for pair in found:
        print(f"{pair.name}: catchment", flush=True)
        ours = Ours(pair, items, clock)
        ours.compare()
        for spec, card in zip((pair.base, pair.tuned), ours.cards, strict=True):
            side = theirs.setdefault(card.weights_hash, Theirs(spec, card, clock, batch))
            for name in pair.tasks:
                side.fill(packs.load(name), items)
            side._lm = None


def judged(found: list[Pair], items: int) -> list[dict[str, Any]]:
    """What has been measured, judged twice; a task that lacks items on one of the four sides is named as open."""
    results = []
    endless = Clock(float("inf"))
    for pair in found:
        ours = Ours(pair, items, endless)
        sides = [Theirs(s, c, endless, 1) for s, c in zip((pair.base, pair.tuned), ours.cards, strict=True)]
        wanted = {name: list(sample(packs.load(name).items, items, SEED)) for name in pair.tasks}
        reached = {name: ours.reached(packs.load(name)) for name in pair.tasks}
        result: dict[str, Any] = {"pair": pair.name, "base": _short(pair.base), "tuned": _short(pair.tuned)}
        result |= {"tasks": [], "open": {}, "same_tokens": [0, 0], "cost": {"ours": ours.cost}}
        comparison = ours.compare() if all(reached[n] == len(wanted[n]) for n in pair.tasks) else None
        theirs_cost = {"seconds": 0.0, "tokens": 0}
        for name in pair.tasks:
            task, kept = packs.load(name), [side.read(packs.load(name)) for side in sides]
            have = min([reached[name], *(sum(i.id in k["rows"] for i in wanted[name]) for k in kept)])
            if comparison is None or have < len(wanted[name]):
                result["open"][name] = f"{have} of {len(wanted[name])}"
                continue
            both = [ours.rows(0, task), ours.rows(1, task), *(k["rows"] for k in kept)]
            result["tasks"].append(tables.task_row(task, wanted[name], both, comparison[name], comparison.margin))
            result["same_tokens"][0] += sum(k["same"] for k in kept)
            result["same_tokens"][1] += sum(len(k["rows"]) for k in kept)
            theirs_cost = {key: value + sum(k[key] for k in kept) for key, value in theirs_cost.items()}
        result["cost"]["lm-eval"] = theirs_cost
        if comparison is not None:
            result["conditions"] = tables.conditions(comparison)
        results.append(result)
    return results


def _short(spec: str) -> str:
    """A name without this machine's folders."""
    return "+".join(Path(part).name if "/" in part else part for part in spec.split("+"))


def main() -> None:
    """Measure within the budget, then write what has been reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="60m")
    parser.add_argument("--items", type=int, default=400, help="items per task")
    parser.add_argument("--pairs", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--stories", type=Path, default=STORIES)
    parser.add_argument("--stories-tuned", type=Path, default=CACHE / "stories-tuned")
    parser.add_argument("--batch", type=int, default=16, help="lm-eval's batch size")
    parser.add_argument("--out", type=Path, default=ROOT / "proofs/results")
    args = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    clock = Clock(parse_seconds(args.budget) or 3600.0)
    found = pairs(args.stories, args.stories_tuned, args.pairs)
    try:
        measure(found, args.items, clock, args.batch)
    except BudgetSpentError:
        print("the budget is spent; the same command goes on from here", flush=True)
    tables.write(judged(found, args.items), args.out, args.items)


if __name__ == "__main__":
    main()
