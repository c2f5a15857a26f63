"""The store: cells of item rows that survive a crash, under one folder."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catchment.errors import InputError, StoreError
from catchment.records import Row
from catchment.runs import segments
from catchment.runs.cells import canonical_json
from catchment.runs.chunks import TornError, decode, encode
from catchment.runs.files import explained, make_folder, write_atomic, write_new
from catchment.runs.folders import locked

CONDITIONS, DONE = "conditions.json", "DONE"
SEGMENT_CELLS = 2000  # held in memory at once while compacting


class StoreWarning(UserWarning):
    """Something in the store was damaged and is left out; what it held will be evaluated again."""


@dataclass(frozen=True)
class CellInfo:
    """One line of a listing. ``rows`` is known for finished cells."""

    key: str
    finished: bool
    rows: int | None


class Store:
    """Cells under one folder: ``root/cells/ab/abcd.../`` while they grow, ``root/segments/`` when compacted.

    Args:
        root: The folder; created when the first row is written.

    Example::

        store = Store(out / "store")
        with store.lock("compare"):
            cell = store.cell(cell_key(conditions), conditions)
            cell.append(evaluate(cell.missing(ids)))
            cell.finish()
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._named: set[str] = set()
        self._indexed: tuple[str, ...] = ()
        self._places: dict[str, segments.Place] = {}

    def lock(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the store for this process; see :func:`catchment.runs.folders.locked` for what is promised."""
        return locked(self.root, purpose)

    def cell(self, key: str, conditions: Mapping[str, Any]) -> Cell:
        """The cell with this key; nothing is written until rows are appended.

        Raises:
            InputError: The key is not a hex SHA-256, or the conditions are not JSON.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise InputError(f"cell key {key!r}; expected 64 hex digits, as cell_key returns them.")
        return Cell(self, key, json.loads(canonical_json(conditions)))

    def cells(self) -> list[CellInfo]:
        """All cells, sorted by key. Compacted cells cost one index read together; others one folder look each."""
        places = self.places()
        found = {key: CellInfo(key, True, place.rows) for key, place in places.items()}
        for folder in self._loose():
            if folder.name not in found:
                done = _read_done(folder)
                found[folder.name] = CellInfo(folder.name, done is not None, done)
        return [found[key] for key in sorted(found)]

    def conditions(self, key: str) -> dict[str, Any]:
        """The conditions a cell was made under. Raises StoreError when the store has no such cell."""
        path = self.folder(key) / CONDITIONS
        place = None if path.exists() else self.places().get(key)
        try:
            if place is not None:
                return segments.read_conditions(self.root / "segments", place)
            return dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"the conditions of cell {key[:12]} in {self.root} cannot be read ({type(error).__name__}); "
                "expected a cell that was written before. List the cells to see which there are."
            ) from None

    def compact(self) -> int:
        """Merge finished cells into segments and drop their chunks; returns how many. Hold the lock meanwhile.

        Safe to interrupt: the index is written last, and chunks are dropped only after it.
        """
        finished = [folder for folder in self._loose() if _read_done(folder) is not None]
        for start in range(0, len(finished), SEGMENT_CELLS):
            batch = finished[start : start + SEGMENT_CELLS]
            cells = [Cell(self, folder.name, self.conditions(folder.name)) for folder in batch]
            content = [(cell.key, cell.conditions, list(cell.rows().values())) for cell in cells]
            segments.write_segment(self.root / "segments", content)
            for folder in batch:
                with explained(folder):
                    shutil.rmtree(folder)
        return len(finished)

    def folder(self, key: str) -> Path:
        return self.root / "cells" / key[:2] / key

    def places(self) -> dict[str, segments.Place]:
        """The index of all segments, read again only when segments were added."""
        folder = self.root / "segments"
        names = tuple(sorted(p.name for p in folder.glob("*.index.json"))) if folder.is_dir() else ()
        if names != self._indexed:
            self._indexed, self._places = segments.read_index(folder, self.warn)
        return self._places

    def warn(self, path: str, what: str) -> None:
        """One warning per damaged file."""
        if path not in self._named:
            self._named.add(path)
            warnings.warn(
                f"{path} is damaged: {what}; it is left out, and its items are evaluated again.",
                StoreWarning,
                stacklevel=4,
            )

    def _loose(self) -> Iterator[Path]:
        yield from sorted((self.root / "cells").glob("[0-9a-f][0-9a-f]/*"))


class Cell:
    """Rows of one content-addressed piece of work, in immutable chunks. Made by :meth:`Store.cell`."""

    def __init__(self, store: Store, key: str, conditions: dict[str, Any]) -> None:
        self.key = key
        self.conditions = conditions
        self._store = store
        self._folder = store.folder(key)
        self._chunks: dict[str, list[Row]] = {}

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows as one new chunk, durable when this returns. No rows, no chunk.

        Raises:
            StoreError: A non-finite number (names the item), or a disk that is full or read-only.
        """
        rows = list(rows)
        if not rows:
            return
        data = encode(rows)
        make_folder(self._folder)
        if not (self._folder / CONDITIONS).exists():
            write_new(self._folder / CONDITIONS, json.dumps(self.conditions, indent=1).encode())
        number = 1 + max((int(path.name[:6]) for path in self._paths()), default=0)
        while not write_new(self._folder / f"{number:06d}.jsonl", data):
            number += 1

    def rows(self) -> dict[str, Row]:
        """All rows by item. An item that two chunks hold counts as the earlier chunk has it. A damaged chunk is left
        out with one warning that names it."""
        found: dict[str, Row] = {}
        loose = [row for path in self._paths() for row in self._read(path)]
        for row in self._compacted() + loose:
            found.setdefault(row.item, row)
        return found

    def note(self, notes: Iterable[str]) -> None:
        """Keep beside the rows what a reader must know of how they were made, each once; compacting keeps it too."""
        known = self.notes()
        new = [note for note in dict.fromkeys(notes) if note not in known]
        if new:
            make_folder(self._notes.parent)
            write_atomic(self._notes, json.dumps([*known, *new]))

    def notes(self) -> list[str]:
        """What :meth:`note` kept; one line that says so where it cannot be read."""
        try:
            return [str(note) for note in json.loads(self._notes.read_text("utf-8"))]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            return [f"how some stored rows were made is not known: {self._notes} is damaged ({type(error).__name__})"]

    @property
    def _notes(self) -> Path:
        return self._store.root / "notes" / f"{self.key}.json"

    def missing(self, items: Iterable[str]) -> list[str]:
        """Those of the items that have no row yet, in the order given."""
        have = self.rows()
        return [item for item in items if item not in have]

    def done(self, items: Iterable[str]) -> bool:
        """Whether every one of these items has a row."""
        return not self.missing(items)

    def finish(self) -> None:
        """Say that nothing more will be appended, so that :meth:`Store.compact` may merge the cell.

        Raises:
            StoreError: The cell has no rows.
        """
        if self.finished:
            return
        count = len(self.rows())
        if not count:
            raise StoreError(f"cell {self.key[:12]} has no rows; expected some before it is finished.")
        write_atomic(self._folder / DONE, json.dumps({"rows": count}))

    @property
    def finished(self) -> bool:
        return _read_done(self._folder) is not None or self.key in self._store.places()

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].jsonl"))

    def _read(self, path: Path) -> list[Row]:
        if path.name not in self._chunks:
            rows: list[Row] = []
            try:
                rows = decode(path.read_bytes())
            except FileNotFoundError:
                return []  # compacted by another process since the folder was listed: the segment has it
            except (OSError, TornError) as error:
                self._store.warn(str(path), str(error))
            self._chunks[path.name] = rows
        return self._chunks[path.name]

    def _compacted(self) -> list[Row]:
        place = self._store.places().get(self.key)
        if place is None:
            return []
        folder = self._store.root / "segments"
        try:
            return segments.read_rows(folder, place)
        except (OSError, TornError) as error:
            self._store.warn(f"{folder / place.segment} at byte {place.start}", str(error))
            return []


def _read_done(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / DONE).read_text("utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
