"""What one worker does: the open cells of one checkpoint, with its weights loaded once.

Workers share a study, and several studies a store, by leases: a model is trained by one worker at a time, and a cell of
a model that is there measured by one. Results go through the store only, so a worker may end at any moment: what it
loses is one batch of items, or the steps of a training since its last checkpoint.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from catchment.commands.study.calls import make_call, read_result
from catchment.commands.study.design import Place, Unit, read_design
from catchment.commands.study.fetched import drop_fetched, keep_within
from catchment.commands.study.pace import Meter, learn
from catchment.commands.study.scanning import key_of, scan_unit, scans_due
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.standing import Known, Remark, Site, Stand, fetch_key, read_remarks, ready_made, remark
from catchment.commands.study.tunings import check_room, is_whole, standing_tuned
from catchment.errors import StoreError
from catchment.measuring import OutOfTimeError, Progress, Subject, batch_tokens, failure, fill
from catchment.models import LoadedModel
from catchment.records import ModelCard
from catchment.runs import Leases

LEAST = 1 << 17
"""Free bytes below which whatever failed is taken to have failed for want of room."""
SAVE_EVERY = 60.0
"""Seconds between checkpoints of a training: what a worker that is lost costs at most."""


@dataclass
class Done:
    """What a worker did: models loaded and trained, cells filled, those that failed, and the units that others were at;
    ``seconds`` of forward passes alone."""

    loads: int = 0
    trained: int = 0
    cells: int = 0
    failed: int = 0
    busy: frozenset[str] = frozenset()
    late: bool = False
    seconds: float = 0.0


@dataclass
class Bench:
    """A worker at a checkpoint, whose weights are read when they are first needed."""

    site: Site
    place: Place | None
    leases: Leases
    progress: Progress
    until: float
    done: Done = field(default_factory=Done)
    tokens: float = 0.0
    fetched: bool = False
    _base: Subject | None = None

    def check(self) -> None:
        """Raises OutOfTimeError once the time is spent."""
        if time.monotonic() > self.until:
            raise OutOfTimeError("the time of this run is spent.")

    @property
    def base(self) -> Subject:
        """The checkpoint, loaded."""
        if self._base is None:
            assert self.place is not None
            self.progress.status(f"reading {self.place.name}")
            far = self.site.is_far(self.place)
            subject = self.site.subject(self.place)
            subject.check = self.check
            _ = subject.loaded
            self._base = subject
            self.done.loads += 1
            if far:
                self.fetched = True
                self.site.fetched(self.place, self._base.card)
        return self._base

    def release(self) -> None:
        if self._base is not None:
            learn(self.site.store, self._base.card, self.tokens, self.done.seconds)
            self._base.loaded.release()
            self._base = None
        if self.place is not None and self.fetched and self.site.design.settings.disk is not None:
            drop_fetched(self.place)


def work(
    settings: StudySettings,
    number: int,
    seconds: float | None,
    damaged: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> Done:
    """Measure what is open of checkpoint ``number`` and nobody else is at, within so many seconds; behind the last
    checkpoint come the calls.

    Args:
        damaged: Keys of cells whose rows were found to be damaged, though the store counts them.
    """
    disable_progress_bar()
    site = Site.open(settings, read_design(settings))
    until = float("inf") if seconds is None else time.monotonic() + seconds
    with Leases(site.store.root / "leases") as leases:
        place = site.design.places[number] if number < len(site.design.places) else None
        bench = Bench(site, place, leases, progress or Progress(), until)
        try:
            if place is None:
                _calls(bench)
            else:
                _place(bench, place, damaged)
        except OutOfTimeError:
            bench.done.late = True
        finally:
            bench.release()
            site.store.compact_used()
    return bench.done


def _place(bench: Bench, place: Place, damaged: frozenset[str]) -> None:
    """The open cells of one checkpoint."""
    site = bench.site
    if site.is_far(place) and not isinstance(site.card(place), ModelCard):
        with _claimed(bench, fetch_key(place)) as ours:
            if not ours:
                return
            with _kept_to(bench, fetch_key(place)):
                _ = bench.base
    counts, remarks = dict(site.store.counts()), read_remarks(site.store)
    counts |= dict.fromkeys(damaged, 0)
    for unit in site.design.units(place):
        bench.check()
        known = site.known(unit)
        due = [stand for stand in site.stands_of(known, counts, remarks) if stand.open]
        if (due or any(scans_due(site, known))) and not known.reason:
            _unit(bench, known, due)


def _calls(bench: Bench) -> None:
    """The calls that have no result, each under a lease."""
    store = bench.site.store
    for call in bench.site.design.calls:
        bench.check()
        if read_result(store, call) is None:
            with _claimed(bench, call.key) as ours:
                if ours and read_result(store, call) is None:
                    with _kept_to(bench, call.key):
                        make_call(call, store, bench.progress, bench.check)
                        remark(store, call.key, Remark())
                        bench.done.cells += 1


def _unit(bench: Bench, known: Known, due: Sequence[Stand]) -> None:
    """The open cells of one model under test."""
    if not known.unit.trains:
        with _subject(bench, known.unit) as opened:
            if known.card is None:
                known = _fetched(bench, known, opened)
                due = [stand for stand in bench.site.stands_of(known, bench.site.store.counts(), {}) if stand.open]
            if known.card is None:
                return
            _cells(bench, opened, due)
            _scans(bench, known, opened)
        return
    site = bench.site
    with _claimed(bench, known.key) as ours:
        if ours and (not due or not all(_is_whole(bench, stand) for stand in due)):
            with _kept_to(bench, known.key):
                _tuned(bench, known)
    keep_within(site.store, bench.leases, site.design.settings.disk)


def _fetched(bench: Bench, known: Known, opened: Callable[[], Subject]) -> Known:
    """What is known of a tuned model of the hub after it was fetched, or could not be."""
    place = ready_made(known.unit)
    with _claimed(bench, fetch_key(place)) as ours:
        if ours:
            with _kept_to(bench, fetch_key(place)):
                bench.site.fetched(place, opened().card)
    return bench.site.known(known.unit)


def _tuned(bench: Bench, known: Known) -> None:
    """Train a unit, or take up its artefact, and measure what is open of it."""
    site, unit = bench.site, known.unit
    base = bench.base.loaded
    if not is_whole(site.store, known.key):
        bench.progress.status(f"training {unit.name}")
        check_room(site.store, 2.0 * base.card.parameters)
    watch = partial(_watchers, bench)
    assert unit.recipe is not None
    rows = site.rows(unit.recipe)
    with standing_tuned(site.store, known.key, unit, base, rows, site.design.asked, watch) as (loaded, fresh):
        bench.done.trained += fresh
        opened = _asked(bench, loaded)
        site.forget()
        now = site.known(unit)
        due = [stand for stand in site.stands_of(now, {}, {}) if stand.open]
        _cells(bench, lambda: opened, due)
        _scans(bench, now, lambda: opened)


def _asked(bench: Bench, loaded: LoadedModel) -> Subject:
    """A loaded model as a model under test."""
    s = bench.site.design.settings
    subject = Subject("tuned", loaded, {}, bench.site.design.asked, s.drop_long)
    subject.check = bench.check
    return subject


@contextmanager
def _subject(bench: Bench, unit: Unit) -> Iterator[Callable[[], Subject]]:
    """A model that is there: the base, or a tuned one that nobody here trained; loaded when it is first asked."""
    if unit.recipe is None:
        yield lambda: bench.base
        return
    subject = bench.site.subject(ready_made(unit))
    subject.check = bench.check

    def opened() -> Subject:
        if subject._loaded is None:
            bench.done.loads += 1
        _ = subject.loaded
        return subject

    yield opened
    if subject._loaded is not None:
        subject.loaded.release()


def _cells(bench: Bench, opened: Callable[[], Subject], due: Sequence[Stand]) -> None:
    """Measure cells of one model, each under a lease."""
    for stand in due:
        bench.check()
        if _is_whole(bench, stand):
            continue
        with _claimed(bench, stand.key) as ours:
            if ours and not _is_whole(bench, stand):
                with _kept_to(bench, stand.key):
                    _measure(bench, opened(), stand)


def _scans(bench: Bench, known: Known, opened: Callable[[], Subject]) -> None:
    """The missing scans of one model, each under a lease."""
    assert known.card is not None
    for axis in list(scans_due(bench.site, known)):
        bench.check()
        key = key_of(bench.site, axis, known.card)
        with _claimed(bench, key) as ours:
            if ours and axis in scans_due(bench.site, known):
                with _kept_to(bench, key):
                    bench.progress.status(f"{known.unit.name} · {axis.name}")
                    scan_unit(bench.site, axis, known.card, opened(), bench.progress)
                    remark(bench.site.store, key, Remark())
                    bench.done.cells += 1


def _measure(bench: Bench, subject: Subject, stand: Stand) -> None:
    """The missing items of one cell."""
    question, settings = stand.question, bench.site.design.settings
    assert question.task is not None
    bench.progress.status(f"{stand.unit.name} · {question.name} · {question.format}")
    batch = batch_tokens(subject, settings.batch_tokens)
    meter = Meter(bench.progress)
    measured = fill(subject, bench.site.store, question.task, question.format, question.items, batch, meter)
    bench.tokens += meter.tokens
    bench.done.seconds += measured.seconds
    left_out = len(question.items) - len(measured.rows)
    remark(bench.site.store, stand.key, Remark(left_out=left_out))
    bench.done.cells += 1


def _is_whole(bench: Bench, stand: Stand) -> bool:
    """Whether another worker has filled the cell since this one looked."""
    store, task = bench.site.store, stand.question.task
    assert task is not None
    if not stand.key or not (store.places(stand.key) or store.folder(stand.key).exists()):
        return False
    rows = store.cell(stand.key, {"task": task.hash()}).rows()
    return all(item.id in rows for item in stand.question.items)


@contextmanager
def _claimed(bench: Bench, key: str) -> Iterator[bool]:
    """Inside, nobody else does this work, where it could be had."""
    lease = bench.leases.claim(key)
    if lease is None:
        bench.done.busy |= {key}
        yield False
        return
    with lease:
        yield True


@contextmanager
def _kept_to(bench: Bench, key: str) -> Iterator[None]:
    """What fails inside is a remark on this cell or training, and costs nothing else. A store that cannot be written
    and a time that is spent end the worker."""
    try:
        yield
    except (OutOfTimeError, StoreError, BrokenPipeError):  # the last: who watches is gone
        raise
    except Exception as error:
        if reason := _unwritable(error, bench.site.store.root):
            raise StoreError(
                f"{bench.site.store.root} cannot be written ({reason}); free some space and run the same command "
                "again, what was measured is kept."
            ) from error
        said = failure(error) or f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        remark(bench.site.store, key, Remark(reason=said))
        bench.done.failed += 1


def _unwritable(error: BaseException, root: Path) -> str:
    """Why the store cannot be written, where that is what an error means; torch and safetensors raise errors of their
    own, of which only the disk tells what they are."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        return error.strerror or "the disk is full"
    full = "No space left on device"
    if full in str(error) or shutil.disk_usage(root).free < LEAST:
        return full
    return "" if error.__cause__ is None else _unwritable(error.__cause__, root)


def _watchers(bench: Bench, tuning: Any) -> list[TrainerCallback]:
    return [_Deadline(bench)]


class _Deadline(TrainerCallback):
    """Checkpoints by the clock, because short trainings need none and long steps many; and the end of a training when
    the time is spent, at a checkpoint from which it goes on."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.ending, self.saved = bench, False, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        if state.global_step < state.max_steps and now > min(self.bench.until, self.saved + SAVE_EVERY):
            self.ending, self.saved, control.should_save = now > self.bench.until, now, True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.ending:
            self.bench.check()
