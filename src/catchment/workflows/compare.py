"""``catchment.compare``: what a fine-tune gained, lost and kept, from two models to one record."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from catchment import models, report
from catchment.capabilities import Item, Task, agreement_rows, gates, measure_speed, resolve_tasks, sample
from catchment.capabilities.tasks import GENERATED_SCORERS
from catchment.errors import InputError, ModelError, TaskError, did_you_mean
from catchment.records import Comparison, Drift, Flip, Row, TaskResult, from_json, to_json
from catchment.runs import Store, cell_key, claim_folder, write_atomic
from catchment.settings import CompareSettings, cache_dir
from catchment.workflows import results
from catchment.workflows.measure import POLICY, Side, fill
from catchment.workflows.plan import Plan, allocate, first_plan, pilot_size
from catchment.workflows.progress import Progress

CHUNK = 256
"""Items per task between two looks at the clock."""
RESERVE = 6.0
"""Seconds of a budget that are kept for drift, record and page."""
CPU_BATCH = 1024
"""Padded tokens per forward pass on a CPU: more is no faster."""


@dataclass
class Job:
    """One comparison at work."""

    settings: CompareSettings
    base: Side
    tuned: Side
    tasks: list[Task]
    text: Task | None
    prompts: Task | None
    store: Store
    out: Path
    progress: Progress
    started: float
    warnings: list[str] = field(default_factory=list)
    task_warnings: dict[str, list[str]] = field(default_factory=dict)
    plan: Plan = field(default_factory=lambda: Plan((), None, CPU_BATCH))
    rows: dict[tuple[str, str, str], dict[str, Row]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.base, self.tuned

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def result(self, task: Task) -> TaskResult:
        """The task's result from the rows measured so far, default format."""
        return _result(self, task, final=False)

    def table(self, side: Side, task: Task, form: str) -> dict[str, Row]:
        return self.rows.setdefault((side.role, task.name, form), {})


def compare(base: Any, tuned: Any, *, progress: Progress | None = None, tokenizer: Any = None, **options: Any) -> Comparison:
    """What did the fine-tune lose? Compare two models, task by task, on the same items and prompts.

    Per task: *gained*, *lost*, *kept* (no drop of ``margin`` or more), *undecided* with the number of items that
    would decide, or *not measurable* where the base is at chance. Intervals are paired over items and simultaneous
    over tasks; the flipped items, bits per byte, prompt formats and the drift of the weights come with them.

    Args:
        base, tuned: a hub id, a folder, a GGUF file or a package that carries one, ``BASE+ADAPTER``,
            ``BASE+INCREMENT.safetensors``, or models in memory (then give ``tokenizer``).
        progress: told what goes on.
        **options: the fields of :class:`~catchment.settings.CompareSettings`: ``tasks``, ``limit``, ``budget``,
            ``margin``, ``out``, ``recover``, ``chat_template``, ``seed`` ...

    Returns:
        The record; also written to ``out/comparison.json``, with the page in ``out/report.html``. Without ``out``
        nothing is written but the measured rows, in the cache folder.

    Raises:
        CatchmentError: bad input; the message names the value, what was expected and the fix.

    Cost: two evaluations of every item, under one prompt format; a quarter of that for each further format.

    Example:
        >>> comparison = compare("base", "tuned", tasks=["recall"], budget="4m")  # doctest: +SKIP
        >>> comparison["recall"].verdict  # doctest: +SKIP
        'lost'
    """
    known = {f.name for f in dataclasses.fields(CompareSettings)}
    for name in options:
        if name not in known:
            raise InputError(f"compare() has no setting {name!r}.{did_you_mean(name, known)}")
    tasks = options.get("tasks", ("default",))
    options["tasks"] = (tasks,) if isinstance(tasks, (str, Task)) else tuple(tasks)
    for name in ("out", "recover", "prompts", "store"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    return run_comparison(CompareSettings(base, tuned, **options), progress or Progress(), tokenizer)


def run_comparison(settings: CompareSettings, progress: Progress, tokenizer: Any = None) -> Comparison:
    """:func:`compare` with checked settings."""
    job = _open(settings, progress, tokenizer)
    if settings.out is None:
        return _work(job)
    with Store(job.out).lock("compare"):
        return _work(job)


def plan_only(settings: CompareSettings, progress: Progress) -> Plan:
    """The plan of a comparison without a budget's pilot: what ``--dry-run`` prints. Loads the models."""
    job = _open(dataclasses.replace(settings, out=None), progress, None)
    _first_plan(job)
    return job.plan


def _open(settings: CompareSettings, progress: Progress, tokenizer: Any) -> Job:
    started = time.perf_counter()
    tasks = resolve_tasks(settings.tasks)
    task_warnings = {task.name: gates.check_task(task) for task in tasks}
    text = resolve_tasks([settings.text])[0] if settings.text != "none" else None
    prompts = resolve_tasks([str(settings.prompts)])[0] if settings.prompts else None
    if prompts is not None and prompts.scorer != "agreement":
        raise InputError(f"--prompts {str(settings.prompts)!r} has labels; give it as a task: --tasks {settings.prompts}.")
    progress.status("reading the models")
    shared = settings.model_options()
    shape = {
        "chat_template": settings.chat_template, "system": settings.system, "drop_long": settings.drop_long,
        "tokenizer": tokenizer,
    }  # fmt: skip
    base = Side("base", settings.base, {**shared, "revision": settings.revision}, **shape)
    own = {**shared, "revision": settings.tuned_revision}
    if shared["dtype"] == "auto" and base.card.quantization is None:
        own["dtype"] = base.card.dtype
    tuned = Side("tuned", settings.tuned, own, **shape)
    warnings = _comparable(base, tuned)
    if "causal" not in base.card.architecture.lower() and "lm" not in base.card.architecture.lower():
        text = None
    out = settings.out or Path(".")
    if settings.out is not None:
        claim_folder(settings.out, _fingerprint(settings, base, tuned), "comparison")
    store = Store(settings.store or cache_dir() / "store")
    return Job(settings, base, tuned, tasks, text, prompts, store, out, progress, started, warnings, task_warnings)


def _comparable(base: Side, tuned: Side) -> list[str]:
    """What differs between the two and what follows. Refuses what cannot be compared."""
    a, b = base.card, tuned.card
    found = []
    if a.weights_hash == b.weights_hash:
        found.append("both names hold the same weights, byte for byte: there is nothing to lose or gain")
    if a.dtype != b.dtype and not (a.quantization or b.quantization):
        raise ModelError(
            f"{a.name} is in {a.dtype} and {b.name} in {b.dtype}; expected equal conditions. Add --dtype {a.dtype}."
        )
    if a.quantization != b.quantization:
        found.append(f"precision differs ({a.quantization or a.dtype} against {b.quantization or b.dtype})")
    if a.tokenizer_hash != b.tokenizer_hash:
        found.append("tokenizers differ: tasks are compared as text, log-probabilities per token are not")
    if a.template_hash != b.template_hash and base.chat_template == "auto":
        found.append("chat templates differ: each model was asked in its own (use --chat-template FILE for one)")
    if a.architecture != b.architecture:
        found.append(f"architectures differ ({a.architecture} against {b.architecture}): drift is not defined")
    return found


def _fingerprint(settings: CompareSettings, base: Side, tuned: Side) -> dict[str, Any]:
    return {
        "base": base.card.weights_hash,
        "tuned": tuned.card.weights_hash,
        "dtype": base.card.dtype,
        "chat_template": settings.chat_template,
        "system": settings.system,
        "seed": settings.seed,
    }


def _work(job: Job) -> Comparison:
    kept = _frozen_plan(job)
    if kept is not None:
        job.plan = kept
    else:
        _first_plan(job)
        if not job.plan.frozen:
            _pilot(job)
        _save_plan(job)
    _rounds(job)
    _formats(job)
    drift = _drift(job)
    comparison = _record(job, drift)
    if job.settings.recover is not None:
        from catchment.workflows.recover import recover

        job.progress.status("looking for the best point between base and tuned")
        comparison = dataclasses.replace(comparison, recovered=recover(job))
    if job.settings.out is not None:
        write_atomic(job.out / "comparison.json", to_json(comparison))
        report.write_page(comparison, job.out / "report.html")
    return comparison


# The plan


def _ask(job: Job) -> dict[str, Any]:
    """What a plan answers; another question gets another plan."""
    s = job.settings
    return {
        "tasks": [t.hash() for t in job.tasks], "limit": s.limit, "budget": s.budget, "formats": s.formats,
        "batch_tokens": s.batch_tokens,
    }  # fmt: skip


def _frozen_plan(job: Job) -> Plan | None:
    path = job.out / "plan.json"
    if job.settings.out is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan = Plan.from_json(json.dumps(content["plan"]))
    except (ValueError, KeyError, TypeError):
        return None
    return plan if content["ask"] == _ask(job) and plan.frozen else None


def _save_plan(job: Job) -> None:
    if job.settings.out is not None:
        content = {"ask": _ask(job), "plan": json.loads(job.plan.to_json())}
        write_atomic(job.out / "plan.json", json.dumps(content, indent=1))


def _batch_tokens(job: Job) -> int:
    if job.settings.batch_tokens:
        return job.settings.batch_tokens
    if job.base.card.device.startswith("cpu"):
        return CPU_BATCH
    engine = job.base.engine(CPU_BATCH)
    return measure_speed(engine).batch_tokens


def _first_plan(job: Job) -> None:
    s = job.settings
    tokens: dict[str, float] = {}
    if s.seconds is not None or s.dry_run:
        for task in job.tasks:
            if task.scorer != "classify":
                few = sample(task.items, min(32, len(task.items)), s.seed)
                tokens[task.name] = job.base.prepare(task, task.formats[0].name, few).tokens / len(few)
    job.plan = first_plan(
        job.tasks, limit=s.limit, formats=s.formats, budget=s.seconds, batch_tokens=_batch_tokens(job), tokens=tokens
    )


def _pilot(job: Job) -> None:
    """Measure the machine and a few items of every task on both models, then fix the numbers of items."""
    s = job.settings
    assert s.seconds is not None
    job.progress.status("measuring this machine")
    _ = job.tuned.loaded
    speed = measure_speed(job.base.engine(job.plan.batch_tokens)).tokens_per_second
    job.plan = pilot_size(job.plan, speed, s.formats)
    job.progress.total(sum(2 * t.tokens * t.pilot for t in job.plan.tasks))
    costs: dict[str, float] = {}
    closed: set[str] = set()
    for task in sorted(job.tasks, key=lambda t: job.plan.of(t.name).tokens):
        costs[task.name] = _measure(job, task, 0, job.plan.of(task.name).pilot)
        result = _result(job, task, final=False)
        if not result.admitted and result.tuned - result.base < 0.1:
            closed.add(task.name)
    extra = _extra_seconds(job, speed)
    left = s.seconds - job.elapsed - RESERVE - extra
    job.plan = allocate(job.plan, costs, max(left, 0.0) * 0.9, closed, s.formats - 1)
    job.progress.status(job.plan.sentence())


def _extra_seconds(job: Job, speed: float) -> float:
    """Seconds that text and unlabelled prompts will take."""
    seconds = 0.0
    if job.text is not None:
        seconds += 2 * job.base.prepare(job.text, job.text.formats[0].name, job.text.items).tokens / speed
    if job.prompts is not None:
        seconds += 3 * 150 * len(job.prompts.items) / speed
    return 1.3 * seconds


# Measuring


def _measure(job: Job, task: Task, start: int, stop: int, form: str | None = None) -> float:
    """Items ``start`` to ``stop`` of the seeded order on both models; returns seconds per item on both."""
    form = form or task.formats[0].name
    before = {item.id for item in sample(task.items, start, job.settings.seed)} if start else set()
    items = [i for i in sample(task.items, stop, job.settings.seed) if i.id not in before]
    cost = 0.0
    for side in job.sides:
        job.progress.status(f"{task.name} · {form} · {side.role}")
        measured = fill(side, job.store, task, form, items, job.plan.batch_tokens, job.progress)
        job.table(side, task, form).update(measured.rows)
        cost += measured.seconds / max(measured.fresh, 1)
    return cost


def _rounds(job: Job) -> None:
    """The planned items, a chunk of every task at a time, until done or the budget is spent."""
    plans = {t.task: t for t in job.plan.tasks}
    job.progress.total(_tokens_left(job))
    edges = {name: [*range(0, t.items, CHUNK), t.items] if not job.plan.budget else _edges(t.pilot, t.items)
             for name, t in plans.items()}  # fmt: skip
    fresh_run = job.plan.budget is not None and not _resumed(job)
    for number in range(max(len(e) for e in edges.values()) - 1):
        for task in job.tasks:
            steps = edges[task.name]
            if number + 1 >= len(steps):
                continue
            if fresh_run and number > 0 and job.elapsed > (job.plan.budget or 0) - RESERVE:
                _cut(job)
                break
            _measure(job, task, steps[number], steps[number + 1])
            job.progress.row(_result(job, task, final=False), final=number + 2 == len(steps))
        if job.plan.cut:
            break
    for task in job.tasks:
        job.progress.row(_result(job, task, final=False), final=True)


def _edges(pilot: int, items: int) -> list[int]:
    return [0, *range(pilot, items, CHUNK), items] if items > pilot else [0, items]


def _resumed(job: Job) -> bool:
    """Whether this process follows a plan that another one froze: then it is finished whatever it takes."""
    return not job.base.in_memory and not job.tuned.in_memory


def _cut(job: Job) -> None:
    """The machine became slower than planned: stop here, say so, and make what was reached the plan."""
    reached = []
    for t in job.plan.tasks:
        task = next(k for k in job.tasks if k.name == t.task)
        n = min(len(job.table(side, task, task.formats[0].name)) for side in job.sides)
        reached.append(dataclasses.replace(t, items=n, format_items=0))
    job.plan = dataclasses.replace(job.plan, tasks=tuple(reached), cut=True)
    _save_plan(job)
    job.warnings.append("the machine was slower than when the plan was made: fewer items than planned were measured")


def _tokens_left(job: Job) -> float:
    return sum(
        2 * t.tokens * (max(t.items - len(job.table(job.base, _task(job, t.task), _task(job, t.task).formats[0].name)), 0)
                        + (job.settings.formats - 1) * t.format_items)
        for t in job.plan.tasks
    )  # fmt: skip


def _task(job: Job, name: str) -> Task:
    return next(t for t in job.tasks if t.name == name)


def _formats(job: Job) -> None:
    for task in job.tasks:
        count = job.plan.of(task.name).format_items
        for form in task.formats[1 : job.settings.formats]:
            if count and not _late(job):
                _measure(job, task, 0, count, form.name)


def _late(job: Job) -> bool:
    return job.plan.budget is not None and not _resumed(job) and job.elapsed > job.plan.budget - RESERVE / 2


# Results


def _result(job: Job, task: Task, *, final: bool) -> TaskResult:
    s = job.settings
    default = task.formats[0].name
    base, tuned = (job.table(side, task, default) for side in job.sides)
    forms = []
    if final:
        rest = [f for f in task.formats[1 : s.formats] if job.table(job.tuned, task, f.name)]
        shared = job.table(job.tuned, task, rest[0].name) if rest else {}
        for form in [task.formats[0], *rest] if rest else []:
            a, b = (job.table(side, task, form.name) for side in job.sides)
            a = {k: v for k, v in a.items() if k in shared}
            forms.append(results.format_result(form, a, b, alpha=s.alpha))
    warnings = list(job.task_warnings[task.name])
    missing = len(job.base.dropped & {i.id for i in task.items})
    if missing:
        warnings.append(f"{missing} items longer than the context were left out")
    return results.task_result(
        task, base, tuned, margin=s.margin, alpha=s.alpha, family=len(job.tasks), formats=forms, warnings=warnings
    )


def _drift(job: Job) -> Drift | None:
    path = job.out / "drift.json"
    if job.settings.out is not None and path.is_file():
        try:
            return from_json(Drift, path.read_text(encoding="utf-8"))
        except ValueError:
            pass
    if job.base.card.quantization or job.tuned.card.quantization:
        return None
    job.progress.status("drift of the weights")
    try:
        drift = models.drift(job.base.loaded.model, job.tuned.loaded.model)
    except ModelError as error:
        job.warnings.append(f"no drift: {error}")
        return None
    if job.settings.out is not None:
        write_atomic(path, to_json(drift))
    return drift


def _text_rows(job: Job, task: Task) -> tuple[dict[str, Row], dict[str, Row]]:
    found = []
    for side in job.sides:
        job.progress.status(f"bits per byte · {side.role}")
        found.append(fill(side, job.store, task, task.formats[0].name, task.items, job.plan.batch_tokens, job.progress).rows)
    return found[0], found[1]


def _agreement(job: Job, task: Task) -> dict[str, Row]:
    """Unlabelled prompts: both models at once, on the base's greedy answers."""
    if job.base.card.tokenizer_hash != job.tuned.card.tokenizer_hash:
        raise TaskError(f"{task.name}: agreement needs one tokenizer for both models; theirs differ. Leave out --prompts.")
    items: Sequence[Item] = sample(task.items, job.settings.limit, job.settings.seed)
    form = task.formats[0].name
    conditions = {**job.base.conditions(task, form), "against": job.tuned.card.weights_hash}
    cell = job.store.cell(cell_key(conditions), conditions)
    have = cell.rows()
    if any(item.id not in have for item in items):
        job.progress.status(f"agreement · {task.name}")
        prepared = job.base.prepare(task, form, items)
        a, b = (side.engine(job.plan.batch_tokens) for side in job.sides)
        for row in agreement_rows(a, b, prepared, done=set(have), on_rows=lambda rows, _: cell.append(rows)):
            have[row.item] = row
    return {item.id: have[item.id] for item in items if item.id in have}


def _record(job: Job, drift: Drift | None) -> Comparison:
    s = job.settings
    tasks = tuple(_result(job, task, final=True) for task in job.tasks)
    texts = ()
    if job.text is not None and not _late(job):
        texts = (results.text_result(job.text.name, *_text_rows(job, job.text), alpha=s.alpha),)
    agreements = ()
    if job.prompts is not None:
        agreements = (results.agreement_result(job.prompts.name, _agreement(job, job.prompts), alpha=s.alpha),)
    _twins(job)
    flips: list[Flip] = []
    for task in job.tasks:
        tables = [job.table(side, task, task.formats[0].name) for side in job.sides]
        flips += results.flips(task, task.formats[0], *tables)
    headline, verdict = report.verdict_sentence(tasks, s.margin, s.alpha)
    return Comparison(
        base=job.base.card,
        tuned=job.tuned.card,
        tasks=tasks,
        verdict=verdict,
        headline=headline,
        margin=s.margin,
        alpha=s.alpha,
        flips=tuple(flips),
        texts=texts,
        agreements=agreements,
        drift=drift,
        conditions=_conditions(job),
        plan={**json.loads(job.plan.to_json()), "sentence": job.plan.sentence()},
        warnings=tuple(dict.fromkeys([*job.warnings, *job.base.notes, *job.tuned.notes])),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _twins(job: Job) -> None:
    tables = [
        {task.name: list(job.table(side, task, task.formats[0].name).values()) for task in job.tasks}
        for side in job.sides
    ]
    gates.check_twins(*tables, same_weights=job.base.card.weights_hash == job.tuned.card.weights_hash)


def _conditions(job: Job) -> dict[str, Any]:
    s = job.settings
    versions = {name: importlib.metadata.version(name) for name in ("catchment", "torch", "transformers", "peft")}
    device = job.base.card.device
    return {
        "sampling": "items are a sample of a population; the statement is about these two models",
        "intervals": f"paired over items, simultaneous over {len(job.tasks)} tasks (Bonferroni)",
        "chat_template": s.chat_template,
        "system": s.system,
        "seed": s.seed,
        "dtype": job.base.card.dtype,
        "attention": job.base.card.attention,
        "batch_policy": f"{POLICY}, {job.plan.batch_tokens} padded tokens",
        "generated_tasks": [t.name for t in job.tasks if t.scorer in GENERATED_SCORERS],
        "task_hashes": {t.name: t.hash() for t in job.tasks},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or device,
        "threads": torch.get_num_threads(),
        "versions": {**versions, "python": platform.python_version()},
    }


def broken_bounds(comparison: Comparison, bound: float) -> list[str]:
    """Tasks that break ``--fail-if-drop``: the drop is shown (the whole simultaneous interval is below 0) and its
    estimate is larger than ``bound``. One sentence each."""
    return [
        f"{r.task} dropped by {-r.difference.estimate:.3f} [{-r.difference.high:.3f}, {-r.difference.low:.3f}], "
        f"more than --fail-if-drop {bound:g}"
        for r in comparison.tasks
        if r.admitted and r.difference.high < 0 and -r.difference.estimate > bound
    ]
