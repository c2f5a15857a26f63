"""``python -m tests.unit.runs.crashes WHAT HOW STRIDE FOLDER``: a store whose writer is killed, or finds the disk full,
at every STRIDE-th of its calls to the system. Prints how many there were. Nothing is flushed."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catchment.errors import StoreError
from catchment.records import Row
from catchment.runs import Cell, Store, append_all, cell_key, compaction, merging

CALLS = ("open", "mkdir", "link", "fsync", "unlink", "replace", "rmdir")
NAMES = ("one", "two")
LAST = 3
"""Rows of each cell in the end, and appends of each."""


def cell(store: Store, name: str) -> Cell:
    conditions = {"name": name}
    return store.cell(cell_key(conditions), conditions)


def rows(name: str, *numbers: int) -> list[Row]:
    return [Row(f"{name} {number}", number / 3, "x" * 50) for number in numbers]


def work(root: Path, acknowledge: Callable[[str], None]) -> None:
    """Three commands, each with its own view of the store: some append cell by cell, some to all cells together."""
    for number in range(LAST):
        store = Store(root)
        cells = {name: cell(store, name) for name in NAMES}
        due = {name: rows(name, number) for name in NAMES if f"{name} {number}" not in cells[name].rows()}
        if number % 3 == 2:
            append_all([(cells[name], fresh) for name, fresh in due.items()])
            for name in due:
                acknowledge(f"{name} {number}")
        else:
            for name, fresh in due.items():
                cells[name].append(fresh)
                acknowledge(f"{name} {number}")
        store.compact_used()


def merge(root: Path, acknowledge: Callable[[str], None]) -> None:
    """A store that has one row, in a chunk, merges another one, which has the rest in chunks and segments."""
    other = Store(root.parent / "other")
    if not other.root.exists():
        cells = {name: cell(other, name) for name in NAMES}
        append_all([(one, rows(name, 0)) for name, one in cells.items()])
        append_all([(one, rows(name, 1)) for name, one in cells.items()])
        cells["two"].append(rows("two", 2))
        cells["one"].note(["slow"])
    mine = Store(root)
    if "one 2" not in cell(mine, "one").rows():
        cell(mine, "one").append(rows("one", 2))
    acknowledge("one 2")
    store = Store(root)
    store.merge(other)
    for name in NAMES:
        for number in range(LAST):
            acknowledge(f"{name} {number}")
    store.compact_used()
    assert cell(store, "one").notes() == ["slow"]


WORK = {"append": work, "merge": merge}


def kept(root: Path) -> set[str]:
    """Items that the store has; what was damaged would be a warning, and warnings are errors here."""
    store = Store(root)
    items: set[str] = set()
    for name in NAMES:
        table = cell(store, name).rows()
        assert list(table.values()) == rows(name, *(int(item.split()[1]) for item in table)), name
        items |= table.keys()
    return items


class Fault:
    """Counts the calls, and strikes at one of them: before it is carried out."""

    def __init__(self, at: int, strike: Callable[[], None]) -> None:
        self.at, self.strike, self.count = at, strike, 0
        self.real = {name: getattr(os, name) for name in CALLS}

    def __enter__(self) -> Fault:
        for name, call in self.real.items():
            setattr(os, name, self.counted(name, call))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self.real.items():
            setattr(os, name, call)

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.strike()
            return None if name == "fsync" else call(*args, **options)

        return counted


def killed(what: str, root: Path, at: int) -> tuple[set[str], bool]:
    """What a child acknowledged before it was killed at a call, and whether it came to its end instead."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            with Fault(at, lambda: os._exit(9)):
                WORK[what](root, lambda item: os.write(write, f"{item}\n".encode()) and None)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as told:
        acknowledged = set(told.read().splitlines())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return acknowledged, code == 0


def full(what: str, root: Path, at: int) -> tuple[set[str], bool]:
    """The same where the disk is full at one call: an error that says so, or nothing at all."""
    acknowledged: set[str] = set()

    def strike() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Fault(at, strike) as fault, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="rows of this run are kept")
        try:
            WORK[what](root, acknowledged.add)
        except StoreError as error:
            if "disk is full" not in str(error):
                raise
    return acknowledged, fault.count < at


def main(what: str, how: str, stride: int, folder: Path) -> int:
    warnings.simplefilter("error")
    compaction.MANY = 2
    merging.BATCH_CELLS = 1
    with Fault(0, lambda: None):
        WORK[what](folder / "first", lambda item: None)
    everything = {f"{name} {number}" for name in NAMES for number in range(LAST)}
    at, ended = 1 - stride, False
    while not ended:
        at += stride
        root = folder / str(at)
        acknowledged, ended = {"kill": killed, "full": full}[how](what, root, at)
        found = kept(root)
        assert acknowledged <= found <= everything, (at, sorted(acknowledged - found))
        WORK[what](root, lambda item: None)
        assert kept(root) == everything, at
        assert set(Store(root).counts().values()) == {LAST}, at
        assert not list(root.glob("cells/*/*/*.jsonl")), at
        assert len(Store(root).index.segments()) <= 2, at
    return at


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
