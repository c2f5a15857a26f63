"""What a study may keep on the disk: tuned models, and checkpoints that it fetched from the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from catchment import models
from catchment.commands.study.design import Place
from catchment.errors import CatchmentError
from catchment.runs import Store


def keep_within(store: Store, gigabytes: float | None) -> int:
    """Delete tuned weights, those used longest ago first, until all together fit; returns the bytes that were freed.
    What is known of the trainings stays, and so do rows: a task that is added later trains again."""
    if gigabytes is None:
        return 0
    sizes = {folder: size_of(folder) for folder in (store.root / "tunings").glob("*/*/model")}
    freed, over = 0, sum(sizes.values()) - gigabytes * 1e9
    for folder in sorted(sizes, key=lambda path: path.stat().st_mtime):
        if freed >= over:
            break
        shutil.rmtree(folder, ignore_errors=True)
        freed += sizes[folder]
    return freed


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def is_fetched(place: Place) -> bool:
    """Whether a checkpoint of the hub is in its cache now; ``False`` for what is no model of the hub, too."""
    from huggingface_hub import try_to_load_from_cache

    if Path(place.spec).exists() or place.spec.startswith("package:"):
        return False
    name, _, revision = place.spec.partition("@")
    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=place.revision or revision or None), str)
    except ValueError:  # no name of the hub
        return False


def drop_fetched(place: Place) -> int:
    """Delete a checkpoint from the hub's cache; files that other revisions share stay. Returns the bytes freed."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        source = models.resolve(place.spec, place.revision)
        if source.kind != "hub" or source.revision is None:
            return 0
        plan = scan_cache_dir().delete_revisions(source.revision)
    except (CatchmentError, CacheNotFound):
        return 0
    plan.execute()
    return int(plan.expected_freed_size)
