"""Work in this process and in several: nothing is lost, and it stops when told."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catchment.errors import InputError, MissingExtraError
from catchment.runs import LocalExecutor, executor, workers

ROOT = Path(__file__).parents[3]
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
Started = Callable[[], tuple[subprocess.Popen[str], list[int]]]


def square(x: int) -> int:
    return x * x


def reciprocal(x: int) -> float:
    return 1 / x


def die(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def die_once(folder: str) -> int:
    """The first time it waits until the other call runs, and dies; the second time it lets the other go on."""
    runs = _count(Path(folder) / "died")
    if runs == 1:
        (Path(folder) / "runs").read_text()
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(folder) / "goes on").write_text("")
    return runs


def go_on(folder: str) -> int:
    (Path(folder) / "runs").write_text("")
    (Path(folder) / "goes on").read_text()
    return _count(Path(folder) / "went on")


def _count(path: Path) -> int:
    with path.open("a") as file:
        file.write("x")
    return path.stat().st_size


def share() -> tuple[str | None, str | None]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")


class Unreadable:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return int, ("no number",)


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


def test_a_death_cuts_no_other_call_off(tmp_path: Path) -> None:
    for name in ("runs", "goes on"):
        os.mkfifo(tmp_path / name)
    outcomes = LocalExecutor(2).run([(die_once, (str(tmp_path),)), (go_on, (str(tmp_path),))])
    assert {outcome.index: outcome.value for outcome in outcomes} == {0: 2, 1: 1}


def test_each_process_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cpu_threads", lambda: 7)
    calls = [(share, ()), (share, ()), (Unreadable, ())]
    outcomes = sorted(LocalExecutor(3, ("GPU-4f", "1")).run(calls), key=lambda outcome: outcome.index)
    assert sorted(outcome.value for outcome in outcomes[:2]) in ([("1", "2"), ("GPU-4f", "2")], [("GPU-4f", "2")] * 2)
    assert "no number" in (outcomes[2].error or "")  # a value that cannot be read here costs its own call only


@pytest.mark.parametrize(
    ("named", "count", "gpus"), [(None, 2, ("0", "1")), ("3, GPU-4f,5", 2, ("3", "GPU-4f")), ("", 0, ())]
)
def test_gpus_are_those_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, named: str | None, count: int, gpus: tuple[str, ...]
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert executor("processes", 2) == LocalExecutor(2, gpus)
    assert executor("processes", 2, gpus=False) == LocalExecutor(2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rya", r"'rya'; expected 'processes', 'ray' or 'ray://HOST:PORT'\. Did you mean 'ray'\?"),
        ("ray://", "'ray://'"),
    ],
)
def test_names_that_no_executor_has(name: str, says: str) -> None:
    with pytest.raises(InputError, match=f"executor is {says}"):
        executor(name)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"a Ray cluster needs 'ray', .*catchment\[ray\]"):
        executor("ray")


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
    next(LocalExecutor(2).run([(wait_for_ever, (path,)) for path in sys.argv[1:]]))
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Started]:
    """Starts a process with two workers that wait for ever, as soon as both do; returns it and their pidfds."""
    script, pids = tmp_path / "script.py", [tmp_path / "one", tmp_path / "two"]
    script.write_text(SCRIPT)
    for path in pids:
        os.mkfifo(path)
    workers: list[int] = []

    def start() -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen(
            [sys.executable, str(script), *map(str, pids)],
            env={**os.environ, "PYTHONPATH": PATH},
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # a background shell ignores it, and so would we
        )
        workers.extend(os.pidfd_open(int(path.read_text())) for path in pids)  # read when the worker has written
        return process, workers

    yield start
    for worker in workers:
        os.close(worker)


def ended(worker: int) -> bool:
    """Whether a process ends, of which this is the pidfd."""
    return bool(select.select([worker], [], [], 30)[0])


def test_ctrl_c_stops_all_processes(child: Started) -> None:
    """SIGINT to the whole group, as a terminal sends it: the parent ends with KeyboardInterrupt, no worker stays."""
    process, workers = child()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert errors.count("Traceback") == 1  # the workers end silently
    assert process.returncode != 0
    assert all(map(ended, workers))


def test_workers_end_with_a_parent_that_is_killed(
    child: Started,
) -> None:
    process, workers = child()
    process.kill()
    process.communicate()
    assert all(map(ended, workers))


def test_no_workers_is_refused() -> None:
    with pytest.raises(InputError, match="workers is 0"):
        LocalExecutor(0)


LEFT = """
from catchment.runs import LocalExecutor
if __name__ == "__main__":
    outcomes = LocalExecutor(2).run([(pow, (2, 5)), (pow, (3, 2)), (pow, (2, 2))])
    next(outcomes)
"""


def test_a_script_that_leaves_outcomes_ends(tmp_path: Path) -> None:
    """Its workers are stopped before the interpreter waits for them."""
    script = tmp_path / "script.py"
    script.write_text(LEFT)
    subprocess.run([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": PATH}, check=True, timeout=60)
