"""Segments: the rows of many cells in one file, with an index beside it, so that 100,000 cells list in one read.

A cell may lie in several segments: each holds what was added to it at one time, and an item that two of them hold
counts as the earlier one has it. Segments never change. Several may be merged into a new one, which names those that it
``replaces`` and stands at the place of the first of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from catchment.runs.chunks import TornError
from catchment.runs.files import explained, flush, make_folder, sync_folder, temporary, write_numbered

INDEX, DATA = ".index.json", ".jsonl"
READ_BYTES = 1 << 18
"""Bytes that are read ahead where many cells of a segment are read."""
SETTLED_NS = 3 * 10**9
"""Nanoseconds after which a change of a folder has another time: file systems round to 2 seconds at most."""
NUMBERED = re.compile(r"\d{6,}\.(index\.json|jsonl)")


@dataclass(frozen=True)
class Part:
    """Rows that go into a segment: of which cell, its conditions, the rows encoded as a chunk, and how many items they
    are of."""

    key: str
    conditions: Mapping[str, Any]
    body: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows of a cell lie: ``head`` bytes of conditions at ``start``, then ``body`` bytes of rows, which are of
    ``rows`` items."""

    segment: str
    start: int
    head: int
    body: int
    rows: int


@dataclass(frozen=True)
class Segment:
    """What an index file says. ``rank``: its place among all segments, before its number."""

    name: str
    rank: int
    replaces: tuple[str, ...]
    cells: Mapping[str, Place]

    @property
    def size(self) -> int:
        """Bytes of its data."""
        return sum(place.head + place.body for place in self.cells.values())

    @property
    def order(self) -> tuple[int, int]:
        return self.rank, number_of(self.name)


@dataclass
class Index:
    """All segments of a folder, as this process has read them."""

    folder: Path
    warn: Callable[[str, str], None]
    _changed: int | None = None
    _files: dict[str, Segment | None] = field(default_factory=dict)
    _segments: list[Segment] = field(default_factory=list)
    _places: dict[str, tuple[Place, ...]] = field(default_factory=dict)

    def places(self) -> Mapping[str, tuple[Place, ...]]:
        """Where each cell lies, earliest first. Only index files that are new are read; the folder is not listed where
        its time says that nothing was added or removed."""
        while (changed := _changed(self.folder)) is None or changed != self._changed:
            names = index_files(self.folder)
            if new := names != self._files.keys():
                self._read(names)
            self._changed = changed
            if not new:
                break
        return self._places

    def segments(self) -> list[Segment]:
        """All that count, earliest first."""
        self.places()
        return self._segments

    def replaced(self) -> set[str]:
        """Names of index files that are still there although another segment holds what they hold."""
        named = {name for segment in self._files.values() if segment is not None for name in segment.replaces}
        return named & self._files.keys()

    def _read(self, names: set[str]) -> None:
        self._files = {name: self._files[name] if name in self._files else self._one(name) for name in sorted(names)}
        replaced = self.replaced()
        counted = [segment for name, segment in self._files.items() if segment is not None and name not in replaced]
        counted.sort(key=lambda segment: segment.order)
        known = len(self._segments)
        if counted[:known] != self._segments:
            known, self._places = 0, {}
        for segment in counted[known:]:
            for key, place in segment.cells.items():
                self._places[key] = (*self._places.get(key, ()), place)
        self._segments = counted

    def _one(self, name: str) -> Segment | None:
        try:
            content = json.loads((self.folder / name).read_text("utf-8"))
            if "own_sha256" in content and content.pop("own_sha256") != _digest(content):  # that of 0.1.0 has none
                raise ValueError("checksum")
            data = name.removesuffix(INDEX) + DATA
            cells = {key: Place(data, *numbers) for key, numbers in content["cells"].items()}
            return Segment(name, int(content.get("rank", number_of(name))), tuple(content.get("replaces", ())), cells)
        except FileNotFoundError:
            return None  # merged into another since the folder was listed
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.warn(str(self.folder / name), f"its content cannot be read ({type(error).__name__})")
            return None


def number_of(name: str) -> int:
    return int(name.split(".")[0])


def index_files(folder: Path) -> set[str]:
    """Names of the index files in a folder that may not exist."""
    try:
        return {name for name in os.listdir(folder) if NUMBERED.fullmatch(name) and name.endswith(INDEX)}
    except FileNotFoundError:
        return set()


def _changed(folder: Path) -> int | None:
    """When a name was added to a folder or removed from it last; ``None`` where another change may get the same time,
    and where there is no folder."""
    try:
        changed = os.stat(folder).st_mtime_ns
    except OSError:
        return None
    return changed if time.time_ns() - changed > SETTLED_NS else None


def write_segment(folder: Path, parts: Iterable[Part], rank: int | None = None, replaces: Sequence[str] = ()) -> int:
    """Write parts, one cell each, into a new segment; returns how many. No parts, no segment. One part is in memory at
    a time. On the disk when this returns: two files flushed and their folder, whatever the number of cells.

    Raises:
        StoreError: The disk is full or read-only; nothing of the segment counts then.
    """
    grown = make_folder(folder)
    cells: dict[str, list[int]] = {}
    digest, start = hashlib.sha256(), 0
    with explained(folder), temporary(folder) as (path, file):
        for part in parts:
            head = (json.dumps({"cell": part.key, "conditions": part.conditions}) + "\n").encode()
            for data in (head, part.body):
                file.write(data)
                digest.update(data)
            cells[part.key] = [start, len(head), len(part.body), part.rows]
            start += len(head) + len(part.body)
        if not cells:
            return 0
        flush(file)
        content: dict[str, Any] = {"cells": cells, "sha256": digest.hexdigest()}
        if rank is not None:
            content |= {"rank": rank, "replaces": list(replaces)}
        number = 1 + max((number_of(name) for name in os.listdir(folder) if NUMBERED.fullmatch(name)), default=0)
        index = json.dumps({**content, "own_sha256": _digest(content)}, separators=(",", ":")).encode()
        write_numbered(folder, number, jsonl=path, index_json=index)
        for parent in grown:
            sync_folder(parent)
    return len(cells)


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of what an index says, so that no number of rows and no key in it changes unnoticed."""
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def read_body(folder: Path, place: Place) -> bytes:
    """Rows of one cell, encoded. Raises TornError or OSError."""
    with open(folder / place.segment, "rb") as file:
        file.seek(place.start + place.head)
        data = file.read(place.body)
    if len(data) != place.body:
        raise TornError("it ends early")
    return data


def read_all(folder: Path, places: Mapping[str, Place]) -> Iterator[tuple[str, bytes, bytes]]:
    """Many cells in the order in which they lie in the files: key, conditions and rows, encoded. Both are cut short or
    empty where they cannot be read."""
    ordered = sorted(places.items(), key=lambda entry: (number_of(entry[1].segment), entry[1].start))
    for segment, cells in groupby(ordered, key=lambda entry: entry[1].segment):
        with _opened(folder / segment) as file:
            for key, place in cells:
                yield key, *_read(file, place)


def _opened(path: Path) -> BinaryIO:
    """A file, or an empty one where it cannot be opened."""
    try:
        return open(path, "rb", buffering=READ_BYTES)
    except OSError:
        return io.BytesIO()


def _read(file: BinaryIO, place: Place) -> tuple[bytes, bytes]:
    try:
        file.seek(place.start)
        return file.read(place.head), file.read(place.body)
    except OSError:
        return b"", b""


def read_conditions(folder: Path, place: Place) -> dict[str, Any]:
    """Conditions of one cell. Raises ValueError, KeyError or OSError when the segment is damaged."""
    with open(folder / place.segment, "rb") as file:
        file.seek(place.start)
        return conditions_in(file.read(place.head))


def conditions_in(head: bytes) -> dict[str, Any]:
    """Conditions of one cell, from what stands before its rows. Raises ValueError, KeyError or TypeError."""
    return dict(json.loads(head)["conditions"])
