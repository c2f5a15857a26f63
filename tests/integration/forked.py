"""Commands in processes of their own that can be killed at any change of a file, and that say what they computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = """
import gc, json, os, random, signal, sys, threading, time
import torch, transformers, peft, filelock
import catchment.cli.live, catchment.commands.study.driver, catchment.commands.study.run
import catchment.commands.study.worker as worker
import catchment.measuring.fill, catchment.methods.trainer
from catchment.cli import main
torch.set_num_threads(1)
gc.collect()
gc.freeze()  # each training collects; what was imported need not be looked at
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}
WRITES = os.O_WRONLY | os.O_RDWR

def count_changes(stop):
    home, number = threading.get_ident(), [0]
    def look(event, args):
        if threading.get_ident() != home or not (event in CHANGES or (event == "open" and (args[2] or 0) & WRITES)):
            return
        number[0] += 1
        if number[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)
    return number

def say(log, kind, number=1):
    os.write(log, f"{kind} {number}\\n".encode())

def tell_work(log):
    fill = sys.modules["catchment.measuring.fill"]
    trainer = sys.modules["catchment.methods.trainer"].MethodTrainer
    run, step = fill.run, trainer.training_step
    def running(engine, prepared, *, done, on_rows):
        def told(rows, tokens):
            say(log, "items", len(rows))
            on_rows(rows, tokens)
        return run(engine, prepared, done=done, on_rows=told)
    def stepping(self, *args, **options):
        say(log, "step")
        return step(self, *args, **options)
    fill.run, trainer.training_step = running, stepping

def jump(seed):
    draw, seconds, nanoseconds = random.Random(seed), time.time, time.time_ns
    time.time = lambda: seconds() + 3600 * draw.randint(-30, 30)
    time.time_ns = lambda: nanoseconds() + 3600 * 10**9 * draw.randint(-30, 30)

for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    os.chdir(asked["folder"])
    os.environ["CATCHMENT_HOME"] = asked["folder"] + "/home"
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    tell_work(log)
    worker.SAVE_EVERY = 0.0
    if asked["clock"] is not None:
        jump(asked["clock"])
    number, code = count_changes(asked["stop"]), 0
    try:
        main(asked["words"])
    except SystemExit as end:
        code = int(end.code or 0)
    say(log, "changes", number[0])
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
"""
"""A process that has imported everything, and forks for each command: a start of Python and torch takes seconds."""


@dataclass(frozen=True)
class Work:
    """What commands computed: batches of items, steps of trainings, changes of files by the last that came to its end.

    Attributes:
        batches: Items in each.
    """

    batches: tuple[int, ...]
    steps: int
    changes: int

    @classmethod
    def read(cls, log: Path) -> Work:
        told = [line.split() for line in log.read_text().splitlines()]
        numbers = {kind: [int(n) for k, n in told if k == kind] for kind in ("items", "step", "changes")}
        return cls(tuple(numbers["items"]), len(numbers["step"]), numbers["changes"][-1] if numbers["changes"] else 0)

    @property
    def items(self) -> int:
        return sum(self.batches)


class Forks:
    """Starts commands; several may run at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def _ask(self, **asked: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(
        self, folder: Path, words: list[str], *, stop: int = 0, clock: int | None = None, output: str = "output.txt"
    ) -> int:
        """Start a command in a folder; returns the number of its process.

        Args:
            stop: The change of a file before which it kills itself (SIGKILL); 0: none.
            clock: Seed of a wall clock that jumps by up to 30 hours at every look.
        """
        log, said = self.log_of(folder), self.folder / output
        return self._ask(folder=str(folder), words=words, stop=stop, clock=clock, output=str(said), log=str(log))

    def log_of(self, folder: Path) -> Path:
        return self.folder / f"{folder.parent.name}-{folder.name}.log"

    def wait(self, process: int) -> int:
        """The exit code, negative the signal."""
        return self._ask(wait=process)

    def run(self, folder: Path, words: list[str], **options: Any) -> tuple[int, str]:
        """Exit code, and what was printed."""
        code = self.wait(self.start(folder, words, **options))
        return code, (self.folder / options.get("output", "output.txt")).read_text(errors="replace")

    def work(self, folder: Path) -> Work:
        """What all commands in this folder computed."""
        return Work.read(self.log_of(folder))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
