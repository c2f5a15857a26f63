"""Work on a Ray cluster: the same outcomes as on this machine, also when a machine of the cluster dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.errors import InputError
from catchment.runs import executor
from catchment.runs.clusters import RayExecutor

pytest.importorskip("ray", reason="Ray is not installed: pip install 'catchment[ray]'")
ROOT = Path(__file__).parents[3]
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}
"""A machine that died is noticed after about two seconds instead of 13."""
CALLS, FREE = 9, 3
"""Calls, and how many of them do not wait for the gate."""


def pass_gate(folder: str, index: int) -> int:
    """Say on which machine this runs, and wait until the gate is open."""
    import ray

    with (Path(folder) / str(index)).open("a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()} {os.getpid()}\n")
    if index >= FREE:
        with (Path(folder) / "gate").open() as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
    return index


def begun(folder: Path, index: int) -> dict[str, int]:
    """On which machines a call was begun, and by which process."""
    path = folder / str(index)
    lines = path.read_text().splitlines() if path.exists() else []
    return {machine: int(process) for machine, process in map(str.split, lines)}


@contextlib.contextmanager
def three_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and two more machines, of one CPU each, which this process has joined; a dead one is noticed soon."""
    import ray
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with three_machines(monkeypatch) as machines:
        yield machines


@pytest.mark.soak
def test_of_three_machines_one_dies_and_every_call_comes_back(cluster: Any, tmp_path: Path) -> None:
    start = time.monotonic()
    victim = cluster.list_all_nodes()[-1]
    gate = (tmp_path / "gate").open("w")
    fcntl.flock(gate, fcntl.LOCK_EX)
    outcomes = executor("ray").run([(pass_gate, (str(tmp_path), index)) for index in range(CALLS)])
    values = [next(outcomes).value for _ in range(FREE)]
    while not (hit := [index for index in range(FREE, CALLS) if victim.node_id in begun(tmp_path, index)]):
        assert time.monotonic() - start < 60
        threading.Event().wait(0.05)
    os.kill(begun(tmp_path, hit[0])[victim.node_id], signal.SIGSTOP)  # it goes down with its machine
    cluster.remove_node(victim, allow_graceful=False)
    os.kill(begun(tmp_path, hit[0])[victim.node_id], signal.SIGKILL)
    gate.close()
    rest = list(outcomes)
    assert [outcome.error for outcome in rest] == [None] * (CALLS - FREE)
    assert sorted(values + [outcome.value for outcome in rest]) == list(range(CALLS))
    assert len(begun(tmp_path, hit[0])) == 2
    assert time.monotonic() - start < 60


SCRIPT = """
import os, threading
from pathlib import Path
from catchment.runs import executor

def reciprocal(x):
    return 1 / x

def relative(name):
    return Path(name).read_text()

if __name__ == "__main__":
    calls = [(reciprocal, (4,)), (reciprocal, (0,)), (relative, ("here",)), (os.getenv, ("CATCHMENT_HOME",))]
    calls += [(reciprocal, (threading.Lock(),))]
    for outcome in sorted(executor("ray", workers=2).run(calls), key=lambda outcome: outcome.index):
        print(outcome.value, "|", outcome.error)
    outcomes = executor("ray", workers=2).run([(pow, (2, 5)), (threading.Event().wait, ())])
"""


@pytest.mark.soak
def test_a_ray_of_this_machine(tmp_path: Path) -> None:
    """Started by the first call, ended with the process; a script's own functions, its folder and our variables."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "here").write_text("read")
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # a socket's path is 107 bytes at most
        done = subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
            env={**os.environ, "RAY_TMPDIR": short, "CATCHMENT_HOME": "/our/cache"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0.25 | None",
        "None | ZeroDivisionError: division by zero",
        "read | None",
        "/our/cache | None",
        "None | TypeError: cannot pickle '_thread.lock' object",
    ]


def test_no_workers_is_refused() -> None:
    with pytest.raises(InputError, match="workers is 0"):
        RayExecutor(workers=0)
