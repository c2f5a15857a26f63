"""Work in this process and in several: nothing is lost, and it stops when told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from catchment.errors import InputError
from catchment.runs import LocalExecutor


def square(x: int) -> int:
    return x * x


def reciprocal(x: int) -> float:
    return 1 / x


def die(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def wait_for_ever(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    threading.Event().wait()


def test_in_this_process_in_order_and_lazily() -> None:
    seen: list[int] = []
    outcomes = LocalExecutor().run([(seen.append, (1,)), (reciprocal, (0,)), (seen.append, (2,))])
    assert next(outcomes).index == 0
    assert seen == [1]
    failed, last = outcomes
    assert (failed.index, failed.ok, failed.error) == (1, False, "ZeroDivisionError: division by zero")
    assert failed.trace is not None
    assert "in reciprocal" in failed.trace
    assert last.ok
    assert seen == [1, 2]


def test_ctrl_c_in_this_process_is_not_swallowed() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(LocalExecutor().run([(interrupted, ())]))


def test_over_two_processes_failures_are_outcomes() -> None:
    calls = [(reciprocal, (x,)) for x in (1, 0, 4)] + [(os.getpid, ()), (square, (threading.Lock(),))]
    outcomes = sorted(LocalExecutor(2).run(calls), key=lambda outcome: outcome.index)
    assert [outcome.value for outcome in outcomes[:3]] == [1.0, None, 0.25]
    assert "ZeroDivisionError" in (outcomes[1].error or "")
    assert "in reciprocal" in (outcomes[1].trace or "")
    assert outcomes[3].value != os.getpid()
    assert "pickle" in (outcomes[4].error or "")


def test_a_process_that_dies_costs_its_own_call_only() -> None:
    outcomes = sorted(LocalExecutor(2).run([(die, (x,)) for x in range(3)]), key=lambda outcome: outcome.index)
    assert [outcome.value for outcome in outcomes] == [0, None, 2]
    assert (outcomes[1].error or "").startswith("the process was killed (SIGKILL), as the system does when memory")


def test_leaving_early_stops_the_workers(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    outcomes = LocalExecutor(2).run([(square, (3,)), (wait_for_ever, (str(tmp_path / "pid"),))])
    assert next(outcomes).value == 9
    outcomes.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) == before


SCRIPT = """
import sys
from catchment.runs import LocalExecutor
from tests.unit.runs.test_executors import wait_for_ever
if __name__ == "__main__":
    list(LocalExecutor(2).run([(wait_for_ever, (sys.argv[1],)), (wait_for_ever, (sys.argv[2],))]))
"""


def test_ctrl_c_stops_all_processes(tmp_path: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it: the parent ends with KeyboardInterrupt, no worker stays."""
    script, pids = tmp_path / "script.py", [tmp_path / "one", tmp_path / "two"]
    script.write_text(SCRIPT)
    for path in pids:
        os.mkfifo(path)
    root = Path(__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, str(script), *map(str, pids)],
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background shell ignores it, and so would we
    )
    workers = [int(path.read_text()) for path in pids]  # a fifo: returns when the worker has written
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert errors.count("Traceback") == 1  # the workers end silently
    assert child.returncode != 0
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_no_workers_is_refused() -> None:
    with pytest.raises(InputError, match="workers is 0"):
        LocalExecutor(0)
