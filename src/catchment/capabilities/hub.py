"""Data sets of the hub where the hub does not answer: from their cache, or a reason at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catchment.errors import UnavailableError
from catchment.models import no_hub


@contextmanager
def cache_alone() -> Iterator[None]:
    """Within it `datasets` looks in its cache alone where the hub cannot be asked, and does not ask again and again."""
    if not no_hub():
        yield
        return
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def check_reach(name: str) -> None:
    """Refuse a data set that is neither a folder here nor in the cache while the hub cannot be asked; cheap, because
    `datasets` itself is not imported.

    Raises:
        UnavailableError: With the reason.
    """
    if not Path(name).exists() and (why := no_hub()) and not _is_cached(name):
        raise UnavailableError(f"data set {name!r}", f"not in the cache of data sets, and {why}")


def _is_cached(name: str) -> bool:
    """Whether `datasets` has built it before, under any subset and split."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    folder = name.replace("/", "___").lower()
    return cache.is_dir() and any(path.name.lower() == folder for path in cache.iterdir())
