"""What all tests share: processes that are started once, and files that are not flushed to the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.gloo import Gloo


@pytest.fixture(scope="session", autouse=True)
def unflushed() -> Iterator[None]:
    """``os.fsync`` does nothing: it takes milliseconds, and only a power cut would show that it was left out. Processes
    that tests start do flush."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def gloo() -> Iterator[Gloo]:
    """Two processes joined by gloo: ``gloo.run(work, ...)`` calls ``work(rank, ...)`` on both."""
    pair = Gloo()
    yield pair
    pair.close()
