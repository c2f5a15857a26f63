"""Leases: a unit has one holder at a time, whoever is killed, stopped or late."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import quote

import pytest

from catchment.errors import InputError, StoreError
from catchment.runs import Leases, heartbeats, leases
from catchment.runs.leases import Lease

T = TypeVar("T")
SOURCE = Path(__file__).parents[3]
FAST = {"interval": 0.02, "patience": 0.2}
CALLS = ("listdir", "unlink", "rmdir", "makedirs", "open", "rename")


def patiently(ask: Callable[[], T | None], seconds: float = 20) -> T:
    """What comes of asking once per beat: nothing tells when another's beats have stood still for long enough."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask()
        if answer:
            return answer
        threading.Event().wait(FAST["interval"])
    raise AssertionError(f"nothing within {seconds} s")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that has ``root`` and ``Leases``; what it prints and reads goes through pipes."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        head = f"import os, sys\nfrom catchment.runs import Leases\nroot, FAST = {str(tmp_path)!r}, {FAST}\n"
        child = subprocess.Popen(
            [sys.executable, "-c", head + code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=SOURCE,
        )  # fmt: skip
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


HOLD = """
lease = Leases(root, **FAST).claim("unit")
print(lease is not None, flush=True)
for _ in sys.stdin:
    print(lease.lost, flush=True)
"""
SHARE = """
print("ready", flush=True)
sys.stdin.readline()
with Leases(root, **FAST) as leases:
    left = [f"unit {number}" for number in range(200)]
    while left:
        for name in list(left):
            lease = leases.claim(name)
            if lease is None:
                continue
            with lease:
                left.remove(name)
                if not os.path.exists(os.path.join(root, name)):
                    open(os.path.join(root, name), "w").close()
                    print(name)
"""


def test_two_processes_do_each_of_200_units_once(
    tmp_path: Path, process: Callable[[str], subprocess.Popen[str]]
) -> None:
    children = [process(SHARE), process(SHARE)]
    assert [line(child) for child in children] == ["ready", "ready"]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    done = [name for child in children for name in child.communicate(timeout=60)[0].splitlines()]
    assert Counter(done) == {f"unit {number}": 1 for number in range(200)}
    assert os.listdir(tmp_path / "units") == []
    assert os.listdir(tmp_path / "holders") == []


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path, process: Callable[[str], subprocess.Popen[str]]) -> None:
    """Also where nobody has waited for the process yet."""
    child = process(HOLD)
    assert line(child) == "True"
    with Leases(tmp_path) as ours:
        assert ours.claim("unit") is None
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ours.claim("unit") is not None
    assert os.listdir(tmp_path / "holders") == []


def test_a_stopped_holder_is_replaced_and_sees_it(
    tmp_path: Path, process: Callable[[str], subprocess.Popen[str]]
) -> None:
    child = process(HOLD)
    assert line(child) == "True"
    with Leases(tmp_path, **FAST) as ours:
        assert ours.claim("unit") is None
        os.kill(child.pid, signal.SIGSTOP)
        start = time.monotonic()
        lease = patiently(lambda: ours.claim("unit"))
        assert time.monotonic() - start >= FAST["patience"]
        os.kill(child.pid, signal.SIGCONT)
        assert child.communicate("look\n", timeout=20)[0] == "True\n"
        assert not lease.lost  # the other has ended, and released what it held no more


def test_a_holder_that_beats_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the wall clock does meanwhile."""
    hours = iter([3600.0, -7200.0] * 10_000)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + next(hours))
    with Leases(tmp_path, **FAST) as theirs, Leases(tmp_path, **FAST) as ours:
        lease = theirs.claim("unit")
        assert lease is not None
        end = time.monotonic() + 3 * FAST["patience"]
        while time.monotonic() < end:
            assert ours.claim("unit") is None
            threading.Event().wait(FAST["interval"])
        assert not lease.lost
        lease.release()
        assert ours.claim("unit") is not None


def test_an_observer_that_was_stopped_itself_has_no_patience_used_up(tmp_path: Path) -> None:
    """It counts its own beats, and there were none while it was stopped."""
    with Leases(tmp_path, **FAST) as theirs, Leases(tmp_path, interval=600, patience=1200) as ours:
        assert theirs.claim("unit") is not None
        theirs._heart._stopped.set()
        for _ in range(3):
            assert ours.claim("unit") is None
            threading.Event().wait(FAST["patience"])


def test_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes cannot be looked for: they count as alive until they are silent, and the listing says so."""
    theirs = Leases(tmp_path, **FAST)
    far = heartbeats.Process("far", "another boot", 2**22 + 1, "1")
    theirs._heart._process = far
    lease = theirs.claim("unit 1")
    assert lease is not None
    with Leases(tmp_path, **FAST) as ours:
        assert ours.claim("unit 2") is not None
        listing = ours.holders()
        assert [(holder.process, holder.units) for holder in listing] == [
            (far, ("unit 1",)),
            (heartbeats.this_process(), ("unit 2",)),
        ]
        assert [holder.alive for holder in listing] == [None, True]
        patiently(lambda: ours.holders()[0].alive)  # its heartbeat goes on
        theirs._heart._stopped.set()
        patiently(lambda: ours.claim("unit 1"))
        assert lease.lost
        assert ours.holders()[-1] == leases.Holder(far, (), False)


def test_a_sweep_frees_what_holders_that_are_gone_left(tmp_path: Path) -> None:
    """Units of a holder of which nothing is heard, and the folder of its heartbeat; those of the living stay."""
    with Leases(tmp_path, **FAST) as ours, Leases(tmp_path, **FAST) as theirs:
        kept = theirs.claim("held")
        assert kept is not None
        for name in ("left", "a b/c"):
            mark = tmp_path / "units" / quote(name, safe=" ") / "0123-1"
            mark.parent.mkdir()
            mark.touch()
        assert ours.sweep() == {"held", "left", "a b/c"}  # one look does not tell
        patiently(lambda: ours.sweep() == {"held"})
        assert not kept.lost
        assert os.listdir(tmp_path / "units") == ["held"]


def test_a_pid_that_another_process_has_now(tmp_path: Path) -> None:
    here = heartbeats.this_process()
    assert not here.dead
    assert heartbeats.Process(here.host, here.boot, here.pid, "1").dead
    assert not heartbeats.Process(here.host, "another boot", here.pid, "1").dead
    assert not heartbeats.Process("another host", here.boot, here.pid, "1").dead


def test_of_many_observers_of_a_dead_holder_one_wins(tmp_path: Path) -> None:
    """Eight at a time, in 50 rounds; each round leaves its unit to the next as a holder that is gone."""
    observers = [Leases(tmp_path, **FAST) for _ in range(8)]
    gone: set[str] = set()
    for observer in observers:
        observer._heart.gone = lambda token: token in gone  # type: ignore[method-assign]
    barrier = threading.Barrier(len(observers), timeout=20)
    won: list[list[str]] = [[] for _ in range(50)]

    def contend(observer: Leases) -> None:
        for number in range(50):
            barrier.wait()
            lease = observer.claim("unit")
            barrier.wait()
            if lease is not None and not lease.lost:
                won[number].append(observer._heart.token)
            if observer is observers[0]:
                gone.clear()
                gone.update(name.partition("-")[0] for name in os.listdir(tmp_path / "units" / "unit"))

    threads = [threading.Thread(target=contend, args=(observer,)) for observer in observers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(winners) for winners in won] == [1] * 50
    for observer in observers:
        observer.close()


class Stalled:
    """``os`` for one observer, which something overtakes before its call number ``at`` to the system."""

    def __init__(self, at: int, overtaken: Callable[[], None]) -> None:
        self.calls, self.at, self.overtaken = 0, at, overtaken

    def __getattr__(self, name: str) -> Any:
        true = getattr(os, name)
        return self._counted(true) if name in CALLS else true

    def _counted(self, true: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls - 1 == self.at:
                leases.os = os  # type: ignore[attr-defined]
                self.overtaken()
                leases.os = self  # type: ignore[attr-defined]
            return true(*arguments, **options)

        return call


@pytest.mark.parametrize("fresh", [False, True], ids=["taken over", "taken over, released and claimed anew"])
@pytest.mark.parametrize("dead", [False, True], ids=["free", "dead holder"])
def test_an_observer_overtaken_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool, dead: bool
) -> None:
    """What it knows is stale: it must never remove a fresh mark, and two must never hold the unit."""
    monkeypatch.setattr(leases, "os", os)
    for at in range(20):
        root = tmp_path / str(at)
        first, slow, quick = (Leases(root, **FAST) for _ in range(3))
        if dead:
            assert first.claim("unit") is not None
            gone = first._heart.token
            slow._heart.gone = quick._heart.gone = lambda token, gone=gone: token == gone  # type: ignore[assignment,misc]
        got: list[Lease] = []

        def overtake(quick: Leases = quick, got: list[Lease] = got) -> None:
            lease = quick.claim("unit")
            if lease is not None and fresh:
                lease.release()
                lease = quick.claim("unit")
            got += [lease] if lease is not None else []

        stalled = Stalled(at, overtake)
        leases.os = stalled  # type: ignore[attr-defined]
        mine = slow.claim("unit")
        leases.os = os  # type: ignore[attr-defined]
        holding = [lease for lease in (mine, *got) if lease is not None]
        assert len(holding) == 1, at
        assert not holding[0].lost, at
        for each in (first, slow, quick):
            each.close()
        if stalled.calls <= at:  # it was never overtaken: every call has had its turn
            break
    assert at == (6 if dead else 5)


def test_a_lease_is_released_at_the_end_of_its_block_and_with_its_object(tmp_path: Path) -> None:
    with Leases(tmp_path) as ours:
        lease = ours.claim("a/../b ü")
        assert lease is not None
        with suppress(KeyError), lease:
            assert ours.claim("a/../b ü") is None
            raise KeyError
        assert lease.lost
        assert ours.claim("a/../b ü") is not None
        assert ours.holders()[0].units == ("a/../b ü",)
    again = Leases(tmp_path).claim("a/../b ü")  # nobody refers to the object but the lease
    assert again is not None
    assert not again.lost
    again.release()


def test_a_forked_process_releases_nothing(tmp_path: Path) -> None:
    with Leases(tmp_path) as ours:
        lease = ours.claim("unit")
        assert lease is not None
        child = os.fork()
        if child == 0:
            refused = ours.claim("unit") is None
            lease.release()
            ours.close()
            os._exit(0 if refused else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert not lease.lost


@pytest.mark.parametrize("call", ["makedirs", "open", "rename"])
@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "the disk is full: free some space"), (errno.EROFS, "is read-only")]
)
def test_a_full_or_read_only_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with Leases(tmp_path, **FAST) as ours:
        assert ours.claim("one") is not None
        monkeypatch.setattr(leases, "os", SimpleNamespace(**{**vars(os), call: fail}))
        with pytest.raises(StoreError, match=says):
            ours.claim("two")
        monkeypatch.setattr(leases, "os", os)
        assert ours.claim("two") is not None


def test_a_heartbeat_that_cannot_be_written_is_said_at_the_next_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with Leases(tmp_path, **FAST) as ours:
        assert ours.claim("one") is not None
        monkeypatch.setattr(ours._heart, "_write", fail)
        assert failed.wait(10)
        patiently(lambda: ours._heart._failure)
        with pytest.raises(StoreError, match="quota is used up"):
            ours.claim("two")


@pytest.mark.parametrize("name", ["", "x" * 201, "ü" * 40])
def test_names_that_are_no_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected 1 to 200"):
        Leases(tmp_path).claim(name)


def test_a_patience_that_one_late_beat_would_use_up(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="interval is 2 and patience 3"):
        Leases(tmp_path, interval=2, patience=3)
