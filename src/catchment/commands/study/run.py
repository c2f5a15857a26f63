"""``catchment.study``: work through a grid, say where it stands, and report what it shows."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from catchment.commands.study.analysis import analyse
from catchment.commands.study.calls import FILE as RESULT
from catchment.commands.study.calls import read_result
from catchment.commands.study.choice import losses
from catchment.commands.study.design import read_design
from catchment.commands.study.export import write_tables
from catchment.commands.study.foreign import TableSettings, read_scores
from catchment.commands.study.lm_eval_logs import read_lm_eval
from catchment.commands.study.page import write_page
from catchment.commands.study.plan import check_contexts
from catchment.commands.study.record import FILE, Flag, Study
from catchment.commands.study.report import study_of, table_of
from catchment.commands.study.scores import Pairs
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.standing import Site, Stand
from catchment.commands.study.worker import Done, work
from catchment.errors import InputError, StoreError
from catchment.measuring import Progress
from catchment.options import as_settings, read_config
from catchment.records import to_json
from catchment.runs import Store, claim_folder, executor, write_atomic

ROUNDS = 3
"""Times that cells which were left, or found damaged, are tried in one run."""
HELPERS = 8
"""Tasks of a cluster that are offered for each checkpoint; one that finds nothing to do ends at once."""
LOOK = 2.0
"""Seconds between two looks at how far the workers are."""


def study(study: Any, action: str = "run", *, progress: Progress | None = None, **options: Any) -> Study:
    """A grid of checkpoints, tunings and tasks: what each model gained, lost and kept, and where.

    Args:
        study: a YAML file, or a mapping with its content.
        action: ``"run"``, ``"status"``, ``"report"`` or ``"merge"``.
        progress: told what goes on.
        **options: the fields of :class:`~catchment.commands.study.settings.StudySettings`; they stand above the file.

    Returns:
        The record; with ``out`` also written to ``out/study.json``, with the page in ``out/report.html``.

    Raises:
        CatchmentError: bad input; the message names the value, what was expected and the fix.

    Cost: what :func:`catchment.commands.study.plan.plan` says; what is in the store costs nothing.

    Example:
        >>> record = study("study.yaml", hours=2, workers=2)  # doctest: +SKIP
        >>> record.counts["missing"]  # doctest: +SKIP
        0
    """
    closed = {"dry_run", "study"}
    as_settings(StudySettings, options={"action": action, **options}, caller="study()", closed=closed)
    given = dict(study) if isinstance(study, Mapping) else read_config(Path(study), StudySettings)
    if not isinstance(study, Mapping):
        given["study"] = Path(study)
    options = {**given, "action": action, **options}
    settings = as_settings(StudySettings, options=options, caller="study()", closed={"dry_run"})
    return run(settings, progress or Progress())


def run(settings: StudySettings, progress: Progress) -> Study:
    """:func:`study` with checked settings."""
    if settings.csv is not None or settings.lm_eval is not None:
        return _foreign(settings, progress)
    if settings.study is None and not settings.models:
        raise InputError(f"study {settings.action}: no study; expected a YAML file, e.g. study.yaml.")
    design = read_design(settings)
    site = Site.open(settings, design)
    _claim(settings)
    if settings.action == "merge":
        _merge(settings, site, progress)
    if settings.action == "run":
        _run(settings, site, progress)
    stands, table = _read(site, progress)
    record = study_of(site, stands, table)
    if settings.action != "status":
        _write(settings, record, table, progress)
    return record


def _claim(settings: StudySettings) -> None:
    """Make OUT the folder of this study; the grid may grow, the name stays."""
    if settings.out is not None:
        claim_folder(settings.out, {"study": settings.label}, "study")


def _run(settings: StudySettings, site: Site, progress: Progress) -> None:
    """Work until nothing is open, or the time is spent, or a whole round brought nothing."""
    end = None if settings.hours is None else time.monotonic() + 3600 * settings.hours
    check_contexts(site)
    with _watched(site, progress, not _is_alone(settings)):
        for _ in range(ROUNDS):
            stands, _table = _read(site, progress)
            left = None if end is None else end - time.monotonic()
            if not _due(site, stands) or (left is not None and left <= 0):
                return
            done = _round(settings, site, stands, left, progress)
            if any(part.late for part in done) or not any(part.cells or part.trained or part.busy for part in done):
                return


def _is_alone(settings: StudySettings) -> bool:
    """Whether this process does the work itself."""
    return settings.workers == 1 and settings.executor == "processes"


def _due(site: Site, stands: Sequence[Stand]) -> list[int]:
    """Checkpoints at which something is open, by number; their number where calls are."""
    open_places = {stand.unit.place for stand in stands if stand.open}
    scans, places = bool(site.design.scans), site.design.places
    due = [n for n, place in enumerate(places) if place in open_places or scans]
    return [*due, len(places)] if any(read_result(site.store, call) is None for call in site.design.calls) else due


def _round(
    settings: StudySettings, site: Site, stands: Sequence[Stand], left: float | None, progress: Progress
) -> list[Done]:
    """One pass of all workers over the checkpoints at which something is open.

    A checkpoint is begun by one worker; once each has been begun, workers that are free help at the others.
    """
    due, alone = _due(site, stands), _is_alone(settings)
    helpers = 1 if alone else settings.workers if settings.executor == "processes" else HELPERS
    damaged = frozenset(stand.key for stand in stands if stand.key and stand.status == "missing")
    shared = (left, damaged, progress) if alone else (left, damaged)
    calls = [(work, (settings, number, *shared)) for number in due * helpers]
    done, failed = [], []
    for outcome in executor(settings.executor, settings.workers).run(calls):
        if outcome.ok:
            done.append(outcome.value)
        else:
            failed.append(str(outcome.error))
    if failed and not done:
        raise StoreError(f"no worker came to its end: {failed[0]}. What was measured is kept.")
    for error in dict.fromkeys(failed):
        progress.status(f"a worker ended early: {error}")
    return done


def _read(site: Site, progress: Progress) -> tuple[list[Stand], Any]:
    """Where the study stands, cells whose rows turned out to be damaged counted as missing; and the scores."""
    progress.status("reading the store")
    stands = list(site.stands())
    table, short = table_of(site, stands)
    if short:
        again = {stand.cell: stand for stand in short}
        stands = [again.get(stand.cell, stand) for stand in stands]
    return stands, table


def _merge(settings: StudySettings, site: Site, progress: Progress) -> None:
    """Take over the rows and tunings of other stores."""
    if not settings.others:
        raise InputError("study merge: no folders to merge; expected --others FOLDER ..., stores of other machines.")
    for other in settings.others:
        if not Path(other).is_dir():
            raise InputError(f"--others {other!r}: no such folder; expected a store, as --store names it.")
        progress.status(f"merging {other}")
        site.store.merge(Store(other))
        merge_folders(Path(other), site.store.root)


def merge_folders(other: Path, root: Path) -> None:
    """Take over trainings, scans and results of calls that are not here; a folder is copied beside its name, then
    renamed."""
    import shutil

    for kind, file in (("tunings/*", "tuning.json"), ("scans", "scan.json"), ("calls", RESULT)):
        for folder in sorted(path.parent for path in other.glob(f"{kind}/*/{file}")):
            target = root / folder.relative_to(other)
            if not (target / file).is_file():
                beside = target.with_name(f".{target.name}.merging")
                shutil.rmtree(beside, ignore_errors=True)
                try:
                    shutil.copytree(folder, beside)
                    shutil.rmtree(target, ignore_errors=True)
                    beside.rename(target)
                except OSError as error:
                    raise StoreError(f"{target} cannot be written ({error.strerror}); free some space.") from error


def _write(settings: StudySettings, record: Study, table: Any, progress: Progress) -> None:
    """The record, the page and the tables, in OUT."""
    if settings.out is None:
        return
    progress.status("writing the page")
    with Store(settings.out).lock("study"):
        write_tables(table, settings.out)
        write_atomic(settings.out / FILE, to_json(record))
        write_page(record, settings.out / "report.html")


def _foreign(settings: StudySettings, progress: Progress) -> Study:
    """A report on somebody else's scores."""
    if settings.action != "report":
        raise InputError(f"--csv and --lm-eval are read by `study report`, not by `study {settings.action}`.")
    _claim(settings)
    progress.status("reading the scores")
    if settings.csv is not None:
        table = read_scores(settings.csv, settings.label, _told(settings))
    else:
        table = read_lm_eval(str(settings.lm_eval), settings.base or None, settings.metric or None)
    record = dataclasses.replace(analyse(table), created=datetime.now(UTC).isoformat(timespec="seconds"))
    _write(settings, record, table, progress)
    return record


def _told(settings: StudySettings) -> TableSettings:
    """What the study file says of a foreign table's tunings and tasks."""
    if not settings.models:
        return TableSettings(alpha=settings.alpha, margin=settings.margin)
    design = read_design(settings)
    refused = {q.name: q.reason for q in design.questions if q.status == "refused"}
    return TableSettings(
        contrasts=tuple(Pairs(name, pairs) for name, pairs in design.contrasts.items()),
        in_domain={recipe.card.data: recipe.card.in_domain for recipe in design.recipes},
        flags=tuple(Flag("unlabelled test set", name, reason, refused=True) for name, reason in refused.items()),
        chance={q.name: q.task.chance_level for q in design.questions if q.task is not None},
        alpha=settings.alpha,
        margin=settings.margin,
    )


@contextmanager
def _watched(site: Site, progress: Progress, apart: bool) -> Iterator[None]:
    """Say how far workers in other processes are, as the store shows it."""
    if not apart:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            began = time.monotonic()
            stands = list(site.stands())
            done = sum(stand.status == "done" for stand in stands)
            progress.status(f"{done:,} of {len(stands):,} cells")
            over.wait(10 * (time.monotonic() - began))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def broken(record: Study, settings: StudySettings) -> list[str]:
    """What breaks ``--fail-if-drop``: a drop that is shown, of any tuning; and gates that refused a task."""
    if settings.fail_if_drop is None:
        return []
    lines = [f"{flag.where}: {flag.sentence}" for flag in record.flags if flag.refused]
    if record.verdicts:
        return [*lines, *losses(record.verdicts, settings.fail_if_drop)]
    return lines + [
        f"{change.task} dropped by {-change.interval.estimate:.3f} [{-change.interval.high:.3f}, "
        f"{-change.interval.low:.3f}], more than --fail-if-drop {settings.fail_if_drop:g}, in {change.tuning} of "
        f"{change.model} at {change.revision}"
        for change in record.changes
        if change.interval.high < 0 and -change.interval.estimate > settings.fail_if_drop
    ]


def unproven(record: Study, settings: StudySettings) -> list[str]:
    """What a gate that passes does not say."""
    if settings.fail_if_drop is None or record.headline == "complete":
        return []
    return [f"{record.counts.get('cells', 0) - record.counts.get('done', 0):,} cells of the study are not there"]
