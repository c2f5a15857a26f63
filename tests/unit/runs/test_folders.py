"""Output folders: read-only, full, foreign, of another comparison."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from catchment.errors import StoreError
from catchment.records import Row
from catchment.runs import Store, append_all, cell_key, claim_folder, write_atomic

MINE = {"base": "aaa", "tuned": "bbb", "tasks": {"recall": 400}, "margin": 0.02}


def test_text_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    write_atomic(path, "one é")
    write_atomic(path, "two")
    assert path.read_text("utf-8") == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.json"]


def _fail(code: int) -> Any:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return failing


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        ("open", errno.EROFS, "Read-only file system; the file system is read-only: choose"),
        ("fsync", errno.ENOSPC, "No space left on device; the disk is full: free some space"),
        ("replace", errno.EDQUOT, "quota"),
        ("open", errno.EACCES, "Permission denied; no permission to write here"),
        ("replace", errno.EIO, "check the disk"),
    ],
)
def test_a_failed_write_explains_itself_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, says: str
) -> None:
    path = tmp_path / "comparison.json"
    write_atomic(path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, _fail(code))
        with pytest.raises(StoreError, match=says) as caught:
            write_atomic(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.json"]


def test_an_interrupted_write_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", "y")
    assert list(tmp_path.iterdir()) == []


def test_a_store_on_a_read_only_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Store(tmp_path / "store").cell(cell_key({}), {})
    monkeypatch.setattr(Path, "mkdir", _fail(errno.EROFS))
    for action in (
        lambda: cell.append([Row("a", 1.0, "")]),
        lambda: claim_folder(tmp_path / "out", MINE, "comparison"),
    ):
        with pytest.raises(StoreError, match="read-only"):
            action()


def test_a_lock_on_a_read_only_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", _fail(errno.EROFS))
    with pytest.raises(StoreError, match="read-only"), Store(tmp_path).lock("compare"):
        pass


def test_a_file_system_without_hard_links_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _fail(errno.EPERM))
    cell = Store(tmp_path).cell(cell_key({}), {})
    cell.append([Row("a", 1.0, "")])
    cell.append([Row("a", 0.0, ""), Row("b", 0.0, "")])
    assert {k: row.score for k, row in cell.rows().items()} == {"a": 1.0, "b": 0.0}


small = pytest.mark.parametrize("disk", ["64k"], indirect=True)


@small
def test_a_disk_that_is_really_full(disk: Path) -> None:
    """Rows written before it filled up stay; the same call works once there is room again."""
    out = claim_folder(disk / "out", MINE, "comparison")
    cell = Store(out / "store").cell(cell_key({}), {})
    cell.append([Row("a", 1.0, "kept")])
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(30_000))
    big = [Row("b", 1.0, "x" * 40_000)]
    with pytest.raises(StoreError, match="No space left on device; the disk is full"):
        cell.append(big)
    others = [cell.store.cell(cell_key({"n": number}), {"n": number}) for number in range(2)]
    with pytest.raises(StoreError, match="disk is full"):
        append_all([(other, big) for other in others])
    assert cell.store.counts() == {cell.key: 1}
    with pytest.raises(StoreError, match="disk is full"):
        write_atomic(out / "report.html", "x" * 40_000)
    assert [p for p in disk.rglob("*") if p.name.endswith(".tmp")] == []
    assert list(cell.rows()) == ["a"]
    ballast.unlink()
    cell.append(big)
    assert list(cell.rows()) == ["a", "b"]


@small
def test_a_disk_that_is_really_read_only(disk: Path) -> None:
    out = claim_folder(disk / "out", MINE, "comparison")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match="read-only"):
        write_atomic(out / "comparison.json", "{}")
    with pytest.raises(StoreError, match="read-only"), Store(out).lock("compare"):
        pass
    with pytest.raises(StoreError, match="read-only"):
        claim_folder(disk / "other", MINE, "comparison")
    claim_folder(out, MINE, "comparison")  # reading it is fine


def test_a_folder_is_claimed_once_and_taken_up_again(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert claim_folder(out, MINE, "comparison") == out
    marker = (out / "catchment.json").read_text()
    (out / "report.html").write_text("page")
    claim_folder(str(out), {**MINE, "tasks": {"recall": 400}}, "comparison")
    assert (out / "catchment.json").read_text() == marker


def test_a_locked_but_new_folder_can_be_claimed(tmp_path: Path) -> None:
    with Store(tmp_path).lock("compare"):
        claim_folder(tmp_path, MINE, "comparison")


def test_a_folder_of_another_comparison_is_refused_with_the_differences(tmp_path: Path) -> None:
    claim_folder(tmp_path, MINE, "comparison")
    other = {**MINE, "tuned": "ccc", "tasks": {"recall": 100}}
    with pytest.raises(StoreError) as caught:
        claim_folder(tmp_path, other, "comparison")
    said = str(caught.value)
    assert "holds another comparison" in said
    assert 'tuned is "ccc" here and "bbb" there' in said
    assert "tasks.recall is 100 here and 400 there" in said
    assert "base" not in said
    assert "Choose another output folder, or delete this one" in said
    with pytest.raises(StoreError, match='what is "scan" here and "comparison" there'):
        claim_folder(tmp_path, MINE, "scan")


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"files that are not ours \(thesis\.tex\)"):
        claim_folder(tmp_path, MINE, "comparison")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3"])
def test_a_broken_marker_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "catchment.json").write_text(content)
    with pytest.raises(StoreError, match="cannot be read"):
        claim_folder(tmp_path, MINE, "comparison")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match="a file of that name is in the way"):
        claim_folder(tmp_path / "out", MINE, "comparison")
    with pytest.raises(StoreError, match="a part of the path is a file"):
        claim_folder(tmp_path / "out" / "deeper", MINE, "comparison")
