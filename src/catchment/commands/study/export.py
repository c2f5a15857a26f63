"""The tables of a study for other programs: ``cells.csv``, and with pyarrow ``cells.parquet`` and ``rows.parquet``.

They are derived: the rows in the store stay the truth, and the same command writes them anew. ``cell`` is the number of
a cell's line, by which ``rows.parquet`` refers to it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from catchment.commands.study.analysis.intervals import UNKNOWN, score_interval, with_error
from catchment.commands.study.record import Cell
from catchment.commands.study.scores import Scored, ScoreTable
from catchment.errors import MissingExtraError
from catchment.runs import open_atomic, write_atomic

CELLS_CSV, CELLS_PARQUET, ROWS_PARQUET = "cells.csv", "cells.parquet", "rows.parquet"
COORDINATES = tuple(field.name for field in fields(Cell))
COLUMNS = ("cell", *COORDINATES, "status", "n", "score", "low", "high", "reason")
GROUP = 1_000_000
"""Item rows in one row group of a Parquet file, and in memory at a time."""
CELL_GROUP = 100_000


def write_tables(table: ScoreTable, folder: Path) -> tuple[str, ...]:
    """Write the tables of a study into a folder.

    Returns:
        What was not written and why, a sentence each: Parquet needs pyarrow.

    Raises:
        StoreError: A file cannot be written; an older one of its name is then as it was.
    """
    write_csv(table, folder / CELLS_CSV)
    try:
        write_parquet(table, folder / CELLS_PARQUET, folder / ROWS_PARQUET)
    except MissingExtraError as error:
        return (f"{CELLS_PARQUET} and {ROWS_PARQUET} are not written: {error}",)
    return ()


def write_csv(table: ScoreTable, path: Path) -> None:
    """One line per cell: its coordinates, status, number of items, mean score with its 95% interval, and the reason
    where it has none.

    Raises:
        StoreError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_lines(table))
    write_atomic(path, text.getvalue())


def write_parquet(table: ScoreTable, cells: Path, rows: Path) -> None:
    """The cells as in :func:`write_csv`, and one row per cell and item: ``cell``, ``item`` (its number within the
    study's task), ``score``, ``companion`` (probability of the right answer, null where there is none).

    Item rows are written in groups of a million, which bounds the memory.

    Raises:
        MissingExtraError: pyarrow is not installed.
        StoreError: A file cannot be written.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "study", f"writing {cells.name}") from error
    text, number, real = pa.string(), pa.int64(), pa.float64()
    kinds = {"cell": number, "seed": number, "shots": number, "n": number, "score": real, "low": real, "high": real}
    schema = pa.schema([(name, kinds.get(name, text)) for name in COLUMNS])
    with open_atomic(cells) as file, parquet.ParquetWriter(file, schema) as writer:
        for chunk in _chunks(_lines(table), CELL_GROUP):
            writer.write_table(pa.table(dict(zip(COLUMNS, zip(*chunk, strict=True), strict=True)), schema=schema))
    schema = pa.schema([("cell", pa.int32()), ("item", number), ("score", real), ("companion", real)])
    with open_atomic(rows) as file, parquet.ParquetWriter(file, schema) as writer:
        for columns in _row_groups(table):
            arrays = [
                pa.array(column, field.type, from_pandas=True) for column, field in zip(columns, schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _lines(table: ScoreTable) -> Iterator[tuple[Any, ...]]:
    for number, result in enumerate(table.cells):
        coordinates = (getattr(result.cell, name) for name in COORDINATES)
        scored = table.scored.get(result.cell)
        n = result.n if scored is None else scored.n
        yield (number, *coordinates, result.status, n, *_score(scored), result.reason)


def _score(scored: Scored | None) -> tuple[float | None, float | None, float | None]:
    """Mean and 95% interval; ``None`` where there is none."""
    if scored is None:
        return None, None, None
    interval = score_interval([with_error(scored)])
    if interval.method == UNKNOWN:
        return scored.mean, None, None
    return scored.mean, interval.low, interval.high


def _chunks(lines: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := [line for _, line in zip(range(size), lines, strict=False)]:
        yield chunk


def _row_groups(table: ScoreTable) -> Iterator[Sequence[np.ndarray]]:
    """Item rows by column, a group at a time."""
    parts: list[tuple[np.ndarray, ...]] = []
    held = 0
    for number, scored in _with_items(table).items():
        parts.append(_rows(number, scored))
        held += scored.n
        if held >= GROUP:
            yield [np.concatenate(column) for column in zip(*parts, strict=True)]
            parts, held = [], 0
    if parts:
        yield [np.concatenate(column) for column in zip(*parts, strict=True)]


def _with_items(table: ScoreTable) -> Mapping[int, Scored]:
    numbered = {number: table.scored.get(result.cell) for number, result in enumerate(table.cells)}
    return {number: s for number, s in numbered.items() if s is not None and s.scores is not None}


def _rows(number: int, scored: Scored) -> tuple[np.ndarray, ...]:
    scores = np.asarray(scored.scores, dtype=np.float64)
    items = np.arange(scores.size) if scored.items is None else scored.items
    companions = np.full(scores.size, np.nan) if scored.companions is None else scored.companions
    return np.full(scores.size, number, dtype=np.int32), items, scores, companions
