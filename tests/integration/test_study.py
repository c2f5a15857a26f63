"""``study`` end to end on tiny models: what is measured, shared, resumed, refused."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catchment import models
from catchment.commands.study import report, scanning, worker
from catchment.commands.study.record import FILE, Study
from catchment.commands.study.standing import Site
from catchment.commands.study.tunings import artefact, read_tuned
from catchment.commands.study.worker import work
from catchment.records import Row, from_json, to_json
from catchment.runs import Store
from tests import freeze
from tests.freeze import said
from tests.unit.commands.study.grids import design, settings, write_grid

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    freeze.write_inputs(root)
    return root


@pytest.fixture
def folder(inputs: Path, tmp_path: Path) -> Iterator[Path]:
    """Tiny models and tasks in a folder of this test, which is the current directory."""
    place = tmp_path / "place"
    shutil.copytree(inputs, place)
    with freeze.place(place):
        yield place


@pytest.fixture(scope="module")
def measured(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small grid, measured in one go by one worker."""
    place = tmp_path_factory.mktemp("measured") / "place"
    shutil.copytree(inputs, place)
    with freeze.place(place):
        work(settings(write_grid(place)), 0, None)
    return place


def rows_of(store: Path) -> dict[str, dict[str, Row]]:
    """All rows of a store, by cell and item."""
    opened = Store(store)
    return {key: dict(opened.cell(key, {}).rows()) for key in opened.counts()}


def site_of(path: Path, **options: Any) -> Site:
    return Site.open(settings(path, **options), design(path, **options))


def test_one_load_and_one_training_per_unit(folder: Path) -> None:
    path = write_grid(folder, tunings=[{"name": "sums", "data": "sums.jsonl", "method": ["full", "lora", "sift"],
                                        "max_steps": 3, "max_length": 64}])  # fmt: skip
    done = work(settings(path), 0, None)
    assert (done.loads, done.trained, done.cells, done.failed) == (1, 6, 14, 0)
    again = work(settings(path), 0, None)
    assert (again.loads, again.trained, again.cells) == (0, 0, 0)
    assert {stand.status for stand in site_of(path).stands()} == {"done"}


def test_a_tuned_model_in_memory_is_the_one_on_the_disk(folder: Path) -> None:
    path = write_grid(folder, seeds=[0], tunings=[{"name": "sums", "data": "sums.jsonl", "max_steps": 3,
                                                   "method": ["full", "lora", "sift"], "max_length": 64}])  # fmt: skip
    work(settings(path), 0, None)
    site = site_of(path)
    for unit in site.design.units(site.design.places[0]):
        if unit.trains:
            key = site.known(unit).key
            tuned, place = read_tuned(site.store, key), artefact(site.store, key)
            assert tuned is not None
            assert place is not None
            whole = (place / "config.json").is_file()
            card = models.load(str(place) if whole else f"{folder / 'base'}+{place}", device="cpu").card
            same = ("weights_hash", "config_hash", "tokenizer_hash", "template_hash", "dtype", "attention")
            assert [getattr(card, name) for name in same] == [getattr(tuned.card, name) for name in same]


def test_rows_are_those_of_compare_and_the_reverse(folder: Path) -> None:
    asked = ("base", "tuned", "--tasks", "echo.jsonl", "--text", "none", "--formats", "2", "--limit", "24", "--device",
             "cpu", "--no-room", "--store", "store")  # fmt: skip
    code, _, errors = said("compare", *asked, "--out", "c")
    assert code == 0, errors
    path = write_grid(folder, tunings=[{"name": "ready", "model": "tuned"}])
    stands = {(s.unit.tuning, s.question.format): s.status for s in site_of(path).stands()}
    assert stands["base", "plain"] == stands["ready", "plain"] == "done"
    work(settings(path), 0, None)
    before = rows_of(folder / "store")
    assert said("compare", *asked, "--out", "d")[0] == 0
    assert rows_of(folder / "store") == before


def test_a_value_more_runs_only_the_new_cells(measured: Path, folder: Path) -> None:
    shutil.copytree(measured / "store", folder / "store")
    path = write_grid(folder, seeds=[0, 1, 2])
    counts = [stand.status for stand in site_of(path).stands()]
    assert (counts.count("done"), counts.count("missing")) == (10, 4)
    done = work(settings(path), 0, None)
    assert (done.trained, done.cells) == (2, 4)


@pytest.mark.parametrize("scanned", [False, True], ids=["", "beside scans that are done"])
def test_a_damaged_cell_is_measured_again(
    measured: Path, folder: Path, scanned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scanned:
        monkeypatch.setattr(scanning, "read_scan", lambda site, axis, card: SimpleNamespace(basins=()))
        monkeypatch.setattr(report, "scans_of", lambda site: ())
    shutil.copytree(measured / "store", folder / "store")
    before = rows_of(measured / "store")
    (segment, *_) = sorted((folder / "store/segments").glob("*.jsonl"))
    data = bytearray(segment.read_bytes())
    middle = data.index(b'"score"', len(data) // 2)
    data[middle + 9] ^= 1
    segment.write_bytes(bytes(data))
    path = write_grid(folder, scans=[{"name": "done"}] if scanned else None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        code, _, errors = said("study", "run", str(path), "--store", "store", "--out", "out")
        after = rows_of(folder / "store")
    assert any("is damaged" in str(warning.message) for warning in told)
    assert code == 0, errors
    assert after == before


def test_what_fails_is_kept_and_tried_again(folder: Path) -> None:
    path = write_grid(folder, seeds=[0], tunings=[{"name": "sums", "data": "sums.jsonl", "method": "full",
                      "learning_rate": [1e-3, 1e30], "max_steps": 3, "max_length": 64}])  # fmt: skip
    code, _, errors = said("study", "run", str(path), "--store", "store", "--out", "out")
    assert code == 0, errors
    record = from_json(Study, (folder / "out" / FILE).read_text(encoding="utf-8"))
    assert (record.counts["done"], record.counts["failed"]) == (4, 2)
    (gap,) = [gap for gap in record.gaps if gap.status == "failed" and not gap.what.startswith("training")]
    assert "the loss is nan" in gap.reason or "not finite" in gap.reason
    assert record.headline == "incomplete"


def test_prompts_beyond_the_context_are_said_before_any_compute(folder: Path) -> None:
    lines = [{"prompt": f"{i} " + "the cat is red and " * 200, "choices": ["a", "b"], "gold": i % 2} for i in range(12)]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = write_grid(folder, tasks=["echo.jsonl", "long.jsonl"])
    code, printed, errors = said("study", "run", str(path), "--store", "store", "--out", "out")
    assert (code, printed) == (2, "")
    assert "longer than the model's context" in errors
    assert not (folder / "store/cells").exists()
    assert not (folder / "store/tunings").exists()


def test_out_of_another_study(measured: Path, folder: Path) -> None:
    shutil.copytree(measured / "store", folder / "store")
    assert said("study", "run", str(write_grid(folder)), "--store", "store", "--out", "out")[0] == 0
    before = (folder / "out" / FILE).read_bytes()
    code, _, errors = said("study", "run", str(write_grid(folder, "other.yaml")), "--store", "store", "--out", "out")
    assert code == 2
    assert "holds another study" in errors
    assert (folder / "out" / FILE).read_bytes() == before


def test_tuned_models_are_dropped_within_the_disk_and_rows_stay(folder: Path) -> None:
    one = [{"name": "sums", "data": "sums.jsonl", "method": "full", "max_steps": 3, "max_length": 64}]
    path = write_grid(folder, tunings=one)
    work(settings(path, disk=0.0001), 0, None)
    site = site_of(path)
    stored = list((folder / "store/tunings").glob("*/*/model"))
    assert sum(file.stat().st_size for place in stored for file in place.rglob("*") if file.is_file()) <= 1e5
    assert {stand.status for stand in site.stands()} == {"done"}
    more = write_grid(folder, tunings=one, formats=3)
    before = rows_of(folder / "store")
    work(settings(more, disk=0.0001), 0, None)
    after = rows_of(folder / "store")
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 3


def test_time_that_ends_leaves_whole_rows_and_goes_on(
    measured: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a second at every look; each run has 11 looks."""
    ticks = itertools.count()
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    one = {"name": "sums", "data": "sums.jsonl", "method": "full", "max_steps": 3, "max_length": 64}
    path, rounds = write_grid(folder, seeds=[0], tunings=[one]), 0
    while work(settings(path), 0, 11.0).late:
        rounds += 1
        assert rounds < 60
    assert rounds > 2
    rows, all_rows = rows_of(folder / "store"), rows_of(measured / "store")
    assert rows == {key: all_rows[key] for key in rows}
    assert len(rows) == 4


def test_aliases_are_said_by_the_plan(folder: Path) -> None:
    shutil.copytree(folder / "base", folder / "runs/step1")
    shutil.copytree(folder / "base", folder / "runs/step2")
    shutil.copytree(folder / "tuned", folder / "runs/step3")
    path = write_grid(folder, models=[{"model": "runs", "revisions": ["step1", "step2", "step3"]}], tunings=None)
    code, printed, errors = said("study", "plan", str(path), "--store", "store")
    assert code == 0, errors
    assert "runs at step1 and runs at step2" in printed
    assert not (folder / "store").exists()


def test_a_record_reads_back(measured: Path, folder: Path) -> None:
    shutil.copytree(measured / "store", folder / "store")
    code, printed, errors = said("study", "run", str(write_grid(folder)), "--store", "store", "--out", "out", "--json")
    assert code == 0, errors
    record = from_json(Study, printed)
    assert to_json(record) == printed.strip()
    assert record.counts["done"] == record.counts["cells"] == 10
    assert {change.tuning for change in record.changes} == {"sums full", "sums lora"}
    assert all(change.seeds == 2 for change in record.changes)
