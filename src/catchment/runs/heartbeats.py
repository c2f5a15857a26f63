"""Which processes are alive: each raises a counter in a file, and each observer judges by its own clock.

Monotonic clocks of two machines cannot be compared, and wall clocks jump, so no time is written. An observer counts its
own beats while another's counter stands still; it counts none while it is stopped itself.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import uuid
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from catchment.runs.files import explained

BEAT = "beat"
_DIGITS = 20


@dataclass(frozen=True)
class Process:
    """A process among all of all machines. ``boot`` and ``started`` are empty where the system does not say them."""

    host: str
    boot: str
    pid: int
    started: str

    @property
    def near(self) -> bool:
        """Whether it runs or ran on this machine, since its last start, so that this process can look for it."""
        here = this_process()
        return bool(self.started) and (self.host, self.boot) == (here.host, here.boot)

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended; never of a process of another machine."""
        return self.near and _started(self.pid) != self.started


def this_process() -> Process:
    """This process. Containers on one machine share its boot, and number their processes apart."""
    return _identity(os.getpid())


@lru_cache(maxsize=1)
def _identity(pid: int) -> Process:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = ""
    return Process(socket.gethostname(), boot, pid, _started(pid) if boot else "")


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; "" when there is none, or it ended and was not waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZXx" else fields[19]


@dataclass(frozen=True)
class Beat:
    """What a heartbeat file says: whose it is, and its counter."""

    process: Process
    counter: int


def read_beat(folder: Path) -> Beat | None:
    """The heartbeat in a process's folder; ``None`` where there is none or it is half written."""
    try:
        text = (folder / BEAT).read_text("utf-8")
        return Beat(Process(**json.loads(text[_DIGITS:])), int(text[:_DIGITS]))
    except (OSError, ValueError, TypeError):
        return None


class Heart:
    """The heartbeat of this process in ``root/<token>/beat``, raised by a thread, and what it saw of others.

    Args:
        root: Folder of all heartbeats.
        interval: Seconds between two beats.
        patience: Seconds that another's counter must stand still before its process counts as gone.
    """

    def __init__(self, root: Path, interval: float, patience: float) -> None:
        self.root, self.interval, self.patience = root, interval, patience
        self.token = uuid.uuid4().hex
        self.folder = root / self.token
        self.pid = os.getpid()
        self._process = this_process()
        self._beats = 0
        self._seen: dict[str, tuple[int | None, int]] = {}
        self._moved = {self.token}
        self._failure: OSError | None = None
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write the first beat and start the thread, once; later calls say whether the last beat was written.

        Raises:
            StoreError: The heartbeat cannot be written.
        """
        with self._lock, explained(self.folder):
            if self._thread is None:
                self._write()
                self._thread = threading.Thread(target=self._run, name="catchment-heartbeat", daemon=True)
                self._thread.start()
            elif self._failure is not None:
                raise self._failure

    @property
    def started(self) -> bool:
        return self._thread is not None

    def stop(self) -> None:
        """End the thread and remove the folder."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            shutil.rmtree(self.folder, ignore_errors=True)

    def gone(self, token: str) -> bool:
        """Whether a process is dead, or its counter stood still for ``patience`` seconds of this process's beats."""
        if token == self.token:
            return False
        beat = read_beat(self.root / token)
        return (beat is not None and beat.process.dead) or self.silent(token, beat) >= self.patience

    def silent(self, token: str, beat: Beat | None) -> float:
        """Seconds, at least, for which a counter has stood still under the eyes of this process."""
        counter = None if beat is None else beat.counter
        before, since = self._seen.setdefault(token, (counter, self._beats))
        if before != counter:
            self._seen[token] = (counter, self._beats)
            self._moved.add(token)
            return 0
        return max(0, self._beats - since - 1) * self.interval

    def moved(self, token: str) -> bool:
        """Whether this process saw the counter change."""
        return token in self._moved

    def _run(self) -> None:
        while not self._stopped.wait(self.interval):
            self._beats += 1
            try:
                self._write()
                self._failure = None
            except OSError as error:  # the next claim raises it
                self._failure = error

    def _write(self) -> None:
        counter = f"{self._beats:0{_DIGITS}d}".encode()
        try:  # in place: it needs no room on a full disk
            descriptor = os.open(self.folder / BEAT, os.O_WRONLY)
        except FileNotFoundError:  # the first, or somebody took this process for dead and swept its folder
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / BEAT).write_bytes(counter + json.dumps(asdict(self._process)).encode())
            return
        try:
            os.write(descriptor, counter)
        finally:
            os.close(descriptor)
