"""The folder of a cell that is not compacted: numbered chunks and the conditions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from catchment.runs.files import (
    FolderGoneError,
    explained,
    is_stale,
    make_folder,
    sync_folder,
    write_new,
    write_numbered,
)

CONDITIONS = "conditions.json"
OLD_MARK = "DONE"
"""A file that version 0.1.0 wrote; it has no meaning."""
ATTEMPTS = 100
"""How often a folder may be removed by compaction while one chunk is written to it."""
_CHUNK = re.compile(r"\d{6,}\.jsonl")


def chunk_names(folder: Path) -> list[str]:
    """Names of the chunks, earliest first; none where there is no folder."""
    return sorted((name for name in _names(folder) if _CHUNK.fullmatch(name)), key=_number)


def keys(cells: Path) -> set[str]:
    """The cells that have a folder under this one."""
    found: set[str] = set()
    for prefix in _names(cells):
        found.update(name for name in _names(cells / prefix) if name.startswith(prefix))
    return found


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def next_number(folder: Path) -> int:
    """The number of the next chunk. Looks at every name in the folder."""
    return 1 + max(map(_number, chunk_names(folder)), default=0)


def write_chunk(folder: Path, number: int, data: bytes, conditions: Mapping[str, Any]) -> int:
    """Write a chunk, on the disk when this returns; returns its number, the first free one from ``number`` on. The
    chunk and its folder are flushed once each; for the first chunk of a cell so are the folders above that are new.

    Raises:
        StoreError: The disk is full or read-only.
    """
    for attempt in range(ATTEMPTS):
        try:
            grown = make_folder(folder)
            if not (folder / CONDITIONS).exists():
                write_new(folder / CONDITIONS, _encoded(conditions), sync=False)
            taken = write_numbered(folder, number, jsonl=data)
            for parent in grown:
                sync_folder(parent)
            return taken
        except FolderGoneError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def drop_chunks(folder: Path, names: Sequence[str], conditions: Mapping[str, Any]) -> None:
    """Remove chunks that are kept elsewhere, and the folder when nothing else is in it. Another process may append
    meanwhile: what it wrote stays, and the conditions with it."""
    with explained(folder):
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(folder / name)
        left = os.listdir(folder)
        if any(name not in (CONDITIONS, OLD_MARK) and not is_stale(folder / name) for name in left):
            return
        for name in left:
            with suppress(FileNotFoundError):
                os.unlink(folder / name)
    with suppress(OSError):
        os.rmdir(folder)
        return
    write_new(folder / CONDITIONS, _encoded(conditions), sync=False)  # somebody was quicker


def _encoded(conditions: Mapping[str, Any]) -> bytes:
    return json.dumps(conditions, indent=1).encode()


def _number(name: str) -> int:
    return int(name.split(".")[0])
