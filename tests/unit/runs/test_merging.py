"""One store takes over what another one has: what, in which order, what of damaged parts, and with a full disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from catchment.errors import InputError, StoreError
from catchment.records import Row
from catchment.runs import Store, StoreWarning, append_all, merging
from tests.unit.runs.conftest import Log
from tests.unit.runs.test_store_files import cell, rows

Table = dict[str, dict[str, Row]]
NAMES = ("here", "there", "both", "split")


def table(store: Store) -> Table:
    return {name: cell(store, name).rows() for name in NAMES}


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def scored(*items: str, score: float = 1.0) -> list[Row]:
    return [Row(item, score, f"\\ {item}", (-0.5,), None, ("tie",)) for item in items]


def fill(store: Store, side: int) -> Store:
    """One of two stores with no row in common: in chunks, in a segment, in two, and in a segment and a chunk."""
    own = "here" if side else "there"
    append_all([(cell(store, name), scored(f"{side}a", f"{side}b")) for name in (own, "both", "split")])
    append_all([(cell(store, name), scored(f"{side}b", f"{side}c", score=0.0)) for name in ("both", own)])
    cell(store, "split").append(scored(f"{side}d", score=0.25))
    cell(store, own).note([f"note {side}"])
    cell(store, "both").note(["same"])
    return store


def wanted(*sides: int) -> dict[str, dict[str, float]]:
    def scores(side: int, third: float | None, fourth: float | None) -> dict[str, float]:
        every = {"a": 1.0, "b": 1.0, "c": third, "d": fourth}
        return {f"{side}{letter}": score for letter, score in every.items() if score is not None}

    merged: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for side in sides:
        merged["here" if side else "there"] |= scores(side, 0.0, None)
        merged["both"] |= scores(side, 0.0, None)
        merged["split"] |= scores(side, None, 0.25)
    return merged


def test_stores_merge_in_any_order_and_twice_is_once(tmp_path: Path) -> None:
    results: list[Table] = []
    for order in ((0, 1), (1, 0)):
        root = tmp_path / f"{order}"
        sources = [fill(Store(root / str(side)), side) for side in (0, 1)]
        before = [files(source.root) for source in sources]
        merged = Store(root / "merged")
        for side in order:
            assert merged.merge(Store(sources[side].root)) == 9
            once = files(merged.root)
            assert merged.merge(Store(sources[side].root)) == 0
            assert files(merged.root) == once
        assert [files(source.root) for source in sources] == before
        merged.compact_used()
        fresh = Store(merged.root)
        results.append(table(fresh))
        assert {name: {i: row.score for i, row in rows.items()} for name, rows in results[-1].items()} == wanted(0, 1)
        assert list(fresh.counts().values()) == [len(results[-1][name]) for name in sorted(NAMES, key=key_of)]
        for name in NAMES:
            assert fresh.conditions(key_of(name)) == {"name": name}
        assert [cell(fresh, name).notes() for name in NAMES] == [["note 1"], ["note 0"], ["same"], []]
        assert not list(fresh.root.glob("cells/*/*"))
    assert results[0] == results[1]


def key_of(name: str) -> str:
    return cell(Store("unused"), name).key


@pytest.mark.parametrize("chunks", [False, True])
def test_the_rows_that_a_store_has_stay(tmp_path: Path, chunks: bool) -> None:
    mine, other = Store(tmp_path / "mine"), Store(tmp_path / "other")
    for name in "xy":
        cell(mine, name).append(scored("a", score=0.5))
    if not chunks:
        mine.compact_used()
    append_all([(cell(other, name), scored("a", "b")) for name in "xyz"])
    assert mine.merge(other) == 4
    for name in "xy":
        assert {item: row.score for item, row in cell(mine, name).rows().items()} == {"a": 0.5, "b": 1.0}
    assert other.merge(mine) == mine.merge(mine) == 0


def test_many_cells_are_merged_by_a_few_files(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BATCH_CELLS", 50)
    other, mine = Store(tmp_path / "other"), Store(tmp_path / "mine")
    append_all([(cell(other, number), rows("a")) for number in range(200)])
    log.clear()
    assert mine.merge(other) == 200
    assert log.counts["fsync"] <= 4 * 3 + 2  # a batch: rows, index, folder; and what holds the folders that are new
    assert len(list(mine.segments.glob("*.jsonl"))) == 4
    log.clear()
    assert mine.merge(other) == 0
    assert log.counts["fsync"] == 0


def test_what_is_damaged_is_left_out_and_can_be_taken_from_another_store(tmp_path: Path) -> None:
    good, bad, mine = (Store(tmp_path / name) for name in ("good", "bad", "mine"))
    for store in (good, bad):
        fill(store, 0)
    segment = bad.segments / "000002.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"item": "0c"', b'"item": "Xc"', 1))  # in the first cell's rows
    chunk = bad.folder(key_of("split")) / "000001.jsonl"
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.warns(StoreWarning, match="damaged") as caught:
        assert mine.merge(Store(bad.root)) == 7
    said = [str(warning.message) for warning in caught]
    assert len(said) == len(set(said)) == 2
    assert any(f"{segment} at byte 0" in text for text in said)
    assert any(str(chunk) in text for text in said)
    assert mine.merge(good) == 2
    assert table(mine) == table(good)
    mine_segment = next(mine.segments.glob("*.jsonl"))
    mine_segment.write_bytes(bytes(len(mine_segment.read_bytes())))
    damaged = Store(mine.root)
    with pytest.warns(StoreWarning, match=str(mine_segment)):
        assert damaged.merge(good) > 0
    assert table(damaged) == table(good)


def test_a_cell_whose_conditions_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    append_all([(cell(other, name), rows("a")) for name in "xy"])
    (segment,) = other.segments.glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"conditions"', b'"cond tions"', 1))
    mine = Store(tmp_path / "mine")
    with pytest.warns(StoreWarning, match=r"cell \w+ in .+other is damaged: its conditions cannot be read"):
        assert mine.merge(other) == 1
    assert list(mine.counts()) == [key_of("y")]


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder; expected a store"):
        Store(tmp_path).merge(Store(tmp_path / "none"))


@pytest.mark.parametrize("disk", ["20m"], indirect=True)
def test_a_disk_that_fills_up_while_stores_are_merged(tmp_path: Path, disk: Path) -> None:
    """One error that says so; what was written stays, and the rest is taken over when there is room."""
    other = Store(tmp_path / "other")
    append_all([(cell(other, number), [Row("a", 1.0, "x" * 100_000)]) for number in range(240)])
    store = Store(disk / "store")
    with pytest.raises(StoreError, match="the disk is full: free some space"):
        store.merge(other)
    there = Store(store.root).counts()
    assert 80 <= len(there) < 240
    assert not list(disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert store.merge(other) == 240 - len(there)
    assert Store(store.root).counts() == other.counts()
    assert all(cell(store, number).rows() == cell(other, number).rows() for number in (0, 100, 239))
