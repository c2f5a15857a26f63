"""Compaction: chunks of cells become segments, and small segments larger ones. One process does it at a time; others
may read and append meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from catchment.runs.chunks import TornError, decode, encode, first_rows, whole
from catchment.runs.columns import items_of
from catchment.runs.files import explained, is_old, is_stale
from catchment.runs.loose import chunk_names, drop_chunks
from catchment.runs.reading import chunk_part, segment_part
from catchment.runs.segments import (
    DATA,
    INDEX,
    Index,
    Part,
    Place,
    Segment,
    read_body,
    read_conditions,
    write_segment,
)

SEGMENT_CELLS = 2000
"""Cells per segment at most when chunks are compacted; chunks are dropped after each."""
SMALL, MANY = 8 << 20, 8
"""Bytes of the last segments together that are merged at a time, and how many they must be."""


def compact(index: Index, cells: Mapping[Path, Mapping[str, Any]]) -> int:
    """Copy the chunks of cells (folder and conditions) into segments and drop them; returns the number of cells.

    Rows are on the disk in a segment before the first chunk of it is dropped. Chunks that are written meanwhile stay,
    and so do damaged ones.
    """
    folders, compacted = list(cells), 0
    for start in range(0, len(folders), SEGMENT_CELLS):
        taken: dict[Path, list[str]] = {}
        write_segment(index.folder, _parts(index, {f: cells[f] for f in folders[start : start + SEGMENT_CELLS]}, taken))
        for folder, names in taken.items():
            drop_chunks(folder, names, cells[folder])
        compacted += len(taken)
    return compacted


def _parts(index: Index, cells: Mapping[Path, Mapping[str, Any]], taken: dict[Path, list[str]]) -> Iterator[Part]:
    """What goes into a segment; notes in ``taken`` which chunks are in segments then."""
    for folder, conditions in cells.items():
        chunks = _whole_chunks(index, folder)
        places = index.places().get(folder.name, ())
        if not folder.is_dir() or not (chunks or places):
            continue
        taken[folder] = list(chunks)
        if not chunks:
            continue
        if len(chunks) == 1 and not places:
            (body,) = chunks.values()
        else:
            had = [segment_part(index, folder.name, place, items_of) for place in places]
            have = {item for items in had if items is not None for item in items}
            fresh = first_rows(row for data in chunks.values() for row in decode(data) if row.item not in have)
            if not fresh:
                continue
            body = encode(fresh.values())
        yield Part(folder.name, conditions, body, len(set(items_of(body))))


def _whole_chunks(index: Index, folder: Path) -> dict[str, bytes]:
    chunks: dict[str, bytes] = {}
    for name in chunk_names(folder):
        with suppress(FileNotFoundError):
            data = chunk_part(index, folder / name, whole)
            chunks |= {} if data is None else {name: data}
    return chunks


def merge(index: Index) -> int:
    """Merge the last segments where they are many and small; returns how many. At most :data:`SMALL` bytes are copied.

    Those that are merged are removed after the new one, which names them, is on the disk. Where one of them is damaged
    nothing is done.
    """
    sweep(index)
    last = _last(index.segments())
    if len(last) < MANY:
        return 0
    with suppress(TornError):
        write_segment(index.folder, _merged(index.folder, last), last[0].rank, [segment.name for segment in last])
        sweep(index)
        return len(last)
    return 0


def _last(segments: list[Segment]) -> list[Segment]:
    """The last segments that have at most :data:`SMALL` bytes together, earliest first."""
    found: list[Segment] = []
    size = 0
    for segment in reversed(segments):
        size += segment.size
        if size > SMALL:
            break
        found.insert(0, segment)
    return found


def _merged(folder: Path, last: list[Segment]) -> Iterator[Part]:
    places: dict[str, list[Place]] = {}
    for segment in last:
        for key, place in segment.cells.items():
            places.setdefault(key, []).append(place)
    for key, found in places.items():
        bodies = [whole(read_body(folder, place)) for place in found]
        if len(bodies) == 1:
            body, rows = bodies[0], found[0].rows
        else:
            first = first_rows(row for data in bodies for row in decode(data))
            body, rows = encode(first.values()), len(first)
        yield Part(key, read_conditions(folder, found[0]), body, rows)


def sweep(index: Index) -> None:
    """Remove segments that another one replaces, and what processes that were killed long ago left half written."""
    index.places()
    with explained(index.folder):
        for name in sorted(index.replaced()):
            for path in (index.folder / name, index.folder / (name.removesuffix(INDEX) + DATA)):
                with suppress(FileNotFoundError):
                    os.unlink(path)
        names = set(os.listdir(index.folder))
        for name in names:
            half = name.endswith(DATA) and name.removesuffix(DATA) + INDEX not in names
            if is_stale(index.folder / name) or (half and is_old(index.folder / name)):
                os.unlink(index.folder / name)
