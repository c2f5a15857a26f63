"""Where what can be made again lies: CATCHMENT_HOME, then XDG_CACHE_HOME, then the home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from catchment.options import cache_dir


@pytest.mark.parametrize(
    ("home", "shared", "expected"),
    [
        ("/data/catchment", "/cache", "/data/catchment"),
        ("~/here", "/cache", "/home/someone/here"),
        ("relative", None, "relative"),
        (None, "/cache", "/cache/catchment"),
        ("", "/cache", "/cache/catchment"),
        (None, None, "/home/someone/.cache/catchment"),
        ("", "", "/home/someone/.cache/catchment"),
        (None, "relative/cache", "/home/someone/.cache/catchment"),
        (None, "~/cache", "/home/someone/.cache/catchment"),
    ],
)
def test_cache_dir(monkeypatch: pytest.MonkeyPatch, home: str | None, shared: str | None, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in (("CATCHMENT_HOME", home), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
