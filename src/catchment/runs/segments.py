"""Segments: many finished cells in one file, with an index beside it, so that 100,000 cells list in one read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catchment.records import Row
from catchment.runs.chunks import TornError, decode, encode
from catchment.runs.files import make_folder, write_new


@dataclass(frozen=True)
class Place:
    """Where a cell lies: ``head`` bytes of conditions at ``start``, then ``body`` bytes of rows."""

    segment: str
    start: int
    head: int
    body: int
    rows: int


def read_index(folder: Path, warn: Callable[[str, str], None]) -> tuple[tuple[str, ...], dict[str, Place]]:
    """All cells in all segments, newer segments first in rank, and the names of the index files that were read."""
    names = tuple(sorted(path.name for path in folder.glob("*.index.json"))) if folder.is_dir() else ()
    places: dict[str, Place] = {}
    for name in names:
        try:
            content = json.loads((folder / name).read_text("utf-8"))
            segment = name.replace(".index.json", ".jsonl")
            places.update({key: Place(segment, *numbers) for key, numbers in content["cells"].items()})
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(str(folder / name), f"its content cannot be read ({type(error).__name__})")
    return names, places


def write_segment(folder: Path, cells: list[tuple[str, dict[str, Any], list[Row]]]) -> None:
    """Write cells (key, conditions, rows) into a new segment: data first, then the index, which makes it count."""
    make_folder(folder)
    data = bytearray()
    index: dict[str, list[int]] = {}
    for key, conditions, rows in cells:
        head, body = _head(key, conditions), encode(rows)
        index[key] = [len(data), len(head), len(body), len(rows)]
        data += head + body
    number = 1 + max((int(p.name.split(".")[0]) for p in folder.glob("[0-9]*.jsonl")), default=0)
    while not write_new(folder / f"{number:06d}.jsonl", bytes(data)):
        number += 1
    content = json.dumps({"cells": index, "sha256": hashlib.sha256(data).hexdigest()}, separators=(",", ":"))
    write_new(folder / f"{number:06d}.index.json", content.encode())


def read_rows(folder: Path, place: Place) -> list[Row]:
    """Rows of one cell. Raises TornError or OSError."""
    with open(folder / place.segment, "rb") as file:
        file.seek(place.start + place.head)
        data = file.read(place.body)
    if len(data) != place.body:
        raise TornError("it ends early")
    return decode(data)


def read_conditions(folder: Path, place: Place) -> dict[str, Any]:
    """Conditions of one cell. Raises ValueError, KeyError or OSError when the segment is damaged."""
    with open(folder / place.segment, "rb") as file:
        file.seek(place.start)
        return dict(json.loads(file.read(place.head))["conditions"])


def _head(key: str, conditions: dict[str, Any]) -> bytes:
    return (json.dumps({"cell": key, "conditions": conditions}) + "\n").encode()
