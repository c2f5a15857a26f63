"""Worker processes of this machine: each does one call after another, with its share of the threads and its own GPU."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

Call = tuple[Callable[..., Any], tuple[Any, ...]]
ATTEMPTS = 3
"""How often a call is tried whose process dies."""
GRACE = 10.0
"""Seconds that a worker without a call has to end."""
_READY = b""


@dataclass(frozen=True)
class Outcome:
    """What became of one call: its ``value``, or the ``error`` in one line with its ``trace``."""

    index: int
    value: Any = None
    error: str | None = None
    trace: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


def failure(index: int, error: BaseException) -> Outcome:
    """The outcome of a call that raised."""
    return Outcome(index, None, *_described(error))


def _described(error: BaseException) -> tuple[str, str]:
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))


def answer(call: bytes) -> bytes:
    """Do a pickled call in the process at hand; what came of it, pickled: value, error and trace. Nothing is raised."""
    try:
        function, arguments = pickle.loads(call)
        return bytes(ForkingPickler.dumps((function(*arguments), None, None)))
    except BaseException as error:
        return pickle.dumps((None, *_described(error)))


def cpu_threads() -> int:
    """How many threads a computation in this process uses: torch's number where torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them. Loads torch."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def take_share(threads: int, gpu: str | None = None) -> None:
    """Let this process compute with so many threads, on this GPU. Nothing may have used a GPU in it yet."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is loaded
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _serve(connection: Connection, threads: int, gpu: str | None) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    take_share(threads, gpu)
    connection.send_bytes(_READY)
    while True:
        try:
            call = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(answer(call))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@dataclass
class _Job:
    index: int
    call: Call
    deaths: int = 0


class _Worker:
    """A worker process as its parent sees it, with the job that it has."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.gpu = gpu
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, gpu))
        self.process.start()
        theirs.close()
        self.job: _Job | None = None
        self._ready = False
        self._call: bytes | None = None

    def give(self, job: _Job) -> None:
        """Send a job, or keep it until the process listens. Raises what pickling raises."""
        self._call = bytes(ForkingPickler.dumps(job.call))
        self.job = job
        if self._ready:
            self._send()

    def hear(self) -> bytes | None:
        """What the process said: an answer, or ``None`` when it was ready. Raises EOFError or OSError when it died."""
        said = self.connection.recv_bytes()
        if self._ready:
            return said
        self._ready = True
        self._send()
        return None

    def _send(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            self.connection.send_bytes(call)

    def join(self) -> int:
        """Wait for the process, which has been told to end; returns its exit code."""
        self.process.join(GRACE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self.process.exitcode or 0

    def died(self) -> str:
        """How the process ended, in words."""
        code = self.join()
        if code == -signal.SIGKILL:
            return "the process was killed (SIGKILL), as the system does when memory runs out: try fewer workers"
        return f"the process ended by {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"


class Crew:
    """Worker processes for one sequence of calls.

    Args:
        workers: How many processes at a time.
        gpus: Values of ``CUDA_VISIBLE_DEVICES``; each process gets one, in turns when there are fewer. Without any,
            processes see what this one sees.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self._workers = workers
        self._threads = max(1, cpu_threads() // workers)
        self._gpus: deque[str | None] = deque(gpus[number % len(gpus)] if gpus else None for number in range(workers))
        self._idle: list[_Worker] = []
        self._ending: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}
        atexit.register(self.end)  # before multiprocessing waits for all processes at exit

    def run(self, calls: Iterable[Call]) -> Iterator[Outcome]:
        """Yield one outcome per call, as they come; calls are given out when the next outcome is asked for."""
        due = deque(_Job(index, call) for index, call in enumerate(calls))
        while due or self._busy:
            while due and len(self._busy) < self._workers:
                job = due.popleft()
                try:
                    self._give(job)
                except Exception as error:  # the call cannot be pickled
                    yield failure(job.index, error)
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                outcome = self._hear(self._busy[connection], due)
                if outcome is not None:
                    yield outcome

    def _give(self, job: _Job) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._threads, self._gpus.popleft())
        try:
            worker.give(job)
        except OSError:  # it died while idle; the next word from it says so
            pass
        except Exception:
            self._idle.append(worker)
            raise
        self._busy[worker.connection] = worker

    def _hear(self, worker: _Worker, due: deque[_Job]) -> Outcome | None:
        try:
            said = worker.hear()
        except (EOFError, OSError):
            return self._bury(worker, due)
        if said is None:
            return None
        job = self._busy.pop(worker.connection).job
        assert job is not None
        worker.job = None
        if due:
            self._idle.append(worker)
        else:  # it need not keep its memory while others go on
            self._dismiss(worker)
        try:
            return Outcome(job.index, *pickle.loads(said))
        except Exception as error:  # a value that can be pickled but not read again
            return failure(job.index, error)

    def _bury(self, worker: _Worker, due: deque[_Job]) -> Outcome | None:
        """Its job runs again after the others, unless it was tried often enough."""
        job = self._busy.pop(worker.connection).job
        assert job is not None
        job.deaths += 1
        how = worker.died()
        self._dismiss(worker)
        if job.deaths < ATTEMPTS:
            due.append(job)
            return None
        return Outcome(job.index, error=f"{how} ({job.deaths} times)")

    def _dismiss(self, worker: _Worker) -> None:
        self._gpus.append(worker.gpu)
        worker.connection.close()
        self._ending.append(worker)

    def end(self) -> None:
        """End all processes: at once those that have a job."""
        atexit.unregister(self.end)
        for worker in self._busy.values():
            worker.process.terminate()
        for worker in [*self._busy.values(), *self._idle]:
            self._dismiss(worker)
        for worker in self._ending:
            worker.join()
        self._busy, self._idle, self._ending = {}, [], []
