"""Rows go in and come back; crashes, races and damage lose at most a chunk."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catchment.errors import InputError, StoreError
from catchment.records import Row
from catchment.runs import Cell, Store, StoreWarning, cell_key
from catchment.runs.chunks import decode, encode

CONDITIONS = {"task": "recall", "model": "tiny"}
KEY = cell_key(CONDITIONS)


def _rows(*items: str, score: float = 1.0) -> list[Row]:
    return [Row(item, score, f"answer to {item}", (-0.1, -2.5), 0.9, ("tie",)) for item in items]


def _cell(root: Path) -> Cell:
    return Store(root).cell(KEY, CONDITIONS)


def _chunks(root: Path) -> list[Path]:
    return sorted((root / "cells" / KEY[:2] / KEY).glob("*.jsonl"))


def test_rows_come_back_in_a_new_process_view(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    assert cell.rows() == {}
    cell.append(_rows("a", "b"))
    cell.append([])
    cell.append(_rows("c"))
    again = _cell(tmp_path)
    assert again.rows() == {row.item: row for row in _rows("a", "b", "c")}
    assert again.missing(["c", "d", "a", "e"]) == ["d", "e"]
    assert again.done(["a", "c"])
    assert not again.done(["a", "d"])
    assert len(_chunks(tmp_path)) == 2
    assert Store(tmp_path).conditions(KEY) == CONDITIONS


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=[]), max_size=20)  # lone surrogates too


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.builds(Row, texts, finite, texts, st.lists(finite).map(tuple), st.none() | finite), max_size=5))
def test_rows_are_written_exactly(rows: list[Row]) -> None:
    back = decode(encode(rows))
    assert back == rows
    assert [[x.hex() for x in (r.score, *r.logprobs)] for r in back] == [
        [float(x).hex() for x in (r.score, *r.logprobs)] for r in rows
    ]


def test_the_first_chunk_wins_and_chunks_never_change(tmp_path: Path) -> None:
    one, two = _cell(tmp_path), _cell(tmp_path)
    one.append(_rows("a", score=0.0))
    before = _chunks(tmp_path)[0].read_bytes()
    two.append(_rows("a", "b", score=1.0))
    assert _chunks(tmp_path)[0].read_bytes() == before
    assert {item: row.score for item, row in one.rows().items()} == {"a": 0.0, "b": 1.0}
    assert one.rows() == two.rows()


def _write_many(root: str, name: str) -> None:
    cell = _cell(Path(root))
    for number in range(20):
        cell.append(_rows(f"shared {number}", f"{name} {number}"))


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), name)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(_chunks(tmp_path)) == 40
    wanted = {f"{who} {n}" for who in ("shared", "one", "two") for n in range(20)}
    assert set(_cell(tmp_path).rows()) == wanted


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "zeros"])
def test_a_damaged_chunk_is_left_out_with_one_warning(tmp_path: Path, damage: str) -> None:
    cell = _cell(tmp_path)
    cell.append(_rows("a", "b"))
    cell.append(_rows("c"))
    first = _chunks(tmp_path)[0]
    data = first.read_bytes()
    changed = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "flipped": data.replace(b"answer to a", b"answer to b"),
        "zeros": bytes(len(data)),
    }[damage]
    first.write_bytes(changed)
    again = _cell(tmp_path)
    with pytest.warns(StoreWarning, match=r"000001\.jsonl is damaged") as caught:
        missing = [again.missing(["a", "b", "c"]) for _ in range(2)]
    assert missing == [["a", "b"], ["a", "b"]]
    assert len(caught) == 1
    again.append(_rows("a", "b"))
    assert again.done(["a", "b", "c"])
    assert first.read_bytes() == changed


@pytest.mark.parametrize("field", ["score", "logprobs", "companion"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, field: str, value: float) -> None:
    values = {"score": 1.0, "logprobs": (-1.0,), "companion": None} | {
        field: (value,) if field == "logprobs" else value
    }
    cell = _cell(tmp_path)
    with pytest.raises(StoreError, match=f"item 'bad' has the value {value}"):
        cell.append([*_rows("a"), Row("bad", prediction="", **values)])  # type: ignore[arg-type]
    assert _chunks(tmp_path) == []


def test_a_key_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        Store(tmp_path).cell("../../escape", {})


def test_compaction_keeps_every_row_and_drops_the_chunks(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    before: dict[str, dict[str, Row]] = {}
    for number in range(5):
        conditions = {"task": f"t{number}"}
        cell = (other if number == 3 else store).cell(cell_key(conditions), conditions)
        cell.append(_rows("a", "b"))
        cell.append(_rows(f"c{number}"))
        before[cell.key] = cell.rows()
    assert store.compact_used() == 4
    assert store.compact_used() == 0
    assert len(list(tmp_path.glob("cells/*/*/*.jsonl"))) == 2  # those that the other one wrote
    fresh = Store(tmp_path)
    assert fresh.counts() == dict.fromkeys(sorted(before), 3)
    for number in range(5):
        conditions = {"task": f"t{number}"}
        cell = fresh.cell(cell_key(conditions), conditions)
        assert cell.rows() == before[cell.key]
        assert fresh.conditions(cell.key) == conditions


def test_notes_stay_beside_the_rows_when_they_are_compacted(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    cell.note([])
    assert not list(tmp_path.iterdir())
    cell.append(_rows("a"))
    cell.note(["slow", "slow"])
    _cell(tmp_path).note(["halved", "slow"])
    assert cell.store.compact_used() == 1
    assert _cell(tmp_path).notes() == ["slow", "halved"]
    (tmp_path / "notes" / f"{KEY}.json").write_text('["slo')
    (said,) = _cell(tmp_path).notes()
    assert "not known" in said
    assert "is damaged" in said


def test_a_view_opened_before_compaction_still_reads(tmp_path: Path) -> None:
    reader = _cell(tmp_path)
    writer = _cell(tmp_path)
    writer.append(_rows("a"))
    writer.store.compact_used()
    assert reader.done(["a"])
    reader.append(_rows("b"))
    assert list(_cell(tmp_path).rows()) == ["a", "b"]


def test_compaction_that_is_cut_off_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = _cell(tmp_path)
    cell.append(_rows("a", "b"))

    unlink = os.unlink

    def power_cut(path: Any) -> None:
        unlink(path)
        if Path(path).name == "000001.jsonl" and "cells" in Path(path).parts:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", power_cut)
        with pytest.raises(KeyboardInterrupt):
            cell.store.compact_used()
    assert _cell(tmp_path).done(["a", "b"])
    assert cell.store.compact_used() == 1
    assert _cell(tmp_path).rows() == {row.item: row for row in _rows("a", "b")}
    assert Store(tmp_path).counts() == {KEY: 2}


def test_a_damaged_segment_is_evaluated_again(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    cell.append(_rows("a", "b"))
    cell.store.compact_used()
    segment = next(tmp_path.glob("segments/*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b"answer to a", b"answer to X"))
    again = _cell(tmp_path)
    with pytest.warns(StoreWarning, match="checksum"):
        assert again.missing(["a", "b"]) == ["a", "b"]
    again.append(_rows("a", "b"))
    assert again.done(["a", "b"])
    next(tmp_path.glob("segments/*.index.json")).write_text("{")
    with pytest.warns(StoreWarning, match="index.json is damaged"):
        assert Store(tmp_path).counts() == {KEY: 2}


def _counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, int], int]:
    """The rows of each cell, and how many folders and files were opened to count them."""
    opened = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **options: Any) -> Any:
            nonlocal opened
            opened += 1
            return call(*args, **options)

        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", counted(os.listdir))
        patch.setattr(io, "open", counted(io.open))
        counts = Store(root).counts()
    return counts, opened


def test_cells_in_segments_are_counted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in chunks cost a look each, those in segments a look per folder of cells and a few more."""
    store = Store(tmp_path)
    for number in range(300):
        conditions = {"n": number}
        store.cell(cell_key(conditions), conditions).append([Row("a", 1.0, "")])
    before, in_chunks = _counted(tmp_path, monkeypatch)
    assert store.compact_used() == 300
    after, in_segments = _counted(tmp_path, monkeypatch)
    assert after == before
    assert set(after.values()) == {1}
    assert in_segments < 270
    assert in_segments + 600 < in_chunks


HOLD = """
import sys
from catchment.runs import Store
with Store(sys.argv[1]).lock("compare"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_is_at_work_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "held\n"
        start = time.perf_counter()
        with (
            pytest.raises(
                StoreError, match=rf"in use by process {child.pid} on .+ \(compare\), running since \d{{4}}-"
            ),
            Store(tmp_path).lock("compare"),
        ):
            pass
        assert time.perf_counter() - start < 5
    finally:
        child.kill()  # SIGKILL: no handler runs, the files of the lock stay behind
        child.wait()
        child.stdin.close()
        child.stdout.close()
    assert (tmp_path / ".lock.json").exists()
    with Store(tmp_path).lock("compare"):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock.json").read_text()
    assert not (tmp_path / ".lock.json").exists()


def test_the_lock_is_released_on_an_exception_and_held_against_oneself(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.lock("one"):
        raise ZeroDivisionError
    with (
        store.lock("two"),
        pytest.raises(StoreError, match=rf"process {os.getpid()} on .+ \(two\)"),
        Store(tmp_path).lock("three"),
    ):
        pass


APPEND = """
import sys
from catchment.records import Row
from catchment.runs import Store
cell = Store(sys.argv[1]).cell(sys.argv[2], {})
number = 0
while True:
    cell.append([Row(f"{number}-{k}", 1 / 3, "x" * 2000) for k in range(20)])
    number += 1
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_whole_chunks(tmp_path: Path) -> None:
    """kill -9 while it writes: everything it reported is there, nothing is torn, no warning."""
    child = subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(5):
        line = child.stdout.readline()
    child.kill()
    reported = [line, *child.stdout.readlines()][-1]
    child.stdout.close()
    child.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _cell(tmp_path).rows()
    assert int(reported) * 20 <= len(found) <= (int(reported) + 1) * 20
    assert len(found) % 20 == 0
    assert all(row.score == 1 / 3 for row in found.values())
