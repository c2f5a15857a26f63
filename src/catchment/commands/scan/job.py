"""One scan at work: the model, its tasks with their tolerances, the clock, and where rows are kept."""

from __future__ import annotations

import atexit
import dataclasses
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catchment import landscape, models
from catchment.capabilities import (
    GENERATED_SCORERS,
    Prepared,
    PromptOptions,
    Task,
    gates,
    resolve_tasks,
    sample,
    seeded_order,
)
from catchment.commands.scan.settings import ScanSettings
from catchment.errors import InputError, ModelError
from catchment.landscape import Design, Evaluator, Field, Ground, Mover, Subspace
from catchment.measuring import CPU_BATCH, OutOfTimeError, Progress, Subject, batch_tokens, fill
from catchment.records import Admission, Panel, Row, Ruler, SubspaceCard
from catchment.runs import Cell, Store, claim_folder, processes, write_atomic
from catchment.statistics import admission, ladder, mean_interval, node_error, rungs_below, units_needed

RESERVE = 8.0
"""Seconds of a budget that are kept for the self-check, the record and the page."""
CAP = 400
"""Units at a scale at most."""
LEAST = 16
"""Items a task needs to be scanned at all."""


OWN_SHARE = 0.4
"""Of a budget that the model's own scores may take, beyond the items without which a task is not scanned."""
STEPS = (LEAST, 64)
"""Items per task at which own scores look at the clock."""
CHECK_SHARE, CHECK_ITEMS = 0.05, 16
"""Of a budget that the self-check may take, and its items per task at most."""


class Clock:
    """Seconds of a budget, over interruptions: what earlier runs spent counts.

    Attributes:
        later: Seconds that are kept for the self-check, beside the reserve.
        open: Whether measuring may be stopped; what comes after it, and what is only looked up, is not.
    """

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self.budget = budget
        self.spent_before = spent
        self.started = time.monotonic()
        self.later = 0.0
        self.until = math.inf
        self.open = True

    @property
    def spent(self) -> float:
        return float(processes.agreed(self._spent()))

    def _spent(self) -> float:
        return self.spent_before + time.monotonic() - self.started

    @property
    def end(self) -> float:
        """Seconds at which measuring stops; of a budget below half a minute a quarter is kept."""
        return min(self.until, self.budget - max(min(RESERVE, self.budget / 4), self.later))

    @property
    def left(self) -> float:
        return self.end - self.spent

    def remaining(self) -> float:
        """Seconds of the budget that are left, as this process sees it."""
        return max(self.budget - self._spent(), 0.0)

    def check(self) -> None:
        """Before every forward pass. Where a model is cut over processes, stages look at the clock between points
        only: all processes have to stop at the same one.

        Raises:
            OutOfTimeError: Nothing more may be measured.
        """
        if self.open and processes.count() == 1 and self.left <= 0:
            raise OutOfTimeError("the budget ended before this was measured.")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Measuring stops after so many seconds at the latest."""
        before, self.until = self.until, min(self.until, self.spent + max(seconds, 0.0))
        try:
            yield
        finally:
            self.until = before


@dataclass
class Kept:
    """What plan.json keeps beside the clock, for the next run on the same OUT.

    Attributes:
        speed: Tokens per second at displaced points.
        point: Seconds per displaced point.
        middle: Scale that the plane was laid out for.
        batch_tokens: Padded tokens per forward pass.
        found: How much the finished scan held, by panel; a replay that finds less lacks rows.
        own: Items per task whose own scores were measured.
        check_items: Items per task of the self-check.
    """

    speed: float | None = None
    point: float | None = None
    middle: float | None = None
    batch_tokens: int | None = None
    found: dict[str, int] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    check_items: int | None = None


@dataclass
class ScanJob:
    """One scan at work. ``frozen``: an equal scan was finished here; nothing is measured again, and ``bought`` is what
    it said of its budget. ``paid``: seconds per item of each task at the model's own weights."""

    settings: ScanSettings
    side: Subject
    tasks: list[Task]
    store: Store
    out: Path
    progress: Progress
    clock: Clock
    subspace: Subspace
    card: SubspaceCard
    frozen: bool = False
    bought: tuple[Panel, ...] = ()
    grounds: list[Ground] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kept: Kept = field(default_factory=Kept)
    paid: dict[str, float] = field(default_factory=dict)

    @property
    def ruler(self) -> Ruler:
        """What scales are chosen by, and widths are relative to."""
        assert self.card.ruler is not None, "a card of weights has one"
        return self.card.ruler

    @property
    def admitted(self) -> list[str]:
        return [a.task for a in self.admissions if a.admitted]

    @property
    def batch_tokens(self) -> int:
        return self.kept.batch_tokens or CPU_BATCH

    def cell(self, ground: Ground, address: Mapping[str, Any]) -> Cell:
        """Where rows of a task at displaced points are kept: the model's own cell, and the displacement."""
        return self.side.moved_cell(self.store, ground, address)

    def evaluator(self) -> Evaluator:
        loaded = self.side.loaded
        mover = Mover(loaded.model, self.subspace, memory=self.settings.memory, files=loaded.files)  # type: ignore[arg-type]
        engine = self.side.engine(self.batch_tokens)
        usable = [g for g in self.grounds if g.name in self.admitted]
        return Evaluator(engine, mover, usable, self.cell, frozen=self.frozen, on_tokens=self.progress.advance)

    def design(self) -> Design:
        """What is fixed before the first direction is drawn."""
        s = self.settings
        usable = [g for g in self.grounds if g.name in self.admitted]
        rungs, below = scan_ladder(s, self.ruler, self.subspace.spread)
        error = node_error(s.alpha, len(below) + len(rungs), s.depth, max(len(usable), 1))
        counted = [g for g in usable if g.prepared.task.scorer != "text" and _fits(g, error)]
        each = 8 if s.items == "fixed" else landscape.items_each(counted, error)
        return Design(
            rungs, s.depth, s.alpha, max(len(usable), 1), each, CAP, s.items == "fixed", s.seed, below,
            self.ruler.dtype if below else "",
        )  # fmt: skip

    def thaw(self) -> None:
        """Measure again what the store lost, within the budget that was asked for, from the start of this run on."""
        self.frozen, self.bought, self.clock.open = False, (), True
        self.clock.budget, self.clock.spent_before = self.settings.seconds, 0.0

    def field(self, evaluator: Evaluator) -> Field:
        return Field(evaluator, self.design())

    def save_plan(self, panels: Sequence[Panel] = (), *, finished: bool = False) -> None:
        """Write what was spent and on what, and whether the scan ran to its end."""
        spent = self.clock.spent  # asked for by every process
        if self.settings.out is not None and not self.frozen and processes.is_main():
            content = {
                "ask": ask(self), "budget": self.clock.budget, "spent": spent, "finished": finished,
                "panels": [dataclasses.asdict(panel) for panel in panels], "kept": dataclasses.asdict(self.kept),
            }  # fmt: skip
            write_atomic(self.out / "plan.json", json.dumps(content, indent=1))


def open_scan(settings: ScanSettings, progress: Progress, tokenizer: Any, started: float | None = None) -> ScanJob:
    """Load, refuse what cannot be scanned, find the clock of an earlier run in OUT. ``started``: when the command
    began, on ``time.monotonic``; now by default."""
    processes.join(settings.device)
    clock = Clock(settings.seconds)
    clock.started = clock.started if started is None else started
    progress.clock(clock.remaining)
    if settings.workers > 1 and not isinstance(settings.model, (str, Path)):
        raise InputError("workers load the model themselves; expected a name or a path, not a model in memory.")
    if settings.through and processes.count() > 1:
        raise InputError("--through reads whole weights, and torchrun cuts them; scan without torchrun for it.")
    tasks = scan_tasks(settings)
    for spec in settings.through:
        models.resolve(str(spec))  # a name that means nothing is said before anything is measured
    progress.status("reading the model")
    asked = PromptOptions(settings.chat_template, settings.system)
    side = Subject(
        "base", settings.model, settings.model_options(), asked, settings.drop_long, tokenizer, check=clock.check
    )
    side.loaded.movable()
    if side.classifies:
        raise ModelError(f"{side.card.name} is a {side.card.architecture}; scan takes causal language models.")
    subspace = Subspace.parse(side.loaded.model, settings.subspace)
    if settings.gradients and subspace.kind not in ("all", "glob"):
        raise InputError("--gradients looks at whole tensors; expected --subspace all or patterns of names.")
    if settings.gradients and models.named_weights(side.loaded.model, "adapter"):
        raise InputError("--gradients makes the model anew at random weights; it stands under an adapter. Merge it.")
    card = subspace.card(side.loaded.model)
    if settings.ladder is None and card.ruler is not None and card.ruler.rms == 0:
        raise InputError(
            f"the {card.ruler.of} of subspace {settings.subspace!r} hold only zeros, so it has no scale; give --ladder "
            "LOW:HIGH:RUNGS."
        )
    landscape.shard(side.loaded.model)
    if settings.out is not None and processes.is_main():
        fingerprint = {
            "model": side.card.weights_hash, "config": side.card.config_hash, "dtype": side.card.dtype,
            "subspace": subspace.hash, "seed": settings.seed, "chat_template": asked.key,
            "system": asked.system,
        }  # fmt: skip
        claim_folder(settings.out, fingerprint, "scan")
    alone = processes.count() == 1
    store = Store(settings.store_folder if alone else _own_store())
    job = ScanJob(settings, side, tasks, store, settings.out or Path("."), progress, clock, subspace, card)
    job.warnings += [note for task in tasks for note in task.notes]
    if alone:
        _take_up(job)
    job.kept.batch_tokens = settings.batch_tokens or job.kept.batch_tokens or batch_tokens(side, None)
    return job


def _own_store() -> Path:
    """A store that lasts as long as this process: kept rows that one process sees and another does not would make them
    part ways."""
    folder = Path(tempfile.mkdtemp(prefix="catchment-rank-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scan_tasks(settings: ScanSettings) -> list[Task]:
    """The tasks, and the text as one more."""
    tasks = resolve_tasks(settings.tasks)
    for task in tasks:
        if task.scorer == "agreement":
            raise InputError(f"task {task.name!r} has no right answers to score; a scan needs labelled tasks.")
        gates.check_task(task)
    if settings.text == "none" or any(task.scorer == "text" for task in tasks):
        return tasks
    text = resolve_tasks([settings.text])[0]
    if text.scorer != "text":
        raise InputError(
            f"--text {settings.text!r} is scored by {text.scorer!r}; expected 'text', 'none' or a .jsonl file with "
            'lines like {"text": "..."}.'
        )
    return tasks if text.name in {task.name for task in tasks} else [*tasks, text]


def scan_ladder(
    settings: ScanSettings, ruler: Ruler, spread: float = 1.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The rungs, and those below them down to the smallest step that the weights' number format holds: ``spread`` times
    larger per dimension than per weight. A ladder that was asked for has none below."""
    rungs = ladder(*settings.scales(ruler.rms))
    open_below = settings.ladder is None and ruler.step > 0
    return rungs, rungs_below(rungs, ruler.step * spread) if open_below else ()


NOT_ASKED = ("out", "budget", "store", "dry_run", "workers", "memory", "model", "tasks")


def ask(job: ScanJob) -> dict[str, Any]:
    """What decides a scan beside its budget; another question begins another clock."""
    fields = dataclasses.fields(job.settings)
    found = {f.name: getattr(job.settings, f.name) for f in fields if f.name not in NOT_ASKED}
    found |= {"tasks": [t.name for t in job.tasks], "hashes": {t.name: t.hash() for t in job.tasks}}
    return json.loads(json.dumps(found, default=str))


def _take_up(job: ScanJob) -> None:
    path = job.out / "plan.json"
    if job.settings.out is None or not path.is_file():
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        same = kept["ask"] == ask(job)
        budget, spent, finished = float(kept["budget"]), float(kept["spent"]), bool(kept["finished"])
        panels = tuple(Panel(**panel) for panel in kept["panels"])
        noted = Kept(**kept["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not same:
        return
    if job.clock.budget > budget:
        noted.own = {}  # more time may pay for more of them
    job.clock.spent_before, job.kept = spent, noted
    job.frozen = finished and job.clock.budget <= budget
    if job.frozen:
        job.clock.budget, job.bought = budget, panels


def admit(job: ScanJob) -> None:
    """The model's own rows, and which tasks it is good enough at. Within a budget few items of every task come before
    many of any; a task without a row is said to be unmeasured."""
    s = job.settings
    job.clock.open = not job.frozen
    tables: dict[str, dict[str, Row]] = {task.name: {} for task in job.tasks}
    counts = {task.name: len(sample(task.items, s.limit, s.seed)) for task in job.tasks}
    most = {name: min(count, job.kept.own.get(name, count)) for name, count in counts.items()}
    reached = dict.fromkeys(most, 0)
    for number, stop in enumerate((*STEPS, None)):
        with job.clock.within(OWN_SHARE * job.clock.budget - job.clock.spent if number else math.inf):
            for task in job.tasks:
                end = most[task.name] if stop is None else min(stop, most[task.name])
                if end > reached[task.name] and _own_scores(job, task, reached[task.name], end, tables[task.name]):
                    reached[task.name] = end
    job.kept.own = {name: count for name, count in reached.items() if count}
    for task in job.tasks:
        items = sample(task.items, s.limit, s.seed)
        asked = [item for item in items if item.id in tables[task.name]]
        if not asked:
            job.warnings.append(f"{task.name}: not measured: the budget ended before its first item")
            continue
        prepared = job.side.prepare(task, task.formats[0].name, asked)
        ground = _ground(prepared, tables[task.name], s)
        job.grounds.append(ground)
        job.admissions.append(_admission(ground, task))
        if reached[task.name] < counts[task.name]:
            text = f"{reached[task.name]:,} of {counts[task.name]:,} items are scanned, because the budget ended"
            job.warnings.append(f"{task.name}: {text}")
    _plan_check(job)
    design = job.design()
    for ground in job.grounds:
        if ground.name in job.admitted:
            job.warnings += _out_of_reach(job, ground, design)


def _own_scores(job: ScanJob, task: Task, start: int, stop: int, table: dict[str, Row]) -> bool:
    """Own scores of items ``start`` to ``stop`` of the seeded order; ``False``, and none of them counts, where the
    clock ended before."""
    s, form = job.settings, task.formats[0].name
    before = {item.id for item in sample(task.items, start, s.seed)} if start else set()
    items = [item for item in sample(task.items, stop, s.seed) if item.id not in before]
    job.progress.status(f"own scores · {task.name}")
    try:
        measured = fill(job.side, job.store, task, form, items, job.batch_tokens, job.progress)
    except OutOfTimeError:
        return False
    table.update(measured.rows)
    if measured.fresh and measured.seconds > 0:
        tokens = job.side.prepare(task, form, items).tokens
        job.paid[task.name] = measured.seconds / measured.fresh
        if job.kept.speed is None:  # the first guess of one
            job.kept.speed = tokens * measured.fresh / len(items) / measured.seconds
    return True


def _plan_check(job: ScanJob) -> None:
    """Choose the items of the self-check, which comes last, and keep the time for it."""
    each = float(processes.agreed(2 * sum(job.paid.get(name, 0.0) for name in job.admitted)))
    if job.kept.check_items is None:
        fits = int(CHECK_SHARE * job.clock.budget / each) if each > 0 else CHECK_ITEMS
        job.kept.check_items = max(1, min(CHECK_ITEMS, fits))
    job.clock.later = min(RESERVE, job.clock.budget / 4) + each * job.kept.check_items


def _needed(tau: float, error: float) -> float:
    """Units for "inside" at least; infinite where no number of them would do."""
    return units_needed(tau, error) if tau > 1e-4 else math.inf  # far more than CAP below that


def _fits(ground: Ground, error: float) -> bool:
    """Whether "inside" can be shown of a task at all, with one item to a unit."""
    return _needed(ground.tau, error) <= min(CAP, len(ground.items))


def _out_of_reach(job: ScanJob, ground: Ground, design: Design) -> list[str]:
    """A warning where the items of a task that were measured are too few for "inside": what would do."""
    have, needed = design.units(ground), _needed(ground.tau, design.error)
    if needed <= have:
        return []
    whole = next(len(t.items) for t in job.tasks if t.name == ground.name)
    each = design.items_each if ground.prepared.task.scorer == "text" else 1  # a text has no say in the items of a unit
    wanted = math.ceil(1.25 * needed * each) if needed <= CAP else math.inf
    asked = min(job.settings.limit or whole, whole)
    ways = []
    if wanted <= whole and not design.fixed:
        more = ["a larger --budget"] if len(ground.items) < asked else []  # it ended before the items that were asked
        ways = [" with ".join([*([f"--limit {wanted}"] if wanted > asked else []), *more])]
    enough = next((tau for tau in (k / 100 for k in range(1, 100)) if _needed(tau, design.error) <= have), None)
    above = ground.score - ground.chance
    if enough is not None and job.settings.tau_absolute is not None:
        ways.append(f"--tau-absolute {enough:g}")
    elif enough is not None and above > 0 and math.ceil(100 * enough / above) < 100:
        ways.append(f"--tau {math.ceil(100 * enough / above) / 100:g}")
    advice = " or ".join(ways) or "a task with more items, or fewer tasks"
    most = f"{needed:,.0f} units" if needed < math.inf else "more units than can be measured"
    return [
        f"{ground.name}: no scale can be shown to be inside a drop of {ground.tau:.3g}: that takes {most}, and its "
        f"{len(ground.items):,} items make {have:,}; expected {advice}"
    ]


def _ground(prepared: Prepared, rows: Mapping[str, Row], s: ScanSettings) -> Ground:
    chance = prepared.task.chance_level
    items = tuple(seeded_order([e.item.id for e in prepared.encoded], f"{s.seed}/"))
    ground = Ground(prepared, rows, items, chance, 1.0)
    tau = s.tau_absolute if s.tau_absolute is not None else s.tau * max(ground.score - chance, 0.0)
    return dataclasses.replace(ground, tau=tau)


def _admission(ground: Ground, task: Task) -> Admission:
    values = [ground.value(ground.base[item]) for item in ground.items]
    if task.scorer == "text":
        found, reason = True, ""
    else:
        found, reason = admission(values, ground.chance, task.scorer in GENERATED_SCORERS)
    if found and len(values) < LEAST:
        found, reason = False, f"{len(values)} items; expected at least {LEAST} to draw from"
    companions = [c for item in ground.items if (c := ground.base[item].companion) is not None]
    mean = sum(companions) / len(companions) if companions else None
    return Admission(task.name, len(values), mean_interval(values), ground.chance, found, reason, mean)


def split(ground: Ground, count: int) -> tuple[list[str], list[str]]:
    """Items to attack with and items to judge on, by a hash that nothing else uses."""
    order = seeded_order(ground.items, "attack:")
    count = min(count, len(order) // 2)
    return order[:count], order[count:]


def unit_scales(design: Design) -> Sequence[float]:
    """Rungs of a profile: every second one, the ends included."""
    return design.ladder[::2] if len(design.ladder) % 2 else design.ladder
