"""Calls to the system, logged; small disks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.runs import segments

CALLS = ("open", "mkdir", "link", "fsync", "unlink", "replace", "rmdir", "listdir", "scandir", "stat")


class Log(list[tuple[str, str]]):
    """Calls to the system with the path they are about, in order; nothing is flushed, which is slow."""

    @property
    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    calls = Log()
    paths: dict[int, str] = {}

    def logged(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def logging(*args: Any, **options: Any) -> Any:
            calls.append((name, paths.get(args[0], "") if name == "fsync" else str(args[0] if args else ".")))
            if name == "link":
                calls[-1] = (name, str(args[1]))
            found = None if name == "fsync" else call(*args, **options)
            if name == "open":
                paths[found] = str(args[0])
            return found

        return logging

    monkeypatch.setattr(segments, "SETTLED_NS", 1 << 62)  # else what is listed depends on how long a test takes
    for name in CALLS:
        monkeypatch.setattr(os, name, logged(name, getattr(os, name)))
    yield calls
    monkeypatch.undo()


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real disk of a size that is given as the parameter: ``20m``."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not done or done.returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
