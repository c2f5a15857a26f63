"""Two processes joined by gloo, started once for all tests: a start of Python and torch takes seconds."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 300.0
"""Seconds for one job."""
OURS = ("CATCHMENT_", "HF_")
"""Beginnings of the environment's names that each job finds as the test has them."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _serve(rank: int, port: int, pipe: Connection) -> None:
    """One process. What DDP holds of the process group is freed before the group is: its destructor waits for threads
    that need Python's lock."""
    torch.set_num_threads(1)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    dist.init_process_group("gloo")
    while (job := pipe.recv()) is not None:
        work, arguments, environment = job
        for name in [name for name in os.environ if name.startswith(OURS)]:
            del os.environ[name]
        os.environ |= environment
        try:
            work(rank, *arguments)
            dist.barrier()
            pipe.send(None)
        except BaseException:
            pipe.send(traceback.format_exc())
        gc.collect()
    dist.destroy_process_group()


class Gloo:
    """Runs functions on two processes at once; the processes start with the first job and serve all."""

    def __init__(self) -> None:
        self._running: list[tuple[Any, Connection]] = []

    def run(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call ``work(rank, *arguments)`` on both processes and wait for both.

        Raises:
            AssertionError: It failed on one of them, with its traceback. Both are ended; the next job starts new ones.
        """
        if not self._running:
            self._start()
        environment = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
        waiting = [pipe for _, pipe in self._running]
        for pipe in waiting:
            pipe.send((work, arguments, environment))
        while waiting:
            ready: list[Any] = wait(waiting, PATIENCE)
            told = [self._told(pipe) for pipe in ready] or [f"no answer within {PATIENCE:g} s"]
            errors = [text for text in told if text]
            if errors:
                self.close(kill=True)
                raise AssertionError("\n".join(errors))
            waiting = [pipe for pipe in waiting if pipe not in ready]

    def close(self, kill: bool = False) -> None:
        running, self._running = self._running, []
        for process, pipe in running:
            process.kill() if kill else pipe.send(None)
        for process, pipe in running:
            process.join(30)
            pipe.close()

    def _start(self) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        for rank in (0, 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._running.append((process, ours))

    @staticmethod
    def _told(pipe: Any) -> str | None:
        try:
            text: str | None = pipe.recv()
        except EOFError:
            return "a process ended before it answered"
        return text
