"""Rows by columns and their counts: they say what the rows say, also where something is damaged or another writer's."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catchment.records import Row
from catchment.runs import Cell, Columns, Store, StoreWarning, append_all, cell_key, chunks, columns, compaction, loose
from catchment.runs.chunks import TornError, decode, encode
from tests.unit.runs.conftest import Log
from tests.unit.runs.test_store_files import cell, rows


def agrees(told: Columns, table: Iterable[Row]) -> None:
    """Bit for bit."""
    wanted = list(table)
    assert told.items == tuple(row.item for row in wanted)
    assert told.scores.dtype == told.companions.dtype == np.float64
    assert [score.hex() for score in told.scores.tolist()] == [float(row.score).hex() for row in wanted]
    companions = [math.nan if row.companion is None else float(row.companion) for row in wanted]
    assert [value.hex() for value in told.companions.tolist()] == [value.hex() for value in companions]
    assert told.flags == Counter(flag for row in wanted for flag in set(row.flags))


def first_rows(bodies: Iterable[bytes]) -> list[Row]:
    table: dict[str, Row] = {}
    for body in bodies:
        for row in decode(body):
            table.setdefault(row.item, row)
    return list(table.values())


finite = st.floats(allow_nan=False, allow_infinity=False)
odd = st.sampled_from(
    ['"', "\\", '\\"', '", "score": 0.0', "]", '"}\n{"', "\n", "\r", "\u2028", "\ud800", "\x00", "é", ""]
)
texts = st.lists(st.text(st.characters(exclude_categories=[]), max_size=5) | odd, max_size=4).map("".join)
items = st.sampled_from(["a", "b", "c"]) | texts
some_rows = st.builds(
    Row, items, finite, texts, st.lists(finite, max_size=3).map(tuple), st.none() | finite,
    st.lists(st.sampled_from(["tie", "cut"]) | texts, max_size=3).map(tuple),
)  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(some_rows, max_size=4), max_size=4))
def test_columns_are_those_of_the_rows(parts: list[list[Row]]) -> None:
    bodies = [encode(part) for part in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "decode", None)  # our own lines are all read by the expression
        agrees(columns.join([columns.parse(body) for body in bodies]), first_rows(bodies))
        assert [list(columns.items_of(body)) for body in bodies] == [[row.item for row in part] for part in parts]


def chunk(lines: str, count: int) -> bytes:
    body = lines.encode()
    return body + json.dumps({"end": count, "sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"


FIELDS: dict[str, Any] = {"item": "é\n", "score": 1.0, "prediction": "", "logprobs": [], "companion": None, "flags": []}
OURS = json.dumps(FIELDS) + "\n"


@pytest.mark.parametrize(
    "lines",
    [
        json.dumps(dict(reversed(FIELDS.items()))) + "\n",
        json.dumps(FIELDS, separators=(",", ":")) + "\n",
        json.dumps(FIELDS, ensure_ascii=False) + "\n",
        json.dumps({**FIELDS, "score": 1, "logprobs": [1e-7, -2], "companion": 3}) + "\n",
        json.dumps({**FIELDS, "more": [OURS]}) + "\n",
        json.dumps({"inner": FIELDS, **FIELDS}) + "\n",
        "",
    ],
)
def test_lines_of_another_writer_are_read_as_json_says(lines: str) -> None:
    for text, count in ((lines, bool(lines)), (OURS + lines, 1 + bool(lines))):
        body = chunk(text, count)
        agrees(columns.join([columns.parse(body)]), first_rows([body]))
        assert columns.items_of(body) == tuple(row.item for row in decode(body))


@pytest.mark.parametrize(
    "body",
    [chunk(OURS, 2), chunk(OURS + OURS, 1), chunk("", 1), chunk(OURS, 1).replace(b"1.0", b"0.0"), b"", OURS.encode()],
)
def test_a_chunk_that_is_not_whole_is_torn_for_both(body: bytes) -> None:
    said = []
    for read in (decode, columns.parse, columns.items_of):
        with pytest.raises(TornError) as caught:
            read(body)
        said.append(str(caught.value))
    assert len(set(said)) == 1


def test_a_flipped_bit_is_noticed_or_changes_nothing() -> None:
    body = encode([Row("a", 0.5, "b", (-0.5,), 0.25, ("tie",)), Row("\\", 1.0, "")])
    wanted = decode(body)
    left = 0
    for place in range(len(body)):
        for bit in range(8):
            flipped = bytearray(body)
            flipped[place] ^= 1 << bit
            try:
                agrees(columns.join([columns.parse(bytes(flipped))]), wanted)
                left += 1
            except TornError:
                pass
    assert left <= 8  # of the line end behind the checksum


def test_an_index_that_a_flipped_bit_changed_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    append_all([(cell(store, name), rows("a", "b")) for name in "xy"])
    path = tmp_path / "segments/000001.index.json"
    data = path.read_text()
    counts = Store(tmp_path).counts()
    assert set(counts.values()) == {2}
    for changed in (data.replace(",2]", ",3]", 1), data.replace(min(counts), "f" + min(counts)[1:], 1)):
        assert changed != data
        path.write_text(changed)
        with pytest.warns(StoreWarning, match=r"000001\.index\.json is damaged"):
            assert Store(tmp_path).counts() == {}


def scored(name: str, *items: str, score: float) -> list[Row]:
    return [Row(item, score, f"{name} \\ {item}", (-score,), score / 3, ("tie",) if score else ()) for item in items]


def mixed(root: Path) -> dict[str, Cell]:
    """Cells in one segment, in two with an item in both, in chunks, in a segment and a chunk, and with an item twice in
    one append."""
    store = Store(root)
    names = ("one", "one too", "two", "both")
    append_all([(cell(store, name), scored(name, "a", "b", score=0.25)) for name in names])
    append_all([(cell(store, name), scored(name, "b", "c", score=0.5)) for name in ("two", "twice")])
    append_all([(cell(store, name), scored(name, "d", "d", score=0.75)) for name in ("twice", "one more")])
    for name in ("loose", "both"):
        cell(store, name).append(scored(name, "a", "e", score=1.0))
        cell(store, name).append(scored(name, "f", "e", score=0.0))
    return {name: cell(Store(root), name) for name in (*names, "twice", "one more", "loose")}


COUNTS = {"one": 2, "one too": 2, "two": 3, "both": 4, "twice": 3, "one more": 1, "loose": 3}


def test_cells_wherever_they_lie_have_the_columns_and_counts_of_their_rows(tmp_path: Path) -> None:
    for compacted in (False, True):
        cells = mixed(tmp_path / str(compacted))
        store = next(iter(cells.values())).store
        if compacted:
            for one in cells.values():
                one.store.counts()  # reads chunks, so that they are compacted
                one.store.compact_used()
            assert not list(store.root.glob("cells/*/*"))
        fresh = Store(store.root)
        assert fresh.counts() == {one.key: COUNTS[name] for name, one in sorted(cells.items(), key=lambda e: e[1].key)}
        assert list(fresh.counts()) == sorted(fresh.counts())
        asked = [*(one.key for one in cells.values()), "0" * 64, cells["one"].key]
        told = dict(fresh.columns(asked))
        assert len(told) == len(cells) + 1
        agrees(told["0" * 64], [])
        for one in cells.values():
            agrees(told[one.key], one.rows().values())
            agrees(one.columns(), one.rows().values())


def test_many_cells_are_read_in_file_order_and_share_their_items(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cells = [cell(store, number) for number in range(30)]
    for start in (0, 10, 20):
        append_all([(one, rows("a", "b")) for one in cells[start : start + 10]])
    told = list(Store(tmp_path).columns(sorted(one.key for one in cells)))
    assert [key for key, _ in told] == [one.key for one in cells]
    assert len({id(columns.items) for _, columns in told}) == 1


def test_counts_of_cells_in_segments_read_the_indices_only(tmp_path: Path, log: Log) -> None:
    spent = []
    for cells in (2, 100):
        store = Store(tmp_path / str(cells))
        append_all([(cell(store, number), rows("a", "b")) for number in range(cells)])
        next(store.segments.glob("*.jsonl")).write_bytes(b"")
        log.clear()
        assert list(Store(store.root).counts().values()) == [2] * cells
        spent.append(log.counts["listdir"])
    assert spent[0] == spent[1]


@pytest.mark.parametrize("where", ["chunk", "segment", "index", "segment gone"])
def test_what_is_damaged_is_left_out_with_one_warning(tmp_path: Path, where: str) -> None:
    cells = mixed(tmp_path)
    name = {"chunk": "loose"}.get(where, "one")
    path = {
        "chunk": tmp_path / "cells" / cells["loose"].key[:2] / cells["loose"].key / "000001.jsonl",
        "segment": tmp_path / "segments/000001.jsonl",
        "index": tmp_path / "segments/000001.index.json",
        "segment gone": tmp_path / "segments/000001.jsonl",
    }[where]
    if where == "segment gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"a", "score"', b'"X", "score"', 1) if where != "index" else data[:-9])
    with pytest.warns(StoreWarning) as expected:
        wanted = {one.key: list(one.rows().values()) for one in cells.values()}
    store = Store(tmp_path)
    with pytest.warns(StoreWarning) as caught:
        told = dict([*store.columns(wanted), *store.columns(list(wanted)[:2])])
    counts = store.counts()
    assert {str(w.message) for w in caught} == {str(w.message) for w in expected}
    assert len(caught) == len({str(w.message) for w in caught})
    assert any(str(path) in str(w.message) for w in caught)
    for key, table in wanted.items():
        agrees(told[key], table)
    assert len(wanted[cells[name].key]) < COUNTS[name]
    if where in ("chunk", "index"):
        assert counts == {key: len(table) for key, table in wanted.items() if table}


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(15, 400), marks=pytest.mark.soak)])
def test_a_flipped_bit_in_a_store_costs_rows_and_changes_none(tmp_path: Path, seeds: range) -> None:
    good = tmp_path / "good"
    cells = mixed(good)
    wanted = {name: one.rows() for name, one in cells.items()}
    written: dict[str, list[Row]] = {name: [] for name in cells}  # also those that are not the first of their item
    for path in [*good.glob("segments/*.jsonl"), *good.glob("cells/*/*/*.jsonl")]:
        for line in path.read_text().splitlines():
            fields = json.loads(line)
            if "item" in fields:
                row = Row(**{**fields, "logprobs": tuple(fields["logprobs"]), "flags": tuple(fields["flags"])})
                written[row.prediction.split(" \\ ")[0]].append(row)
    for seed in seeds:
        draw, root = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(good, root)
        path = draw.choice([path for path in sorted(root.rglob("*")) if path.suffix in (".jsonl", ".json")])
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        store = Store(root)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StoreWarning)
            told = dict(store.columns(one.key for one in cells.values()))
            for name, one in cells.items():
                table = store.cell(one.key, {"name": name}).rows()
                assert all(row in written[name] for row in table.values()), seed
                agrees(told[one.key], table.values())
            store.merge(Store(good))
        for name, one in cells.items():
            assert store.read_columns(one.key).items, seed
            assert store.cell(one.key, {"name": name}).rows().keys() == wanted[name].keys(), seed


@pytest.mark.parametrize("when", ["before", "after"])
def test_cells_that_are_compacted_while_they_are_counted_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before or after the folders of cells are listed."""
    cells = mixed(tmp_path)
    writer = Store(tmp_path)
    writer.counts()
    names = loose.keys

    def meanwhile(folder: Path) -> set[str]:
        listed = names(folder) if when == "after" else set()
        assert writer.compact_used() == 2
        return listed | names(folder)

    monkeypatch.setattr(loose, "keys", meanwhile)
    assert Store(tmp_path).counts() == {one.key: COUNTS[name] for name, one in cells.items()}


def test_cells_that_are_merged_while_they_are_read_are_read_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MANY", 2)
    store = Store(tmp_path)
    cells = [cell(store, number) for number in range(40)]
    for start in (0, 10, 20, 30):
        append_all([(one, rows("a", "b")) for one in cells[start : start + 10]])
    reading = Store(tmp_path).columns(one.key for one in cells)
    told = dict([next(reading)])
    store.compact_used()
    assert len(list(tmp_path.glob("segments/*.jsonl"))) == 1
    told |= dict(reading)
    assert {key: len(columns.items) for key, columns in told.items()} == {one.key: 2 for one in cells}


def test_what_was_read_from_chunks_is_compacted_with_its_conditions(tmp_path: Path) -> None:
    mixed(tmp_path)
    store = Store(tmp_path)
    broken = cell(store, "broken")
    broken.append(rows("a"))
    (store.folder(broken.key) / "conditions.json").write_bytes(b"")  # as a power cut may leave it
    reader = Store(tmp_path)
    keys = [cell(store, name).key for name in ("loose", "both", "broken")]
    assert [key for key, _ in reader.columns(keys)] == sorted(keys)
    assert reader.compact_used() == 2
    assert [reader.conditions(key) for key in keys[:2]] == [{"name": "loose"}, {"name": "both"}]
    assert list(Store(tmp_path).read_columns(broken.key).items) == ["a"]
    assert cell_key({"name": "broken"}) == broken.key
    assert list(broken.rows()) == ["a"]
    assert store.compact_used() == 1
    assert Store(tmp_path).conditions(broken.key) == {"name": "broken"}


def test_an_encoder_that_changes_is_noticed() -> None:
    """Else all rows would be read the slow way."""
    assert columns._LINE.fullmatch(chunks._line(Row("a", 1.0, "b", (-0.5, -1e-7), None, ("tie", "cut"))).encode())
