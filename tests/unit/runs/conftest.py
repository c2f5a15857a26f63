"""Calls to the system, logged."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

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

    for name in CALLS:
        monkeypatch.setattr(os, name, logged(name, getattr(os, name)))
    yield calls
    monkeypatch.undo()
