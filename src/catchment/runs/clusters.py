"""Calls as tasks of a Ray cluster: machines join and leave while the work goes on."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

from catchment.errors import InputError, MissingExtraError
from catchment.runs.workers import Call, Outcome, answer, cpu_threads, failure, take_share

QUEUED = 1000
"""Calls that are given to the cluster at a time where their number is left to it."""
MEMORY = 100 << 20
"""Bytes of the shared memory of a Ray that is started here; values are small."""
PASSED = ("CATCHMENT_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables of this process's environment that calls see, wherever they run."""


@dataclass(frozen=True)
class RayExecutor:
    """Runs each call as a Ray task: wherever there is room, on another machine when its own dies.

    Every machine needs this package and the folders that the calls name: a store on a shared file system. A function is
    found there by its module, as the search path of this process has it.

    Args:
        address: ``None``: the cluster that this process or machine is part of, else a Ray of this machine, which ends
            with this process. "ray://HOST:PORT": a cluster elsewhere.
        workers: Calls at a time. Default: as many as the cluster has room for, also when machines join.
        num_cpus: CPUs of a call, and its threads. On a Ray that is started here, threads are divided among
            ``workers``.
        num_gpus: GPUs of a call, of which it sees no others. Default: 1 where the cluster has any.
        retries: How often a call runs again whose process or machine died.

    Raises:
        InputError: Fewer than one worker.
        MissingExtraError: Ray is not installed.

    Example::

        for outcome in RayExecutor().run([(measure, (store, name)) for name in names]):
            print(outcome.index, outcome.error or "done")
    """

    address: str | None = None
    workers: int | None = None
    num_cpus: int = 1
    num_gpus: float | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers is {self.workers}; expected 1 or more, or none given.")
        _ray(self.address)

    def run(self, calls: Sequence[Call]) -> Iterator[Outcome]:
        """Yield one outcome per call, as they come. A call that raises is an outcome with an error, and so is one whose
        machines or processes died ``retries`` + 1 times. Leaving the loop early cancels what is left.

        Raises:
            InputError: There is no cluster at this address.
        """
        ray = _ray(self.address)
        threads = self._connect(ray)
        gpus = self.num_gpus if self.num_gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        task = ray.remote(num_cpus=self.num_cpus, num_gpus=gpus, max_retries=self.retries)(_do)
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        here = _version(), os.getcwd(), variables, threads
        due, pending = enumerate(calls), dict[object, int]()
        try:
            while True:
                while len(pending) < (self.workers or QUEUED) and (following := next(due, None)):
                    index, call = following
                    try:
                        pending[task.remote(ray.cloudpickle.dumps(call), *here)] = index
                    except (TypeError, pickle.PicklingError) as error:
                        yield failure(index, error)
                if not pending:
                    return
                for reference in ray.wait(list(pending), num_returns=1)[0]:
                    yield _outcome(ray, reference, pending.pop(reference))
        finally:
            for reference in pending if ray.is_initialized() else ():
                ray.cancel(reference, force=True)

    def _connect(self, ray: ModuleType) -> int:
        """Join the cluster, or start one; returns the threads of a call."""
        if ray.is_initialized():
            return self.num_cpus
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Ray Client connection timed out")  # an InputError says it
                ray.init(address=self.address or "auto", **quiet)
        except (ConnectionError, TimeoutError) as error:
            if self.address is not None:
                raise InputError(
                    f"no Ray cluster at {self.address!r} ({error}); expected the address of the head node and the port "
                    "of its client server, 10001 where nothing else was said. Is 'ray start --head' running there? "
                    "If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
                ) from error
        else:
            return self.num_cpus
        room = None if self.workers is None else self.workers * self.num_cpus
        ray.init(address="local", num_cpus=room, object_store_memory=MEMORY, include_dashboard=False, **quiet)
        return max(self.num_cpus, cpu_threads() // (self.workers or cpu_threads()))


def _outcome(ray: ModuleType, reference: object, index: int) -> Outcome:
    try:
        return Outcome(index, *pickle.loads(ray.get(reference)))
    except (ray.exceptions.RayError, AttributeError, ImportError) as error:
        return failure(index, error)


def _do(call: bytes, version: str, folder: str, variables: dict[str, str], threads: int) -> bytes:
    """What runs on the cluster."""
    if version != _version():
        error = f"this machine has catchment {_version()}, and {version} asks; install the same version on all machines"
        return pickle.dumps((None, error, None))
    with suppress(OSError):  # so that relative paths mean what they mean where they were given
        os.chdir(folder)
    os.environ.update(variables)
    take_share(threads)
    return answer(call)


def _version() -> str:
    try:
        return importlib.metadata.version("catchment")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the search path
        return "not installed"


def _ray(address: str | None) -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a call without GPUs sees what its machine shows
    try:
        import ray

        if address is not None:
            import grpc  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "ray", "ray", "work on a Ray cluster") from error
    return ray
