"""``study`` under faults: kills, full disks, damaged files, several drivers, clocks that jump, machines that die. The
study that is finished afterwards equals the undisturbed one row for row."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from catchment.commands.study import driver, worker
from catchment.commands.study.fetched import keep_within
from catchment.commands.study.standing import Site
from catchment.commands.study.worker import work
from catchment.records import Row
from catchment.runs import Leases, Store
from catchment.runs.heartbeats import this_process
from tests import freeze
from tests.freeze import masked
from tests.integration.forked import Forks, Work
from tests.integration.test_study import rows_of
from tests.unit.commands.study.grids import design, settings, write_grid

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STEPS = 3
GRID: dict[str, Any] = {
    "tunings": [
        {"name": "sums", "data": "sums.jsonl", "method": ["full", "lora", "sift"], "max_steps": STEPS,
         "max_length": 48, "batch_size": 2},
        {"name": "ready", "model": "tuned"},
    ],
    "seeds": [0, 1],
    "tasks": ["echo.jsonl"],
    "formats": 2,
    "limit": 24,
}  # fmt: skip

CELLS = 16


@dataclass(frozen=True)
class Finished:
    """A study that nothing disturbed: its folder, and what it computed."""

    folder: Path
    work: Work

    @property
    def store(self) -> Path:
        return self.folder / "store"


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "inputs"
    root.mkdir()
    freeze.write_inputs(root)
    write_grid(root, **GRID)
    return root


@pytest.fixture(scope="module")
def finished(inputs: Path, forks: Forks) -> Finished:
    folder = shutil.copytree(inputs, inputs.parent / "finished")
    code, said = forks.run(folder, words())
    assert code == 0, said
    work = forks.work(folder)
    assert (work.items, work.steps) == (CELLS * 24, 6 * STEPS)
    return Finished(folder, work)


@pytest.fixture
def folder(inputs: Path, tmp_path: Path) -> Path:
    """The inputs, in a folder of this test."""
    return shutil.copytree(inputs, tmp_path / "place")


def words(out: str = "out", *more: str) -> list[str]:
    return ["study", "run", "study.yaml", "--store", "store", "--out", out, "--batch-tokens", "256", *more]


def all_rows(store: Path) -> dict[str, dict[str, Row]]:
    return {key: dict(sorted(rows.items())) for key, rows in rows_of(store).items()}


def record(out: Path) -> Any:
    return masked(json.loads((out / "study.json").read_text(encoding="utf-8")))


def assert_equal(folder: Path, finished: Finished, out: str = "out") -> None:
    """All rows, the table and the record are those of the study that nothing disturbed."""
    assert all_rows(folder / "store") == all_rows(finished.store)
    one, two = (list(csv.reader((place / "cells.csv").open())) for place in (folder / out, finished.folder / "out"))
    assert one == two
    assert record(folder / out) == record(finished.folder / "out")
    tunings = [sorted(p.parent.name for p in (root / "store/tunings").glob("*/*/tuning.json"))
               for root in (folder, finished.folder)]  # fmt: skip
    assert tunings[0] == tunings[1]
    assert left_behind(folder / "store") == []


def left_behind(store: Path) -> list[str]:
    """What processes that are gone left in a store: leases, heartbeats, checkpoints. Half-written files that have no
    name yet go after a day."""
    kinds = ("leases/units/*", "leases/holders/*", "tunings/*/*/checkpoints", "tunings/*/.*")
    return [str(path.relative_to(store)) for kind in kinds for path in store.glob(kind)]


# -------------------------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 5))])
def test_a_killed_study_goes_on_to_the_same_rows(seed: int, folder: Path, finished: Finished, forks: Forks) -> None:
    """kill -9 before three random changes of files, one run after the other: what is on the disk is the same at any
    moment between two of them. A kill costs a batch of items or a step of a training, where each step is saved."""
    draw = random.Random(seed)
    kills = 0
    for _ in range(3):
        code, said = forks.run(folder, words(), stop=draw.randint(1, finished.work.changes // 2))
        assert code in (0, -9), said
        kills += code == -9
    assert kills >= 2
    code, said = forks.run(folder, words())
    assert code == 0, said
    assert_equal(folder, finished)
    work = forks.work(folder)
    assert work.items - finished.work.items <= kills * max(finished.work.batches)
    assert work.steps - finished.work.steps <= kills


# ------------------------------------------------------------------------------------------------------ several at once


@pytest.mark.parametrize(
    "outs", [("out", "out"), pytest.param(("out", "other"), marks=pytest.mark.soak)], ids=["same OUT", "OUT each"]
)
def test_two_drivers_on_one_store(outs: tuple[str, str], folder: Path, finished: Finished, forks: Forks) -> None:
    """Both end with the complete record, and nothing is measured or trained twice."""
    processes = [forks.start(folder, words(out), output=f"{n}.txt") for n, out in enumerate(outs)]
    codes = [forks.wait(process) for process in processes]
    assert codes == [0, 0], [(forks.folder / f"{n}.txt").read_text() for n in range(2)]
    for out in set(outs):
        assert_equal(folder, finished, out)
    work = forks.work(folder)
    assert (work.items, work.steps) == (finished.work.items, finished.work.steps)


# --------------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.soak
def test_a_clock_that_jumps(folder: Path, finished: Finished, forks: Forks) -> None:
    """By up to 30 hours at every look, both ways; and a store whose files are of tomorrow, or of last year."""
    draw = random.Random(0)
    forks.run(folder, words(), stop=finished.work.changes // 3, clock=1)
    for path in (folder / "store").rglob("*"):
        when = path.stat().st_mtime + draw.choice([-1e7, 2e5])
        os.utime(path, (when, when))
    code, said = forks.run(folder, words(), clock=2)
    assert code == 0, said
    assert_equal(folder, finished)


# ------------------------------------------------------------------------------------------------------------ full disk

DISK = 20 << 20
"""Bytes of the small file system."""


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of its own; ``OSError`` where that is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise OSError("a file system cannot be mounted")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def leave_free(folder: Path, room: int) -> None:
    """Fill the disk of a folder until so many bytes are free."""
    ballast = folder / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - room)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 5))])
def test_a_full_disk(seed: int, inputs: Path, tmp_path: Path, finished: Finished, forks: Forks) -> None:
    """Full in the middle of something, three times: one line, exit code 2; with more room the same command goes on, and
    nothing that was half written counts."""
    draw = random.Random(seed)
    needed = sum(path.stat().st_size for kind in ("store", "out") for path in (finished.folder / kind).rglob("*"))
    with small_disk(tmp_path / "disk") as disk:
        folder = shutil.copytree(inputs, disk / "place")
        for share in sorted(draw.uniform(0.0, 0.5) for _ in range(3)):
            leave_free(folder, int(share * needed))
            code, said = forks.run(folder, words())
            assert code == 2, said
            (line,) = [line for line in said.splitlines() if line.startswith("catchment: ")]
            assert "No space left on device" in line or "MB of free space" in line
            assert "free some space" in line
            assert "Traceback" not in said
        subprocess.run(["mount", "-o", f"remount,size={2 * DISK}", str(disk)], check=True)
        code, said = forks.run(folder, words())
        assert code == 0, said
        assert_equal(folder, finished)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.soak
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.8])
def test_a_disk_that_is_full_when_the_page_is_written(
    share: float, inputs: Path, tmp_path: Path, finished: Finished, forks: Forks
) -> None:
    """All is measured, and the tables, the record or the page do not fit."""
    with small_disk(tmp_path / "disk") as disk:
        folder = shutil.copytree(inputs, disk / "place")
        shutil.copytree(finished.store, folder / "store")
        leave_free(folder, int(share * sum(path.stat().st_size for path in (finished.folder / "out").iterdir())))
        code, said = forks.run(folder, words())
        assert code == 2, said
        assert "No space left on device" in said
        (folder / "ballast").unlink()
        code, said = forks.run(folder, words())
        assert code == 0, said
        assert_equal(folder, finished)


# --------------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, draw: random.Random, start: int = 0) -> None:
    """Change one byte of a file, from ``start`` on."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(start, len(data))
    data[place] ^= draw.randint(1, 255)
    path.write_bytes(bytes(data))


DAMAGE = {
    "rows": "segments/*.jsonl",
    "index": "segments/*.index.json",
    "chunk": "cells/*/*/*.jsonl",
    "conditions": "cells/*/*/conditions.json",
    "tuning.json": "tunings/*/*/tuning.json",
    "weights": "tunings/*/*/model/*.safetensors",
    "config": "tunings/*/*/model/config.json",
    "adapter": "tunings/*/*/model/adapter_config.json",
    "paces": "paces/*.json",
    "notes": "notes/*.json",
}
"""Files of a store that are damaged, by what they hold."""


@pytest.fixture(scope="module")
def half(inputs: Path, finished: Finished, forks: Forks) -> Path:
    """A study that was killed when half of it was done, with a remark and a lease that a machine left behind."""
    folder = shutil.copytree(inputs, inputs.parent / "half")
    code, said = forks.run(folder, words(), stop=int(0.55 * finished.work.changes))
    assert code == -9, said
    return folder


def damage(store: Path, kinds: list[str], draw: random.Random) -> list[str]:
    """One byte in one file of each kind that is there."""
    paths = [draw.choice(there) for kind in kinds if (there := sorted(store.glob(DAMAGE[kind])))]
    for path in paths:
        flip(path, draw)
    return [path.name for path in paths]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 9))])
def test_damaged_files_of_all_kinds(seed: int, half: Path, tmp_path: Path, finished: Finished, forks: Forks) -> None:
    """One byte changed in each: what they held is made again."""
    folder, draw = shutil.copytree(half, tmp_path / "place"), random.Random(seed)
    names = damage(folder / "store", list(DAMAGE), draw)
    assert len(names) >= 6
    (folder / "store/remarks").mkdir(exist_ok=True)
    for key in list(all_rows(finished.store))[::3]:
        (folder / f"store/remarks/{key}.json").write_text('{"reason": "", "left_out": 24, "sha256": "0"}')
    (folder / "out/study.json").write_text("{")
    (folder / "out/cells.csv").write_text("{")
    code, said = forks.run(folder, words())
    assert code == 0, (names, said)
    assert_equal(folder, finished)


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.soak),
                                    pytest.param("sift", marks=pytest.mark.soak)])  # fmt: skip
@pytest.mark.parametrize("cut", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_damaged_weights_are_trained_again(method: str, cut: bool, folder: Path) -> None:
    """Before another task is asked of them; rows that were there stay, and new ones are of the same weights."""
    one = {"name": "sums", "data": "sums.jsonl", "method": method, "max_steps": 2, "max_length": 48}
    with freeze.place(folder):
        work(settings(write_grid(folder, tunings=[one], seeds=[0], limit=8, formats=1)), 0, None)
        before = all_rows(folder / "store")
        (weights,) = (folder / "store/tunings").glob("*/*/model/*.safetensors")
        whole = bytearray(weights.read_bytes())
        half = whole[: len(whole) // 2]
        weights.write_bytes(half if cut else whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:])
        path = write_grid(folder, tunings=[one], seeds=[0], limit=8)
        done = work(settings(path), 0, None)
        assert (done.trained, done.cells, done.failed) == (1, 2, 0)
        assert weights.read_bytes() == whole
        stands = list(Site.open(settings(path), design(path)).stands())
    assert {stand.status for stand in stands} == {"done"}
    after = all_rows(folder / "store")
    assert {key: after[key] for key in before} == before


def test_a_lease_of_a_machine_that_fell_silent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heartbeat cannot be read and stands still: after the patience the study goes on, and the lease is gone."""
    monkeypatch.setattr(driver, "LOOK", 0.02)
    for module in (driver, worker):
        monkeypatch.setattr(module, "Leases", partial(Leases, interval=0.02, patience=0.2))
    path = write_grid(folder, tunings=None, limit=8)
    keys = [stand.key for stand in Site.open(settings(path), design(path)).stands()]
    for key in keys:
        (folder / f"store/leases/units/{key}").mkdir(parents=True)
        (folder / f"store/leases/units/{key}/0123456789abcdef-1").touch()
    (folder / "store/leases/holders/0123456789abcdef").mkdir(parents=True)
    (folder / "store/leases/holders/0123456789abcdef/beat").write_bytes(b"\xff\x00 no beat")
    with freeze.place(folder):
        code, _, errors = freeze.said(*words())
    assert code == 0, errors
    assert sorted(all_rows(folder / "store")) == sorted(keys)
    assert left_behind(folder / "store") == []


def test_a_finished_study_removes_what_killed_processes_left(finished: Finished, folder: Path) -> None:
    shutil.copytree(finished.store, folder / "store")
    gone = {**asdict(this_process()), "started": "1"}
    (folder / "store/leases/holders/0123456789abcdef").mkdir(parents=True)
    (folder / "store/leases/holders/0123456789abcdef/beat").write_text(f"{0:020d}{json.dumps(gone)}")
    with freeze.place(folder):
        assert freeze.said(*words())[0] == 0
    assert left_behind(folder / "store") == []


def test_weights_that_another_worker_is_at_are_not_dropped(tmp_path: Path) -> None:
    for number, key in enumerate(("a" * 64, "b" * 64)):
        model = tmp_path / "tunings/aa" / key / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(bytes(1000))
        os.utime(model, (number, number))
    with Leases(tmp_path / "leases") as ours, Leases(tmp_path / "leases") as theirs:
        lease = theirs.claim("a" * 64)
        assert lease is not None
        assert keep_within(Store(tmp_path), ours, 1e-6) == 1000
        assert [path.parent.name for path in tmp_path.glob("tunings/aa/*/model")] == ["a" * 64]
        lease.release()
        assert keep_within(Store(tmp_path), ours, 0.5e-6) == 1000


def test_a_merge_leaves_what_is_at_work_and_what_is_half_copied(tmp_path: Path) -> None:
    """A training that runs here keeps its checkpoints; what a merge that was killed left is copied again, once."""
    key, other, root = "a" * 64, tmp_path / "other", tmp_path / "root"
    for name in (key, f".{key}.merging"):
        (other / "tunings/aa" / name / "model").mkdir(parents=True)
        (other / "tunings/aa" / name / "tuning.json").write_text("{}")
    (root / f"tunings/aa/{key}/checkpoints").mkdir(parents=True)
    with Leases(root / "leases") as theirs:
        lease = theirs.claim(key)
        assert lease is not None
        driver.merge_folders(other, root)
        assert (root / f"tunings/aa/{key}/checkpoints").is_dir()
        lease.release()
        (root / f"tunings/aa/.{key}.merging/model").mkdir(parents=True)
        driver.merge_folders(other, root)
    assert [path.name for path in (root / "tunings/aa").iterdir()] == [key]
    assert sorted(path.name for path in (root / f"tunings/aa/{key}").iterdir()) == ["model", "tuning.json"]
