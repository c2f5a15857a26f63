"""What the store asks of the disk: counted, ordered, killed at each point, by several processes, in the old format."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from catchment.errors import StoreError
from catchment.records import Row
from catchment.runs import Cell, Store, StoreWarning, append_all, cell_key, compaction, segments
from catchment.runs.folders import locked
from tests.unit.runs.conftest import Log

HERE = Path(__file__).parent


def cell(store: Store, name: Any) -> Cell:
    conditions = {"name": name}
    return store.cell(cell_key(conditions), conditions)


def rows(*items: str) -> list[Row]:
    return [Row(item, 1.0, "") for item in items]


def test_an_append_costs_the_same_however_many_chunks_there_are(tmp_path: Path, log: Log) -> None:
    one = cell(Store(tmp_path), "a")
    counts = []
    for number in range(300):
        log.clear()
        one.append(rows(str(number)))
        counts.append(log.counts)
    assert counts[2] == counts[-1]
    assert counts[-1]["listdir"] == counts[-1]["scandir"] == 0
    assert counts[-1]["fsync"] == 2  # the chunk and its folder
    assert counts[0]["fsync"] <= 2 + len(("store", "cells", "ab", "abcd"))  # and the folders that are new


def test_a_batch_over_many_cells_is_flushed_as_one(tmp_path: Path, log: Log) -> None:
    store = Store(tmp_path)
    append_all([(cell(store, "first"), rows("a")), (cell(store, "second"), rows("a"))])
    log.clear()
    append_all([(cell(store, number), rows("a", "b")) for number in range(200)])
    assert log.counts["fsync"] == 3  # rows, index, folder
    assert len(Store(tmp_path).counts()) == 202


def test_what_a_command_wrote_decides_what_its_end_costs(tmp_path: Path, log: Log) -> None:
    """Not what else is in the store, compacted or not."""
    spent = []
    for others in (5, 100):
        root = tmp_path / str(others)
        for number in range(others):
            cell(Store(root), f"open {number}").append(rows("a"))
        store = Store(root)
        append_all([(cell(store, f"done {number}"), rows("a")) for number in range(others)])
        store.compact_used()
        mine = Store(root)
        cell(mine, "mine").append(rows("a"))
        log.clear()
        assert mine.compact_used() == 1
        spent.append(log.counts)
    assert spent[0] == spent[1]


def test_rows_are_on_the_disk_before_a_name_is_and_before_a_chunk_is_dropped(tmp_path: Path, log: Log) -> None:
    store = Store(tmp_path)
    one = cell(store, "a")
    one.append(rows("a"))
    calls = [(name, Path(path).name) for name, path in log]
    chunk = calls.index(("link", "000001.jsonl"))
    assert any(name == "fsync" and path.endswith(".tmp") for name, path in calls[:chunk])
    assert ("fsync", one.key) in calls[chunk:]
    assert ("fsync", one.key[:2]) in calls[chunk:]
    log.clear()
    store.compact_used()
    calls = [(name, Path(path).name) for name, path in log]
    data, index = calls.index(("link", "000001.jsonl")), calls.index(("link", "000001.index.json"))
    assert data < index
    assert sum(name == "fsync" and path.endswith(".tmp") for name, path in calls[:data]) >= 2
    dropped = calls.index(("unlink", "000001.jsonl"))
    assert ("fsync", "segments") in calls[index:dropped]


@pytest.mark.parametrize(
    ("what", "stride"),
    [("append", 7), ("merge", 13), *(pytest.param(what, 1, marks=pytest.mark.soak) for what in ("append", "merge"))],
)
@pytest.mark.parametrize("how", ["kill", "full"])
def test_nothing_that_was_acknowledged_is_lost_at_any_point(tmp_path: Path, what: str, how: str, stride: int) -> None:
    """A writer that is killed, or finds the disk full, at its calls in turn: see ``crashes``."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.runs.crashes", what, how, str(stride), str(tmp_path)],
        capture_output=True, text=True, cwd=HERE.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > {"append": 100, "merge": 50}[what]


APPENDS, WRITERS = 40, 3
WRITER = """
import os, sys
from catchment.runs import append_all
from tests.unit.runs.test_store_files import APPENDS, Store, cell, rows
os.fsync = lambda descriptor: None
for number in range(APPENDS):
    if number % 10 == 0:
        store = Store(sys.argv[1])
        both = cell(store, "shared"), cell(store, sys.argv[2])
    fresh = rows(f"{sys.argv[2]} {number}", f"shared {number}")
    append_all([(one, fresh) for one in both]) if number % 4 == 0 else [one.append(fresh) for one in both]
    if number % 10 == 9:
        store.compact_used()
"""


def test_writers_and_compaction_at_a_time_lose_nothing_and_readers_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes append to one cell and to one of their own, and compact both; a reader keeps its view open."""
    monkeypatch.setattr(compaction, "MANY", 2)
    children = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(w)], cwd=HERE.parents[2])
                for w in range(WRITERS)]  # fmt: skip
    reader, seen = Store(tmp_path), set[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(child.poll() is None for child in children):
            now = cell(reader, "shared").rows().keys()
            assert seen <= now
            seen |= now
            assert seen <= cell(Store(tmp_path), "shared").rows().keys()
        assert [child.returncode for child in children] == [0] * WRITERS
        late = Store(tmp_path)
        own = {str(w): {f"{who} {n}" for who in (w, "shared") for n in range(APPENDS)} for w in range(WRITERS)}
        for name, wanted in {**own, "shared": set().union(*own.values())}.items():
            assert cell(late, name).rows().keys() == wanted
        late.compact_used()
        assert cell(Store(tmp_path), "shared").rows().keys() == set().union(*own.values())


def test_a_chunk_that_is_written_while_its_cell_is_compacted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    mine, theirs = cell(store, "a"), cell(other, "a")
    mine.append(rows("a"))
    write = compaction.write_segment

    def meanwhile(*args: Any) -> int:
        written = write(*args)
        theirs.append(rows("b"))
        return written

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "write_segment", meanwhile)
        assert store.compact_used() == 1
    assert list(theirs.rows()) == list(mine.rows()) == ["a", "b"]
    assert store.conditions(mine.key) == {"name": "a"}
    assert other.compact_used() == 1
    mine.append(rows("c"))  # into a folder that is gone
    assert list(theirs.rows()) == ["a", "b", "c"]
    assert list(cell(Store(tmp_path), "a").rows()) == ["a", "b", "c"]


def test_a_reader_whose_chunks_are_compacted_and_named_anew_sees_the_new_rows(tmp_path: Path) -> None:
    reader = cell(Store(tmp_path), "a")
    store = Store(tmp_path)
    cell(store, "a").append(rows("a"))
    assert list(reader.rows()) == ["a"]
    store.compact_used()
    cell(Store(tmp_path), "a").append(rows("b"))  # 000001.jsonl again
    assert list(reader.rows()) == ["a", "b"]


def test_the_first_row_of_an_item_counts_through_chunks_batches_compaction_and_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MANY", 2)
    for number in range(12):
        store = Store(tmp_path)
        fresh = [Row("a", number / 100, ""), Row(f"n{number}", 0.5, "")]
        batch = [(cell(store, name), fresh) for name in ("x", "y")]
        append_all(batch) if number % 3 else [one.append(rows) for one, rows in batch]
        if number % 4 == 3:
            store.compact_used()
        assert [cell(Store(tmp_path), name).rows()["a"].score for name in ("x", "y")] == [0.0, 0.0]
        assert len(cell(Store(tmp_path), "x").rows()) == number + 2
    assert list(Store(tmp_path).counts().values()) == [13, 13]


def test_a_batch_that_is_written_while_segments_are_merged_counts_as_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MANY", 2)
    store, other = Store(tmp_path), Store(tmp_path)

    def batch(of: Store, score: float) -> list[tuple[Cell, list[Row]]]:
        return [(cell(of, name), [Row("a", score, ""), Row(str(score), score, "")]) for name in ("x", "y")]

    append_all(batch(store, 0.0))
    append_all(batch(store, 0.1))
    write = compaction.write_segment

    def meanwhile(folder: Path, parts: Any, *place: Any) -> int:
        if place:
            append_all(batch(other, 0.2))
        return write(folder, parts, *place)

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "write_segment", meanwhile)
        store.compact_used()
    assert len(list((tmp_path / "segments").glob("*.index.json"))) == 2
    for reader in (store, other, Store(tmp_path)):
        found = cell(reader, "x").rows()
        assert list(found) == ["a", "0.0", "0.1", "0.2"]
        assert found["a"].score == 0.0


def test_many_small_commands_leave_few_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    most = 0
    for number in range(60):
        store = Store(tmp_path)
        cell(store, number).append(rows("a", "b"))
        store.compact_used()
        most = max(most, len(list((tmp_path / "segments").glob("*.index.json"))))
    assert most <= compaction.MANY
    assert list(Store(tmp_path).counts().values()) == [2] * 60


def test_the_folder_of_segments_is_listed_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "segments"
    listed = 0
    names = segments.index_files

    def counted(path: Path) -> set[str]:
        nonlocal listed
        listed += 1
        return names(path)

    monkeypatch.setattr(segments, "index_files", counted)
    writer, reader = Store(tmp_path), Store(tmp_path)

    def append(number: int) -> None:
        append_all([(cell(writer, name), rows(str(number))) for name in "xy"])

    append(0)
    now = os.stat(folder).st_mtime_ns
    for changed, looks in ((now - 10**13, 0), (now + 10**13, 4)):  # settled; another change may have the same time
        os.utime(folder, ns=(now, changed))
        before = len(cell(reader, "x").rows())
        listed = 0
        assert len(cell(reader, "x").rows()) == len(cell(reader, "y").rows()) == before
        assert listed == looks
        append(before)
        if looks:
            os.utime(folder, ns=(now, changed))
        assert len(cell(reader, "x").rows()) == before + 1


def test_large_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SMALL", 1000)
    monkeypatch.setattr(compaction, "MANY", 2)
    for number in range(6):
        store = Store(tmp_path)
        cell(store, number).append([Row("a", 1.0, "x" * 900)])
        store.compact_used()
    assert len(list((tmp_path / "segments").glob("*.index.json"))) == 6


def test_a_damaged_segment_is_not_merged_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MANY", 2)
    store = Store(tmp_path)
    cell(store, "a").append(rows("a"))
    store.compact_used()
    data = tmp_path / "segments" / "000001.jsonl"
    damaged = data.read_bytes().replace(b"1.0", b"0.0")
    data.write_bytes(damaged)
    cell(store, "b").append(rows("a"))
    store.compact_used()
    assert data.read_bytes() == damaged
    with pytest.warns(StoreWarning, match="damaged"):
        assert cell(Store(tmp_path), "a").rows() == {}
    assert len(cell(Store(tmp_path), "b").rows()) == 1


def test_what_killed_processes_left_long_ago_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = cell(store, "a")
    one.append(rows("a"))
    folder = next(tmp_path.glob("cells/*/*"))
    segments = tmp_path / "segments"
    segments.mkdir()
    left = [folder / ".old.tmp", folder / ".new.tmp", segments / ".old.tmp", segments / "000007.jsonl"]
    for path in left:
        path.write_bytes(b"half")
        if "new" not in path.name:
            os.utime(path, (0, 0))
    store.compact_used()
    assert [path.exists() for path in left] == [True, True, False, False]
    assert not list(folder.glob("*.jsonl"))
    left[1].unlink()
    one.append(rows("b"))
    store.compact_used()
    assert not folder.exists()
    assert list(one.rows()) == ["a", "b"]


def test_an_end_that_fails_keeps_every_row_and_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = cell(store, "a")
    one.append(rows("a"))
    (tmp_path / "segments").write_text("in the way")
    with pytest.warns(StoreWarning, match="many small files"):
        assert store.compact_used() == 0
    (tmp_path / "segments").unlink()
    reader = Store(tmp_path)
    assert list(cell(reader, "a").rows()) == ["a"]
    with locked(tmp_path / "segments", "compaction"), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr("catchment.runs.store.PATIENCE", 0.0)
        assert reader.compact_used() == 0  # somebody else is at it, and nothing was appended here
    assert reader.compact_used() == 1  # what a killed command left is compacted by the next one that reads it


def test_numbers_that_are_not_finite_leave_the_whole_batch_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="item 'bad'"):
        append_all([(cell(store, "a"), rows("a")), (cell(store, "b"), [Row("bad", float("nan"), "")])])
    assert not list(tmp_path.iterdir())


def test_conditions_that_a_power_cut_emptied_are_those_of_the_segment(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = cell(store, "a")
    one.append(rows("a"))
    (store.folder(one.key) / "conditions.json").write_bytes(b"")
    store.compact_used()
    assert Store(tmp_path).conditions(one.key) == {"name": "a"}


def test_stores_of_0_1_0_are_read_and_go_on(tmp_path: Path) -> None:
    """Chunks, a finished cell, a segment, and a cell in both, as that version wrote them."""
    shutil.copytree(HERE / "stores/0.1.0", tmp_path, dirs_exist_ok=True)
    wanted = json.loads((HERE / "stores/0.1.0.json").read_text())
    counts = {old["key"]: len(old["rows"]) for old in wanted.values()}
    for step in ("as it was", "compacted"):
        store = Store(tmp_path)
        assert store.counts() == counts
        for name, old in wanted.items():
            conditions = {
                "weights": "a1", "task": "recall", "name": name, "system": None,
                "moved": {"kind": "gaussian", "seed": 0, "scale": 0.1},
            }  # fmt: skip
            assert cell_key(conditions) == old["key"]
            assert store.conditions(old["key"]) == conditions
            found = store.cell(old["key"], conditions)
            told = {
                item: [row.score.hex(), row.prediction, list(row.logprobs), row.companion, list(row.flags)]
                for item, row in found.rows().items()
            }
            assert list(told.items()) == list(old["rows"].items()), (step, name)
            assert found.notes() == (["slow path"] if name == "compacted" else [])
        assert store.compact_used() == (3 if step == "as it was" else 0)
    assert not list(tmp_path.glob("cells/*/*"))
