"""Calls: cells of a study that are functions of a file beside its YAML file."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from catchment.commands.study.calls import gaps_of, read_result, stand_of
from catchment.commands.study.design import read_design
from catchment.commands.study.run import study
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.standing import read_remarks
from catchment.commands.study.worker import Done, work
from catchment.errors import InputError
from catchment.runs import Store

CLAIM = '''
import os
import other
from catchment.errors import CatchmentError
from catchment.measuring import OutOfTimeError


def noted(call, *words):
    with (call.store.root / "log").open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")


def double(call, x, y=0):
    noted(call, os.getpid(), x)
    if x == 13:
        raise CatchmentError("13 cannot be doubled")
    return {"value": other.TWO * x + y}


def long(call):
    """Five steps, each kept; the time is spent after the second step of the first run."""
    kept = call.folder / "kept"
    for step in range(int(kept.read_text()) if kept.exists() else 0, 5):
        noted(call, "step", step)
        kept.write_text(str(step + 1))
        if (call.store.root / "short").exists() and step == 1:
            call.until = lambda: (_ for _ in ()).throw(OutOfTimeError("spent"))
        call.advance(1.0)
    return 5


def careless(call):
    """Goes on where it was told to stop, as a part of the library does that returns what it has."""
    try:
        call.until = lambda: (_ for _ in ()).throw(OutOfTimeError("spent"))
        call.status("")
    except OutOfTimeError:
        return "half"


def not_json(call):
    return {1, 2}
'''


def settings(folder: Path, calls: object) -> StudySettings:
    (folder / "claim.py").write_text(CLAIM)
    (folder / "other.py").write_text("TWO = 2\n")
    (folder / "store").mkdir(exist_ok=True)
    return StudySettings(study=folder / "study.yaml", store=folder / "store", tasks=(), calls=calls)


def log(folder: Path) -> list[str]:
    return (folder / "store/log").read_text().splitlines()


def results(s: StudySettings) -> list[object]:
    return [read_result(Store(s.store_folder), call) for call in read_design(s).calls]


def test_calls_are_made_once_and_a_longer_axis_makes_the_new_ones(tmp_path: Path) -> None:
    s = settings(tmp_path, [{"function": "claim.py:double", "over": {"x": [1, 2], "y": [0, 5]}}])
    assert work(s, 0, None).cells == 4
    assert results(s) == [{"value": v} for v in (2, 7, 4, 9)]
    longer = settings(tmp_path, [{"function": "claim.py:double", "over": {"x": [1, 2, 3], "y": [0, 5]}}])
    assert work(longer, 0, None).cells == 2
    assert len(log(tmp_path)) == 6


def test_a_new_version_is_called_again_and_a_new_text_is_not(tmp_path: Path) -> None:
    work(settings(tmp_path, [{"function": "claim.py:double", "over": {"x": 1}}]), 0, None)
    s = settings(tmp_path, [{"function": "claim.py:double", "over": {"x": 1}}])
    (tmp_path / "claim.py").write_text(CLAIM + "\n# a remark\n")
    assert work(s, 0, None).cells == 0
    assert (
        work(settings(tmp_path, [{"function": "claim.py:double", "over": {"x": 1}, "version": 2}]), 0, None).cells == 1
    )


def test_a_failure_is_kept_with_its_reason_and_costs_no_other_call(tmp_path: Path) -> None:
    s = settings(tmp_path, [{"function": "claim.py:double", "over": {"x": [13, 1]}}, "claim.py:not_json"])
    done = work(s, 0, None)
    assert (done.cells, done.failed) == (1, 2)
    store, calls = Store(s.store_folder), read_design(s).calls
    reasons = {key: told.reason for key, told in read_remarks(store).items()}
    assert [stand_of(store, call, reasons)[0] for call in calls] == ["failed", "done", "failed"]
    gaps = gaps_of(calls, store, reasons)
    assert [(gap.cells, gap.status, "13 cannot be doubled" in gap.reason) for gap in gaps] == [
        (1, "failed", True), (1, "failed", False),
    ]  # fmt: skip
    assert "double(x=13)" in gaps[0].what
    assert "no JSON" in gaps[1].reason


def test_a_call_whose_time_is_spent_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    s = settings(tmp_path, ["claim.py:long"])
    (tmp_path / "store/short").touch()
    first = work(s, 0, None)
    assert (first.late, first.cells, results(s)) == (True, 0, [None])
    (tmp_path / "store/short").unlink()
    assert work(s, 0, None).cells == 1
    assert results(s) == [5]
    assert log(tmp_path) == [f"step {k}" for k in range(5)]


def test_what_a_call_returns_after_its_time_was_spent_is_no_result(tmp_path: Path) -> None:
    s = settings(tmp_path, ["claim.py:careless"])
    assert work(s, 0, None).late
    assert results(s) == [None]


def test_no_call_is_begun_when_the_time_is_spent(tmp_path: Path) -> None:
    s = settings(tmp_path, [{"function": "claim.py:double", "over": {"x": [1, 2]}}])
    assert work(s, 0, -1.0).late
    assert not (tmp_path / "store/log").exists()


def test_two_workers_share_the_calls(tmp_path: Path) -> None:
    s = settings(tmp_path, [{"function": "claim.py:double", "over": {"x": list(range(12))}}])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        done: list[Done] = pool.starmap(work, [(s, 0, None)] * 2)
    assert sum(part.cells for part in done) == 12
    assert sorted(int(line.split()[1]) for line in log(tmp_path)) == list(range(12))


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    s = settings(tmp_path, [{"function": "claim.py:double", "over": {"x": 1}}])
    work(s, 0, None)
    path = next((tmp_path / "store/calls").glob("*/result.json"))
    path.write_text(path.read_text()[:20])
    with pytest.warns(UserWarning, match="no result of a call"):
        assert work(s, 0, None).cells == 1
    assert json.loads(path.read_text())["result"] == {"value": 2}


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ("claim.py:duble", "did you mean 'double'|no function 'duble'"),
        ("nowhere.py:double", "expected file.py:name"),
        ("double", "expected file.py:name"),
        ({"function": "claim.py:double", "over": {"z": [1]}}, "no argument 'z'"),
        ({"function": "claim.py:double", "over": {"x": [1, 1]}}, "twice"),
        (["claim.py:long", "claim.py:long"], "twice"),
        ({"function": "claim.py:double", "ovr": {"x": 1}}, "unknown key 'ovr'"),
        ([], "models is empty"),
    ],
)
def test_bad_calls_are_refused(tmp_path: Path, calls: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_design(settings(tmp_path, calls))


def test_a_study_of_calls_alone_counts_them_and_takes_over_those_of_another_store(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder, values in ((there, [1, 2]), (here, [1, 2, 13])):
        folder.mkdir()
        settings(folder, ())
        content = {"name": "sums", "tasks": [], "calls": [{"function": "claim.py:double", "over": {"x": values}}]}
        (folder / "study.yaml").write_text(json.dumps(content))
    study(there / "study.yaml", store=there / "store")
    record = study(here / "study.yaml", "merge", others=(str(there / "store"),), store=here / "store")
    assert (record.counts["cells"], record.counts["done"], record.counts["missing"]) == (3, 2, 1)
    record = study(here / "study.yaml", store=here / "store")
    assert (record.counts["done"], record.counts["failed"], record.headline) == (2, 1, "incomplete")
    assert [(gap.cells, gap.status, gap.reason) for gap in record.gaps] == [(1, "failed", "13 cannot be doubled")]
    assert {line.split()[1] for line in log(here)} == {"13"}
