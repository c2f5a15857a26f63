"""Warnings that the record of a tune tells."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """Inside, warnings for users are kept for the record instead of printed; the list fills as they come."""
    texts: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *_where: object, **_line: object) -> None:
        if issubclass(category, UserWarning) and str(message) not in texts:
            texts.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = keep
        yield texts
