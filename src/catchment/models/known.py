"""Cards of models that were loaded before, known by their files, so that nothing is loaded to learn a hash.

A file up to :data:`SMALL` is compared by its content. A larger one is compared by inode, size and times of change of
content and of attributes (``ctime``, which ``utime``, ``cp -p`` and ``rsync -t`` cannot set), and by its content too
where these would not show a change: see :func:`_doubtful`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from catchment.errors import StoreError
from catchment.models.files import file_hash, write_beside
from catchment.options import cache_dir
from catchment.records import ModelCard, from_json, to_json

CACHE_VERSION = 4
SMALL = 1 << 24
"""Bytes up to which a file is hashed at every look: configs, tokenizers, templates, tiny models."""
FRESH = 2_000_000_000
"""Nanoseconds for which a second change may leave the time stamp of the first: 2 s on FAT, the coarsest in use."""
COARSE = 10_000_000
"""Nanoseconds: times that are multiples of it come from file systems that do not keep a ``ctime`` (FAT, FUSE)."""

Attributes = tuple[int, int, int, int]
"""Inode, size, mtime and ctime (both in ns) of a file."""


@dataclass(frozen=True)
class Stamp:
    """One file as it was seen; ``content``: its SHA-256 where it was hashed."""

    path: str
    attributes: Attributes
    content: str | None


@dataclass(frozen=True)
class Seen:
    """The files of a model at one moment.

    Attributes:
        key: Hash of the files' names, of what they lead to, and of the conditions of loading: the address in the cache.
        stamps: One for each file.
    """

    key: str
    stamps: tuple[Stamp, ...]

    def equals(self, earlier: Seen) -> bool:
        """Whether every file is as it was then. Cost: hashing those that were in doubt then, and are not now."""
        stamps = zip(earlier.stamps, self.stamps, strict=True)
        return self.key == earlier.key and all(_same(old, new) for old, new in stamps)

    def remember(self, card: ModelCard) -> None:
        """Put a card into the cache. A cache that cannot be written is no error: the next run hashes again."""
        path = _cache_file(self.key)
        entry = {"files": [dataclasses.astuple(stamp) for stamp in self.stamps], "card": to_json(card)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_beside(path, json.dumps(entry).encode())
        except (OSError, StoreError):
            return

    def recall(self, name: str) -> ModelCard | None:
        """The cached card under the name it is asked for now, or ``None`` when a file is not as it was; a damaged
        entry counts as absent."""
        try:
            entry = json.loads(_cache_file(self.key).read_text())
            known = [Stamp(path, tuple(stat), content) for path, stat, content in entry["files"]]
            card = from_json(ModelCard, entry["card"])
            if not self.equals(Seen(self.key, tuple(known))):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if any(old.content and not new.content for old, new in zip(known, self.stamps, strict=True)):
            self.remember(card)  # what was in doubt has settled: it need not be hashed again
        return dataclasses.replace(card, name=name)


def look(files: Iterable[Path], conditions: Mapping[str, object]) -> Seen | None:
    """See files as they are now; ``None`` when one cannot be read.

    Cost: hashing the files up to :data:`SMALL` and those in doubt (0.3 to 1.5 GB/s); no more than opening the others.
    """
    now = time.time_ns()
    links = sorted({(file.name, os.path.realpath(file)) for file in files})  # a link may lead to another of the files
    try:
        stamps = tuple(_stamp(path, now) for path in sorted({path for _, path in links}))
    except OSError:
        return None
    parts = json.dumps([CACHE_VERSION, links, conditions], sort_keys=True, default=str)
    return Seen(hashlib.sha256(parts.encode()).hexdigest(), stamps)


def attributes(paths: Iterable[str]) -> dict[str, Attributes | None]:
    """Attributes of each file; ``None`` for one that is not there."""
    return {path: _attributes(os.stat(path)) if os.path.exists(path) else None for path in paths}


def _attributes(stat: os.stat_result) -> Attributes:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _stamp(path: str, now: int) -> Stamp:
    with open(path, "rb") as file:  # opened, because a network file system then asks its server
        stat = os.fstat(file.fileno())
        hashed = stat.st_size <= SMALL or _doubtful(stat, now)
        content = hashlib.file_digest(file, "sha256").hexdigest() if hashed else None
    return Stamp(path, _attributes(stat), content)


def _doubtful(stat: os.stat_result, now: int) -> bool:
    """Whether another content could have the same attributes: a file changed just now or in the future (the clock
    was set back), a file system without inodes or without a ``ctime`` of its own, or Windows, whose ``ctime`` is the
    time of creation."""
    fresh = max(stat.st_mtime_ns, stat.st_ctime_ns) > now - FRESH
    return fresh or stat.st_ino == 0 or stat.st_ctime_ns % COARSE == 0 or os.name == "nt"


def _same(old: Stamp, new: Stamp) -> bool:
    if old.path != new.path or old.attributes[1] != new.attributes[1]:
        return False
    if old.content is None:
        return old.attributes == new.attributes
    return old.content == (new.content or file_hash(Path(new.path)))


def _cache_file(key: str) -> Path:
    return cache_dir() / "identity" / f"{key}.json"
