"""What is here and what is not: checkpoints of the hub, and what a study may keep of them and of tuned models."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from catchment import models
from catchment.commands.study.design import Place
from catchment.errors import CatchmentError
from catchment.runs import Leases, Store

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
           "adapter_model.safetensors")  # fmt: skip
"""Files by which the hub's cache shows that it has weights."""


def keep_within(store: Store, leases: Leases, gigabytes: float | None) -> int:
    """Delete tuned weights, those used longest ago first, until all together fit; returns the bytes that were freed.
    Those that a worker is at stay. What is known of the trainings stays, and so do rows: a task that is added later
    trains again."""
    if gigabytes is None:
        return 0
    sizes = {folder: size_of(folder) for folder in (store.root / "tunings").glob("*/[!.]*/model")}
    freed, over = 0, sum(sizes.values()) - gigabytes * 1e9
    for folder in sorted(sizes, key=used):
        if freed >= over:
            break
        lease = leases.claim(folder.parent.name)
        if lease is not None:
            with lease:
                shutil.rmtree(folder, ignore_errors=True)
            freed += sizes[folder]
    return freed


def used(folder: Path) -> float:
    """When a folder was written to or taken up; of one that another worker has dropped meanwhile, long ago."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # dropped meanwhile
            total += file.stat().st_size if file.is_file() else 0
    return total


def of_hub(place: Place) -> bool:
    """Whether a spelling can only be a model of the hub: no file, package, or base with a move. Nobody is asked."""
    spec = place.spec
    if Path(spec).expanduser().exists() or spec.startswith(("package:", ".", "~", "/")) or "+" in spec:
        return False
    name = spec.partition("@")[0]
    module = name.replace("-", "_")
    return "/" in name or not module.isidentifier() or importlib.util.find_spec(module) is None


def is_fetched(place: Place) -> bool:
    """Whether the weights of a checkpoint of the hub are in its cache."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = _named(place)
    try:
        found = [try_to_load_from_cache(name, file, revision=revision) for file in WEIGHTS]
    except ValueError:  # no name of the hub: loading says so
        return True
    return any(isinstance(path, str) for path in found)


def _named(place: Place) -> tuple[str, str | None]:
    name, _, revision = place.spec.partition("@")
    return name, place.revision or revision or None


def bytes_on_hub(places: Sequence[Place], api: Any = None) -> tuple[dict[Place, str], str]:
    """What identifies the weights of checkpoints that are not here: the hub's SHA-256 of all weight files, as a text.

    Args:
        api: Asked instead of the hub.

    Returns:
        The identity of each that the hub told, and why others are missing; one failure to reach it ends the asking.
    """
    from huggingface_hub import HfApi

    if models.offline() and api is None:
        return {}, "HF_HUB_OFFLINE=1 forbids asking the hub"
    asked: Any = api or HfApi()
    known: dict[Place, str] = {}
    for place in places:
        name, revision = _named(place)
        try:
            info = asked.model_info(name, revision=revision, files_metadata=True, timeout=3)
        except Exception as error:  # whatever the network raises
            return known, f"the hub did not answer ({type(error).__name__})"
        files = {f.rfilename: f.lfs.sha256 for f in info.siblings or () if f.lfs is not None}
        weights = {name: digest for name, digest in files.items() if name.endswith((".safetensors", ".bin"))}
        if weights:
            known[place] = str(sorted(weights.items()))
    return known, ""


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
