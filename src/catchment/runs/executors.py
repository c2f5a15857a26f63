"""Who does the work: this process, several on this machine, or a Ray cluster. One interface for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from catchment.errors import InputError, did_you_mean
from catchment.runs.workers import Call, Crew, Outcome, failure, visible_gpus

NAMES = ("processes", "ray", "ray://HOST:PORT")


class Executor(Protocol):
    """Runs calls. Functions, arguments and values must pickle; values are small, and results go through the store."""

    def run(self, calls: Sequence[Call]) -> Iterator[Outcome]:
        """Yield one outcome per call, as they come. A call that raises is an outcome with an error, and the others go
        on. A call whose process dies runs again, a few times at most. Leaving the loop early stops what still runs."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Runs calls on this machine.

    Args:
        workers: 1 runs them in order in this process; more runs them in that many fresh processes (spawned, so
            functions, arguments and values must pickle, and a script needs ``if __name__ == "__main__"``). CPU threads
            are divided among them.
        gpus: Which GPUs the processes get, one each, in turns when there are fewer: values for
            ``CUDA_VISIBLE_DEVICES``. Default: all processes see all GPUs.

    Raises:
        InputError: Fewer than one worker.

    >>> [outcome.value for outcome in LocalExecutor().run([(pow, (2, 5)), (pow, (3, 2))])]
    [32, 9]
    """

    workers: int = 1
    gpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"workers is {self.workers}; expected 1 (this process) or more.")

    def run(self, calls: Sequence[Call]) -> Iterator[Outcome]:
        """Yield one outcome per call, as they come. A call that raises is an outcome with an error. A call whose
        process dies runs again, after the others; when its process has died three times, that is its outcome. Ctrl-C,
        leaving the loop early, and the death of this process stop the workers at once."""
        if self.workers == 1 or len(calls) < 2:
            return _in_process(calls)
        return _in_processes(calls, min(self.workers, len(calls)), self.gpus)


def _in_process(calls: Sequence[Call]) -> Iterator[Outcome]:
    for index, (function, arguments) in enumerate(calls):
        try:
            outcome = Outcome(index, function(*arguments))
        except Exception as error:
            outcome = failure(index, error)
        yield outcome


def _in_processes(calls: Sequence[Call], workers: int, gpus: tuple[str, ...]) -> Iterator[Outcome]:
    crew = Crew(workers, gpus)
    try:
        yield from crew.run(calls)
    finally:
        crew.end()


def executor(name: str = "processes", workers: int = 1, *, gpus: bool = True) -> Executor:
    """The executor of this name.

    Args:
        name: "processes" of this machine; "ray", a cluster that runs already or else one on this machine; or
            "ray://HOST:PORT", a cluster elsewhere.
        workers: Processes at a time; with Ray, calls at a time, where 1 leaves their number to the cluster.
        gpus: Whether each call gets a GPU of its own where there are any.

    Raises:
        InputError: An unknown name, or fewer than one worker.
        MissingExtraError: Ray is not installed.

    >>> executor("processes", workers=2, gpus=False)
    LocalExecutor(workers=2, gpus=())
    """
    if name == "processes":
        return LocalExecutor(workers, visible_gpus() if gpus and workers > 1 else ())
    if name == "ray" or (name.startswith("ray://") and name.count(":") == 2):
        from catchment.runs.clusters import RayExecutor

        address = None if name == "ray" else name
        return RayExecutor(address, workers if workers > 1 else None, num_gpus=None if gpus else 0)
    close = did_you_mean(name, NAMES)
    raise InputError(f"executor is {name!r}; expected {', '.join(map(repr, NAMES[:-1]))} or {NAMES[-1]!r}.{close}")
