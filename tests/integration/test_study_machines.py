"""``study`` on many processes and machines that die: worker processes, their driver, and a machine of a Ray cluster."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import freeze
from tests.freeze import said
from tests.integration.test_study_faults import Finished, assert_equal, finished, folder, forks, inputs, words

__all__ = ["finished", "folder", "forks", "inputs"]
pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore::UserWarning")]
ROOT = Path(__file__).parents[2]


def children(parent: int) -> list[int]:
    """Processes that a process started."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(above) == parent and state != "Z":
            pids.append(int(stat.parent.name))
    return pids


def workers_of(driver: int) -> list[int]:
    """Worker processes of a driver, without what keeps its semaphores."""
    return [pid for pid in children(driver) if "spawn_main" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_until(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def start(folder: Path) -> subprocess.Popen[str]:
    """A driver with two workers, as a person starts it."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CATCHMENT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "catchment", *words(), "--workers", "2"], cwd=folder, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(driver: subprocess.Popen[str]) -> None:
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors


@pytest.fixture(scope="module")
def seconds(inputs: Path, finished: Finished) -> tuple[float, float]:
    """When the first worker has something to show, and when two workers are done; they make what one makes."""
    folder = shutil.copytree(inputs, inputs.parent / "undisturbed")
    begin = time.monotonic()
    driver = start(folder)
    wait_until(lambda: (folder / "store/leases").exists(), 120)
    first = time.monotonic() - begin
    end(driver)
    assert_equal(folder, finished)
    return first, time.monotonic() - begin


@pytest.mark.parametrize("seed", range(6))
def test_killed_processes(seed: int, folder: Path, finished: Finished, seconds: tuple[float, float]) -> None:
    """kill -9 of the driver, whose workers end, too; of the driver once more; then of a worker, without which the same
    driver comes to the end."""
    draw = random.Random(seed)
    for _ in range(2):
        driver = start(folder)
        try:
            driver.communicate(timeout=draw.uniform(0.5 * seconds[0], seconds[1]))
        except subprocess.TimeoutExpired:
            workers = workers_of(driver.pid)
            driver.kill()
            driver.communicate()
            wait_until(lambda: not any(command_of(pid) for pid in workers))  # noqa: B023
    driver = start(folder)
    wait_until(lambda: workers_of(driver.pid) or driver.poll() is not None, 120)
    threading.Event().wait(draw.uniform(0, seconds[1] - seconds[0]))
    for pid in workers_of(driver.pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    end(driver)
    assert_equal(folder, finished)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and two more machines, of one CPU each, which this process has joined; a dead one is noticed soon."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'catchment[ray]'")
    from tests.unit.runs.test_clusters import three_machines

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    with three_machines(monkeypatch) as machines:
        yield machines


def kill_machine(cluster: Any, node: Any) -> None:
    """A machine ends with all its processes."""
    (raylet,) = node.all_processes["raylet"]
    workers = children(raylet.process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # they go down with their machine
    cluster.remove_node(node, allow_graceful=False)
    for pid in workers:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_of_three_machines_one_dies_half_way(folder: Path, finished: Finished, cluster: Any) -> None:
    """The rest makes the same study, within 90 seconds."""
    begin = time.monotonic()
    victim = cluster.list_all_nodes()[-1]
    dead: list[int] = []

    def kill() -> None:
        wait_until(lambda: len(list((folder / "store/tunings").glob("*/*/tuning.json"))) >= 3, 90)
        dead.append(len(list((folder / "store/tunings").glob("*/*/tuning.json"))))
        kill_machine(cluster, victim)

    killer = threading.Thread(target=kill)
    killer.start()
    with freeze.place(folder):
        code, _, errors = said(*words(), "--executor", "ray")
    took = time.monotonic() - begin
    killer.join()
    assert code == 0, errors
    assert dead
    assert dead[0] < 6, "the study was over before the machine died"
    assert_equal(folder, finished)
    assert took < 90
