"""The work of a study: rounds of workers until nothing is open, what the store holds, and the record of it."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from catchment.commands.study.calls import FILE as RESULT
from catchment.commands.study.calls import read_result
from catchment.commands.study.design import Place, read_design
from catchment.commands.study.output import claim, write
from catchment.commands.study.plan import check_contexts
from catchment.commands.study.record import Study
from catchment.commands.study.report import study_of, table_of, unread_table
from catchment.commands.study.scanning import check_scans, scans_due
from catchment.commands.study.scores import ScoreTable
from catchment.commands.study.settings import SUFFIXES, StudySettings
from catchment.commands.study.standing import Site, Stand
from catchment.commands.study.worker import Done, work
from catchment.errors import InputError, StoreError
from catchment.measuring import Progress
from catchment.runs import Leases, Store, executor

ROUNDS = 3
"""Times that cells which were left, or found damaged, are tried in one run."""
HELPERS = 8
"""Tasks of a cluster that are offered for each checkpoint; one that finds nothing to do ends at once."""
PARTS = ("segments", "cells", "tunings", "scans", "calls")
"""Folders of a store."""
LOOK = 2.0
"""Seconds between two looks at how far the workers are."""


def drive(settings: StudySettings, progress: Progress) -> Study:
    """Do what the action says, and give the record of what is there then."""
    if settings.study is not None and settings.study.suffix not in SUFFIXES:
        raise InputError(f"study {settings.action} {str(settings.study)!r}: expected a .yaml or .yml file.")
    if settings.study is None and not settings.models:
        raise InputError(f"study {settings.action}: no study; expected a YAML file, e.g. study.yaml.")
    design = read_design(settings)
    site = Site.open(settings, design)
    check_scans(site)
    if settings.action != "status":
        claim(settings)
    if settings.action == "merge":
        _merge(settings, site, progress)
    if settings.action == "run":
        _run(settings, site, progress)
    if settings.action == "status":
        stands = list(site.stands())
        return study_of(site, stands, unread_table(site, stands))
    stands, table = _read(site, progress)
    return write(settings, study_of(site, stands, table), table, progress)


def _run(settings: StudySettings, site: Site, progress: Progress) -> None:
    """Work until nothing is open, or the time is spent, or a whole round brought nothing. Rounds count where nobody
    else is at the study, or where they do not bring it on."""
    end = None if settings.hours is None else time.monotonic() + 3600 * settings.hours
    check_contexts(site)
    rounds, now = 0, sys.maxsize
    leases = Leases(site.store.root / "leases")
    with leases, _watched(site, progress, not _is_alone(settings)):
        if leases.holders():  # perhaps of processes that were killed, also where nothing is left to do
            with suppress(StoreError):
                leases.sweep()
        while rounds < ROUNDS:
            progress.status("looking at the store")
            site.forget()
            stands = list(site.stands())
            due = _due(site, stands)
            if not due:  # as the store counts rows; whether they are whole only reading them tells
                stands, _ = _read(site, progress)
                due = _due(site, stands)
            left = None if end is None else end - time.monotonic()
            if not due or (left is not None and left <= 0):
                return
            leases.sweep()
            before, now = now, _number_open(site, stands)
            done = _round(settings, site, due, stands, left, progress)
            if any(part.late for part in done):
                return
            grown = any(part.cells or part.trained for part in done)
            busy = {name for part in done for name in part.busy}
            if not grown and not busy:
                return
            if not grown:
                _wait(leases, busy, end, progress)
            if not busy or now >= before or any(part.failed for part in done):
                rounds += 1


def _wait(leases: Leases, busy: set[str], end: float | None, progress: Progress) -> None:
    """Until one of these units is free, because who held it is done with it, or gone; or the time is spent."""
    progress.status("waiting for cells that another driver is at")
    while busy <= leases.sweep() and (end is None or time.monotonic() < end):
        time.sleep(LOOK)


def _is_alone(settings: StudySettings) -> bool:
    """Whether this process does the work itself."""
    return settings.workers == 1 and settings.executor == "processes"


def _due(site: Site, stands: Sequence[Stand]) -> list[int]:
    """Checkpoints at which something is open, by number; their number where calls are."""
    open_places, places = {stand.unit.place for stand in stands if stand.open}, site.design.places
    due = [n for n, place in enumerate(places) if place in open_places or _scans_open(site, place)]
    return [*due, len(places)] if any(read_result(site.store, call) is None for call in site.design.calls) else due


def _scans_open(site: Site, place: Place) -> bool:
    """Whether a scan of a checkpoint, or of a tuning of it, is missing that can be made."""
    known = (site.known(unit) for unit in site.design.units(place)) if site.design.scans else ()
    return any(not unit.reason and any(True for _ in scans_due(site, unit)) for unit in known)


def _number_open(site: Site, stands: Sequence[Stand]) -> int:
    """Cells and calls that are open."""
    return sum(stand.open for stand in stands) + sum(read_result(site.store, c) is None for c in site.design.calls)


def _round(
    settings: StudySettings,
    site: Site,
    due: Sequence[int],
    stands: Sequence[Stand],
    left: float | None,
    progress: Progress,
) -> list[Done]:
    """One pass of all workers over the checkpoints at which something is open, which ``due`` numbers.

    A checkpoint is begun by one worker; once each has been begun, workers that are free help at the others.
    """
    alone = _is_alone(settings)
    helpers = 1 if alone else settings.workers if settings.executor == "processes" else HELPERS
    damaged = frozenset(stand.key for stand in stands if stand.key and stand.status == "missing")
    shared = (left, damaged, progress) if alone else (left, damaged)
    calls = [(work, (settings, number, *shared)) for number in [*due] * helpers]
    done, failed = [], []
    for outcome in executor(settings.executor, settings.workers).run(calls):
        if outcome.ok:
            done.append(outcome.value)
        else:
            failed.append(str(outcome.error))
    site.refresh()
    for error in failed:
        if error.startswith(f"{StoreError.__name__}: "):  # the next round would end in the same way
            raise StoreError(error.partition(": ")[2])
    if failed and not done:
        raise StoreError(f"no worker came to its end: {failed[0].rstrip('.')}. What was measured is kept.")
    for error in dict.fromkeys(failed):
        progress.status(f"a worker ended early: {error}")
    return done


def _read(site: Site, progress: Progress) -> tuple[list[Stand], ScoreTable]:
    """Where the study stands, cells whose rows turned out to be damaged counted as missing; and the scores."""
    progress.status("reading the store")
    site.forget()
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
        if not any((Path(other) / part).is_dir() for part in PARTS):
            raise InputError(
                f"--others {other!r} is no store; expected a folder with {', '.join(PARTS)} or some of them."
            )
        progress.status(f"merging {other}")
        site.store.merge(Store(other))
        merge_folders(Path(other), site.store.root)


def merge_folders(other: Path, root: Path) -> None:
    """Take over trainings, scans and results of calls that are not here, and that nobody is at. A folder is copied
    beside its name, then renamed; what a merge that was killed left half copied is copied again."""
    with Leases(root / "leases") as leases:
        for kind, file in (("tunings/*", "tuning.json"), ("scans", "scan.json"), ("calls", RESULT)):
            for folder in sorted(path.parent for path in other.glob(f"{kind}/*/{file}")):
                target = root / folder.relative_to(other)
                if folder.name.startswith(".") or (target / file).is_file():
                    continue
                lease = leases.claim(folder.name)
                if lease is not None:
                    with lease:
                        _copy(folder, target)


def _copy(folder: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.merging")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(folder, beside)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    except OSError as error:
        reason = error.strerror or "the disk is full or read-only"
        raise StoreError(f"{target} cannot be written ({reason}); free some space.") from error


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
