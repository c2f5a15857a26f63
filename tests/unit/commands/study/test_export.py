"""The tables that other programs read: what they hold, and that none is ever half there."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catchment.commands.study import export
from catchment.commands.study.export import COLUMNS, write_csv, write_parquet, write_tables
from catchment.commands.study.foreign_table import read_scores
from catchment.commands.study.record import BASE, CellResult
from catchment.commands.study.scores import ScoreTable
from catchment.errors import StoreError
from catchment.statistics import mean_interval
from tests.unit.commands.study.tables import answers, item_table

AWKWARD = 'a, "quoted" task\nof two lines; ünï'


def _table() -> ScoreTable:
    table = item_table({
        ("1", BASE, None, AWKWARD): answers(3, 1),
        ("1", "sft", 0, AWKWARD): answers(2, 2),
    })  # fmt: skip
    done, tuned = table.cells
    missing = CellResult(dataclasses.replace(tuned.cell, seed=1), "failed", reason="killed:\n9")
    scored = dict(table.scored)
    scored[done.cell] = dataclasses.replace(
        scored[done.cell], companions=np.array([0.9, np.nan, 0.5, 0.25]), items=np.array([7, 5, 3, 1])
    )
    return dataclasses.replace(table, cells=(done, tuned, missing), scored=scored)


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cells_csv(tmp_path: Path) -> None:
    write_csv(_table(), tmp_path / "cells.csv")
    base, tuned, failed = _csv(tmp_path / "cells.csv")
    interval = mean_interval(answers(3, 1))
    assert tuple(base) == COLUMNS
    assert (base["cell"], base["tuning"], base["seed"], base["task"], base["n"]) == ("0", BASE, "", AWKWARD, "4")
    assert (float(base["score"]), float(base["low"]), float(base["high"])) == (0.75, interval.low, interval.high)
    assert (tuned["seed"], tuned["status"], tuned["score"]) == ("0", "done", "0.5")
    assert (failed["status"], failed["n"], failed["score"], failed["reason"]) == ("failed", "0", "", "killed:\n9")


def test_a_table_of_means_without_errors_has_no_interval(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("checkpoint,train,eval,score\n1,BASE,qa,0.5\n")
    write_csv(read_scores(tmp_path / "in.csv"), tmp_path / "cells.csv")
    (row,) = _csv(tmp_path / "cells.csv")
    assert (row["score"], row["low"], row["high"]) == ("0.5", "", "")


def test_parquet_holds_cells_and_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_tables(_table(), tmp_path) == ()
    cells = parquet.read_table(tmp_path / "cells.parquet").to_pylist()
    texts = _csv(tmp_path / "cells.csv")
    assert [{k: "" if v is None else str(v) for k, v in cell.items()} for cell in cells] == texts
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pydict()
    assert rows["cell"] == [0] * 4 + [1] * 4
    assert rows["item"] == [7, 5, 3, 1, 0, 1, 2, 3]
    assert rows["score"] == [1, 1, 1, 0, 1, 1, 0, 0]
    assert rows["companion"] == [0.9, None, 0.5, 0.25, None, None, None, None]


def test_rows_are_written_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(export, "GROUP", 250)
    table = item_table({(str(k), BASE, None, "qa"): answers(60, 40) for k in range(7)})
    write_parquet(table, tmp_path / "cells.parquet", tmp_path / "rows.parquet")
    file = parquet.ParquetFile(tmp_path / "rows.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [300, 300, 100]


def test_without_pyarrow_the_csv_is_written_and_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (note,) = write_tables(_table(), tmp_path)
    assert "catchment[study]" in note
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"]


def test_a_writer_that_stops_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    write_tables(_table(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(table: ScoreTable) -> Iterator[Any]:
        yield from groups(table)
        raise KeyboardInterrupt

    groups = export._row_groups
    monkeypatch.setattr(export, "_row_groups", broken)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(_table(), tmp_path / "cells.parquet", tmp_path / "rows.parquet")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a part of the path is a file"):
        write_tables(_table(), tmp_path / "file")
