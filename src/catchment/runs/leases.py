"""Leases: processes, also of several machines with one shared folder, share named units of work.

A unit that is claimed is the folder ``units/<name>`` with one empty file, the mark, whose name nobody else ever uses.

- To claim is to rename a folder that holds a mark to ``units/<name>``. The system refuses it while a folder with a mark
  is there, so of many one wins.
- To release, or to free a unit whose holder is gone, is to remove that very mark. Who is late removes nothing, because
  a mark that was removed never comes back.

No lock is held at any time, so a process that is killed or stopped anywhere blocks nobody.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, unquote

from catchment.errors import InputError, finish
from catchment.runs.files import explained
from catchment.runs.heartbeats import Heart, Process, read_beat

INTERVAL, PATIENCE = 2.0, 15.0
"""Seconds between heartbeats, and of silence after which a holder counts as gone."""
LONGEST = 200
"""Bytes of the name of a unit in a path."""
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


@dataclass(frozen=True)
class Holder:
    """One line of a listing: a process and the units it holds. ``alive`` is ``None`` where one look does not tell: a
    process of another machine, of which the next look says whether its heartbeat goes on."""

    process: Process | None
    units: tuple[str, ...]
    alive: bool | None


class Leases:
    """Units of work under one folder, each held by one process at a time. Make one object per process.

    A unit is free again when its holder releases it, ends, or is silent for ``patience`` seconds; on one machine a
    holder that was killed is replaced at once. Clocks are not compared between machines, and the wall clock is not
    read. A holder that was stopped and wakes up may have been replaced: :attr:`Lease.lost`. So what is done under a
    lease must be harmless when done twice, as rows of a store are; whether a unit is done already is asked after the
    claim.

    Cost: about 0.2 ms per claim and release on a local disk; only units that are claimed have files. One thread
    per object beats every ``interval`` seconds.

    Args:
        root: The folder; created by the first claim.
        interval: Seconds between two heartbeats of this process.
        patience: Seconds of silence after which another holder counts as gone.

    Raises:
        InputError: ``patience`` is less than two intervals.

    >>> import tempfile
    >>> with Leases(tempfile.mkdtemp()) as ours, Leases(ours.root) as theirs:
    ...     lease = ours.claim("unit 1")
    ...     print(theirs.claim("unit 1"))
    ...     lease.release()
    ...     print(theirs.claim("unit 1").name)
    None
    unit 1
    """

    def __init__(self, root: str | Path, interval: float = INTERVAL, patience: float = PATIENCE) -> None:
        if not 0 < 2 * interval <= patience:
            raise InputError(
                f"interval is {interval} and patience {patience}; expected seconds, with a patience of two intervals "
                "or more, because a holder is heard once in an interval."
            )
        self.root, self.interval, self.patience = Path(root), interval, patience
        self._units, self._serials = self.root / "units", itertools.count(1)
        self._start_over()

    def _start_over(self) -> None:
        self._heart = Heart(self.root / "holders", self.interval, self.patience)
        self.held: dict[str, Lease] = {}
        self._close = weakref.finalize(self, _close, self._heart, self.held, self._units)

    def claim(self, name: str) -> Lease | None:
        """Hold a unit; ``None`` while another holder is alive, also one of this process.

        Raises:
            StoreError: The disk is full or read-only.
            InputError: The name is empty or too long for a file.
        """
        unit = self._units / _to_file(name)
        if self._heart.pid != os.getpid():  # forked: what was held belongs to the parent
            self._close.detach()
        if not self._close.alive:
            self._start_over()
        self._heart.start()
        with explained(unit):
            if not self._free(unit):
                return None
            lease = Lease(name, unit / f"{self._heart.token}-{next(self._serials)}", self)
            return lease if self._put(lease, unit) else None

    def _free(self, unit: Path) -> bool:
        """Whether a unit has no holder; marks of holders that are gone are removed."""
        for mark in _names(unit):
            if not self._heart.gone(_token(mark)):
                return False
            with suppress(FileNotFoundError):
                os.unlink(unit / mark)
        with suppress(OSError):  # not all file systems rename over an empty folder
            os.rmdir(unit)
        return True

    def _put(self, lease: Lease, unit: Path) -> bool:
        """Give a unit its mark, unless another one is there."""
        beside = self._heart.folder / lease.mark.name
        os.makedirs(beside)
        os.close(os.open(beside / lease.mark.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        self._units.mkdir(exist_ok=True)
        self.held[lease.mark.name] = lease
        try:
            os.rename(beside, unit)
        except OSError as error:
            if lease.lost:  # else the answer of a network file system came twice
                del self.held[lease.mark.name]
                shutil.rmtree(beside, ignore_errors=True)
                if error.errno not in _TAKEN:
                    raise
                return False
        return True

    def holders(self) -> list[Holder]:
        """Who holds what, for people: processes that hold units or are ready to, those with most units first. Nothing
        is written."""
        units: dict[str, list[str]] = {token: [] for token in _names(self.root / "holders")}
        for name, mark in _marks(self._units):
            units.setdefault(_token(mark), []).append(unquote(name))
        holders = [self._holder(token, tuple(sorted(names))) for token, names in units.items()]
        return sorted(holders, key=lambda holder: (-len(holder.units), holder.units))

    def sweep(self) -> set[str]:
        """Free the units whose holders are gone; returns the names of those that are still held. A holder of another
        machine counts as gone once this object has heard nothing of it for ``patience`` seconds, so it takes several
        looks.

        Raises:
            StoreError: The disk is full or read-only.
        """
        if not self._close.alive or self._heart.pid != os.getpid():
            return {unquote(name) for name, _ in _marks(self._units)}
        self._heart.start()
        with explained(self._units):
            return {unquote(name) for name in _names(self._units) if not self._free(self._units / name)}

    def _holder(self, token: str, units: tuple[str, ...]) -> Holder:
        beat = read_beat(self.root / "holders" / token)
        process = None if beat is None else beat.process
        if self._heart.gone(token):
            return Holder(process, units, False)
        heard = self._heart.moved(token) or (process is not None and process.near)
        return Holder(process, units, True if heard else None)

    def close(self) -> None:
        """Release all that is held and end the thread; also done when the object is dropped and at exit."""
        self._close()

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lease:
    """A unit that this process holds; as a context manager it is released at the end of the block. Made by
    :meth:`Leases.claim`."""

    def __init__(self, name: str, mark: Path, leases: Leases) -> None:
        self.name = name
        self.mark = mark
        self._leases = leases  # which ends, and releases everything, when nobody refers to it
        self._pid = os.getpid()

    @property
    def lost(self) -> bool:
        """Whether the unit is not held any more: released, or taken over by another process while this one was silent
        for too long. Costs one look at a file."""
        try:
            with open(self.mark, "rb"):  # a network file system asks its server when a file is opened
                return False
        except OSError:
            return True

    def release(self) -> None:
        """Free the unit; nothing where it is lost, or in a process that was forked from the holder.

        Raises:
            StoreError: The mark cannot be removed; the unit is free when this process ends.
        """
        if self._pid == os.getpid() and self._leases.held.pop(self.mark.name, None) is not None:
            with explained(self.mark):
                _remove(self.mark)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        finish(self.release, error)


def _remove(mark: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(mark)
    with suppress(OSError):  # somebody else holds it already
        os.rmdir(mark.parent)


def _close(heart: Heart, held: dict[str, Lease], units: Path) -> None:
    """Release everything, and remove what processes that are gone left behind."""
    if heart.pid != os.getpid() or not heart.started:
        return
    with suppress(OSError):
        for lease in list(held.values()):
            _remove(lease.mark)
        tokens = {_token(mark) for _, mark in _marks(units)}
        for token in _names(heart.root):
            if token not in tokens and heart.gone(token):
                shutil.rmtree(heart.root / token, ignore_errors=True)
        for name in _names(units):
            with suppress(OSError):  # a process that was killed left it empty
                os.rmdir(units / name)
    held.clear()
    heart.stop()


def _marks(units: Path) -> Iterator[tuple[str, str]]:
    for name in _names(units):
        for mark in _names(units / name):
            yield name, mark


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _token(mark: str) -> str:
    return mark.partition("-")[0]


def _to_file(name: str) -> str:
    path = quote(name, safe=" ,=+@")
    path = "%2E" + path[1:] if path.startswith(".") else path
    if not 0 < len(path) <= LONGEST:
        raise InputError(
            f"the unit {name[:40]!r} has {len(path)} bytes in a path; expected 1 to {LONGEST}. "
            "Use a key of its content."
        )
    return path
