"""Merging: what one store takes over from another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catchment.runs.chunks import decode, encode, first_rows
from catchment.runs.columns import items_of

BATCH_BYTES, BATCH_CELLS = 8 << 20, 2000
"""Bytes of rows, and cells, from which on what was read from the other store is written."""


@dataclass(frozen=True)
class Packed:
    """What a store holds of a cell: whole chunks of rows, earliest first."""

    key: str
    conditions: Mapping[str, Any]
    chunks: Sequence[bytes]


def batches(cells: Iterable[Packed]) -> Iterator[list[Packed]]:
    """Cells in the same order, as many at a time as are written together."""
    batch: list[Packed] = []
    size = 0
    for cell in cells:
        batch.append(cell)
        size += sum(map(len, cell.chunks))
        if size >= BATCH_BYTES or len(batch) >= BATCH_CELLS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def lacking(chunks: Sequence[bytes], had: Collection[str]) -> tuple[bytes, int]:
    """Rows of items that are not among those ``had``, as one chunk, and their number. A chunk that is the only one
    stays as it is where all its rows are such."""
    items = [item for data in chunks for item in items_of(data)]
    fresh = set(items).difference(had)
    if not fresh:
        return b"", 0
    if len(chunks) == 1 and len(fresh) == len(items):
        return chunks[0], len(items)
    rows = first_rows(row for data in chunks for row in decode(data) if row.item in fresh)
    return encode(rows.values()), len(rows)
