"""Who does the work: this process, or several on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from catchment.errors import InputError

Call = tuple[Callable[..., Any], tuple[Any, ...]]


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


@dataclass(frozen=True)
class LocalExecutor:
    """Runs calls on this machine.

    Args:
        workers: 1 runs them in order in this process; more runs them in that many fresh processes (spawned, so
            functions, arguments and values must pickle, and a script needs ``if __name__ == "__main__"``).

    Raises:
        InputError: Fewer than one worker.

    >>> [outcome.value for outcome in LocalExecutor().run([(pow, (2, 5)), (pow, (3, 2))])]
    [32, 9]
    """

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"workers is {self.workers}; expected 1 (this process) or more.")

    def run(self, calls: Sequence[Call]) -> Iterator[Outcome]:
        """Yield one outcome per call, as they come. A call that raises, or whose process dies, is an outcome with an
        error; the others go on (after a death those that were cut off run again, one at a time). Ctrl-C, and leaving
        the loop early, stop the workers at once."""
        if self.workers == 1 or len(calls) < 2:
            return _in_process(calls)
        return _in_processes(list(enumerate(calls)), self.workers)


def _in_process(calls: Sequence[Call]) -> Iterator[Outcome]:
    for index, (function, arguments) in enumerate(calls):
        try:
            outcome = Outcome(index, function(*arguments))
        except Exception as error:
            outcome = _failure(index, error)
        yield outcome


def _in_processes(calls: list[tuple[int, Call]], workers: int) -> Iterator[Outcome]:
    cut_off: list[tuple[int, Call]] = []
    with _pool(min(workers, len(calls))) as pool:
        futures: dict[Future[Any], tuple[int, Call]] = {}
        for index, (function, arguments) in calls:
            try:
                futures[pool.submit(function, *arguments)] = (index, (function, arguments))
            except BrokenProcessPool:
                cut_off.append((index, (function, arguments)))
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                yield Outcome(futures[future][0], future.result())
            elif isinstance(error, BrokenProcessPool) and len(calls) > 1:
                cut_off.append(futures[future])
            else:
                yield _failure(futures[future][0], error)
    for call in cut_off:  # whose fault it was is unknown: each gets a process of its own
        yield from _in_processes([call], 1)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes that are ended when the block is left by an exception."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _failure(index: int, error: BaseException) -> Outcome:
    trace = "".join(traceback.format_exception(error))
    return Outcome(index, error=f"{type(error).__name__}: {error}", trace=trace)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole process group; the parent decides what happens to the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
