"""The store: cells of item rows that survive a crash, under one folder.

What is promised: rows are on the disk when :meth:`Cell.append` or :func:`append_all` returns, also after a power
cut; a reader sees all rows of one append or none; any number of processes may append, read and compact at a time. The
conditions beside the rows, which only say what a key stands for, survive a crash of the process and are written again
by whoever appends next.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from catchment.errors import InputError, StoreError
from catchment.records import Row
from catchment.runs import compaction, loose, merging, segments
from catchment.runs.cells import canonical_json
from catchment.runs.chunks import TornError, decode, encode, first_rows, whole
from catchment.runs.columns import ChunkColumns, Columns, join, parse
from catchment.runs.files import make_folder, write_atomic
from catchment.runs.folders import locked
from catchment.runs.merging import Packed
from catchment.runs.reading import Seen, parts

PATIENCE = 10.0
"""Seconds that compaction waits for another process that is compacting."""


class StoreWarning(UserWarning):
    """Something in the store was damaged and is left out; what it held will be evaluated again."""


class Store:
    """Cells under one folder: ``root/cells/ab/abcd.../`` while they grow, ``root/segments/`` when compacted.

    Args:
        root: The folder; created when the first row is written.

    Example::

        store = Store(cache_dir() / "store")
        cell = store.cell(cell_key(conditions), conditions)
        cell.append(evaluate(cell.missing(ids)))
        store.compact_used()
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.segments = self.root / "segments"
        self._named: set[str] = set()
        self.index = segments.Index(self.segments, self.warn)
        self._loose_cells: dict[str, Mapping[str, Any] | None] = {}
        self._appended = False

    def lock(self, purpose: str, patience: float = 0.0) -> AbstractContextManager[None]:
        """Hold the store for this process; see :func:`catchment.runs.folders.locked` for what is promised."""
        return locked(self.root, purpose, patience)

    def cell(self, key: str, conditions: Mapping[str, Any]) -> Cell:
        """The cell with this key; nothing is written until rows are appended.

        Raises:
            InputError: The key is not a hex SHA-256, or the conditions are not JSON.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise InputError(f"cell key {key!r}; expected 64 hex digits, as cell_key returns them.")
        return Cell(self, key, json.loads(canonical_json(conditions)))

    def counts(self) -> dict[str, int]:
        """How many items have a row, by the key of every cell that has rows, sorted.

        A cell that lies in one segment costs no look of its own: the index says how many items its rows are of. One
        that lies in several, which may hold the same item, or in chunks is read. Rows in a segment count until
        somebody reads the cell and finds them damaged.
        """
        in_chunks = loose.keys(self.root / "cells")  # first: a cell that is compacted meanwhile is in the index then
        places = self.index.places()
        counts = {key: places[key][0].rows for key in places if len(places[key]) == 1 and key not in in_chunks}
        for key, columns in self._columns(in_chunks.union(places).difference(counts), in_chunks):
            counts[key] = len(columns.items)
        return {key: counts[key] for key in sorted(counts) if counts[key]}

    def columns(self, keys: Iterable[str]) -> Iterator[tuple[str, Columns]]:
        """:meth:`Cell.columns` of many cells, each once, in the order in which they lie on the disk; those that lie in
        several segments or in chunks come last. A cell that the store does not have has no rows. One cell is in memory
        at a time; 10 million rows take about 20 seconds of one core."""
        return self._columns(set(keys), loose.keys(self.root / "cells"))

    def _columns(self, keys: set[str], in_chunks: set[str]) -> Iterator[tuple[str, Columns]]:
        """Those of ``keys``, when these cells were seen to be in chunks."""
        places = self.index.places()
        alone = {key: places[key][0] for key in keys - in_chunks if len(places.get(key, ())) == 1}
        apart = keys.difference(alone)
        for key, _, body in segments.read_all(self.segments, alone):
            try:
                yield key, join([parse(body)])
            except TornError:
                apart.add(key)  # damaged, or merged into another segment meanwhile
        for key in sorted(apart):
            yield key, self.read_columns(key) if key in places or key in in_chunks else join([])

    def read_columns(self, key: str, conditions: Mapping[str, Any] | None = None) -> Columns:
        """:meth:`Cell.columns` of the cell with this key."""
        seen = Seen[ChunkColumns]()
        columns = join(parts(self.index, self.folder(key), parse, seen))
        if seen.chunks:
            self._loose_cells[key] = self._loose_cells.get(key) if conditions is None else conditions
        return columns

    def conditions(self, key: str) -> dict[str, Any]:
        """The conditions a cell was made under. Raises StoreError when the store has no such cell."""
        try:
            return self._conditions(key)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise StoreError(
                f"the conditions of cell {key[:12]} in {self.root} cannot be read ({type(error).__name__}); "
                "expected a cell that was written before. List the cells to see which there are."
            ) from None

    def _conditions(self, key: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder(key) / loose.CONDITIONS).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            place = self.places(key)[0]
        try:
            return segments.read_conditions(self.segments, place)
        except FileNotFoundError:  # merged since
            return segments.read_conditions(self.segments, self.places(key)[0])

    def merge(self, other: Store) -> int:
        """Take over the rows of items that this store lacks, with the conditions of their cells and what is noted of
        these; returns the number of rows. Where both have an item, this store's row stays.

        Rows are written in batches of :data:`catchment.runs.merging.BATCH_BYTES`, which are on the disk after three
        flushes each. After a kill or an error, what was written stays, and merging again takes over the rest; merging
        once more takes over nothing. What is damaged in the other store is left out with a warning. The other store is
        not changed.

        Raises:
            InputError: The other store is no folder.
            StoreError: The disk is full or read-only.
        """
        if not other.root.is_dir():
            raise InputError(f"{other.root} is no folder; expected a store to take rows from. Check its path.")
        return sum(self._take(batch, other) for batch in merging.batches(other._packed()))

    def _take(self, batch: Sequence[Packed], other: Store) -> int:
        had = {key: set(columns.items) for key, columns in self.columns(packed.key for packed in batch)}
        fresh: list[tuple[Cell, bytes, int]] = []
        for packed in batch:
            body, rows = merging.lacking(packed.chunks, had[packed.key])
            if rows:
                fresh.append((self.cell(packed.key, packed.conditions), body, rows))
        for cell, _, _ in fresh:  # before the rows: after a kill in between, the rows still lack, and both come again
            cell.note(Cell(other, cell.key, cell.conditions).notes())
        _append(fresh)
        return sum(rows for _, _, rows in fresh)

    def _packed(self) -> Iterator[Packed]:
        """Every cell, in the order in which they lie on the disk, as :meth:`columns`. Damaged parts are left out with
        a warning, and so is a cell whose conditions cannot be read."""
        in_chunks = loose.keys(self.root / "cells")
        places = self.index.places()
        alone = {key: places[key][0] for key in places.keys() - in_chunks if len(places[key]) == 1}
        apart = in_chunks.union(places).difference(alone)
        for key, head, body in segments.read_all(self.segments, alone):
            try:
                cell = Packed(key, segments.conditions_in(head), [whole(body)])
            except (TornError, ValueError, KeyError, TypeError):
                apart.add(key)
            else:
                yield cell
        for key in sorted(apart):
            chunks = parts(self.index, self.folder(key), whole, Seen())
            if chunks and (conditions := self._readable_conditions(key)) is not None:
                yield Packed(key, conditions, chunks)

    def _readable_conditions(self, key: str) -> dict[str, Any] | None:
        try:
            return self.conditions(key)
        except StoreError:
            self.warn(f"cell {key[:12]} in {self.root}", "its conditions cannot be read")
            return None

    def compact_used(self) -> int:
        """Merge into segments what this object read from chunks or appended to them, and small segments into larger
        ones; returns the number of cells. A command ends with it. It costs no more than what the command read and
        wrote, and :data:`catchment.runs.compaction.SMALL` bytes.

        Nothing is lost when it is killed or fails: the chunks stay, and the next command that uses them compacts them.
        A failure is a warning, because the command has done its work; it is silent where nothing was appended.
        """
        if not self._appended and not self._loose_cells:
            return 0
        try:
            with locked(self.segments, "compaction", PATIENCE):
                cells = compaction.compact(self.index, self._to_compact())
                compaction.merge(self.index)
        except StoreError as error:
            if self._appended:
                warnings.warn(f"rows of this run are kept, in many small files: {error}", StoreWarning, stacklevel=2)
            return 0
        self._loose_cells, self._appended = {}, False
        return cells

    def _to_compact(self) -> dict[Path, Mapping[str, Any]]:
        """Folders of cells that were read from chunks, with conditions. Where these cannot be read, rows stay in chunks
        until a command comes that knows them."""
        cells: dict[Path, Mapping[str, Any]] = {}
        for key, conditions in self._loose_cells.items():
            with suppress(StoreError):
                cells[self.folder(key)] = self.conditions(key) if conditions is None else conditions
        return cells

    def used(self, chunks_of: Cell | None = None, *, appended: bool = False) -> None:
        """Note what :meth:`compact_used` is to look at: a cell that is in chunks, and whether anything was appended."""
        if chunks_of is not None:
            self._loose_cells[chunks_of.key] = chunks_of.conditions
        self._appended |= appended

    def folder(self, key: str) -> Path:
        return self.root / "cells" / key[:2] / key

    def places(self, key: str) -> tuple[segments.Place, ...]:
        """Where the rows of a cell lie in segments, earliest first."""
        return self.index.places().get(key, ())

    def warn(self, path: str, what: str) -> None:
        """One warning per damaged file."""
        if path not in self._named:
            self._named.add(path)
            warnings.warn(
                f"{path} is damaged: {what}; it is left out, and its items are evaluated again.",
                StoreWarning,
                stacklevel=4,
            )


class Cell:
    """Rows of one content-addressed piece of work, in immutable chunks. Made by :meth:`Store.cell`."""

    def __init__(self, store: Store, key: str, conditions: dict[str, Any]) -> None:
        self.key = key
        self.conditions = conditions
        self.store = store
        self._folder = store.folder(key)
        self._seen = Seen[list[Row]]()
        self._next = 0

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows as one new chunk, durable when this returns: the file and its folder are flushed, and with the
        first chunk of a cell the folders above it. No rows, no chunk. The cost does not depend on the chunks there are.

        Raises:
            StoreError: A non-finite number (names the item), or a disk that is full or read-only.
        """
        rows = list(rows)
        if rows:
            self.write(encode(rows))

    def write(self, chunk: bytes) -> None:
        """:meth:`append` for rows that are encoded."""
        self._next = self._next or loose.next_number(self._folder)
        self._next = 1 + loose.write_chunk(self._folder, self._next, chunk, self.conditions)
        self.store.used(self, appended=True)

    def rows(self) -> dict[str, Row]:
        """All rows by item. An item that two chunks hold counts as the earlier chunk has it. A damaged chunk is left
        out with one warning that names it."""
        read = parts(self.store.index, self._folder, decode, self._seen)
        if self._seen.chunks:
            self.store.used(self)
        return first_rows(chain.from_iterable(read))

    def columns(self) -> Columns:
        """:meth:`rows` as arrays: the same items in the same order by the same rules, at about a fifth of the cost."""
        return self.store.read_columns(self.key, self.conditions)

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
        return self.store.root / "notes" / f"{self.key}.json"

    def missing(self, items: Iterable[str]) -> list[str]:
        """Those of the items that have no row yet, in the order given."""
        have = self.rows()
        return [item for item in items if item not in have]

    def done(self, items: Iterable[str]) -> bool:
        """Whether every one of these items has a row."""
        return not self.missing(items)

    @property
    def in_chunks(self) -> bool:
        """Whether it has a folder of its own; what is appended to it now must come after what is in there."""
        return self._folder.exists()


def append_all(batch: Iterable[tuple[Cell, Sequence[Row]]]) -> None:
    """Append to several cells of one store at the price of one: the rows of all are on the disk, by three flushes, when
    this returns. They go into a segment, of which a reader sees all or nothing; a cell that is in chunks gets one more
    chunk, because what is in segments counts as earlier.

    Raises:
        StoreError: As :meth:`Cell.append`; where a number is not finite nothing is written.
    """
    _append([(cell, encode(rows), len({row.item for row in rows})) for cell, rows in batch if rows])


def _append(encoded: Sequence[tuple[Cell, bytes, int]]) -> None:
    """:func:`append_all` for rows that are encoded, with the number of their items."""
    chunks: list[tuple[Cell, bytes]] = []
    together: list[segments.Part] = []
    for cell, body, count in encoded:
        if len(encoded) == 1 or cell.in_chunks:
            chunks.append((cell, body))
        else:
            together.append(segments.Part(cell.key, cell.conditions, body, count))
    if together:
        store = encoded[0][0].store
        segments.write_segment(store.segments, together)
        store.used(appended=True)
    for cell, body in chunks:
        cell.write(body)
