"""Reading: every whole part of a cell, while other processes append, compact and merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from catchment.runs.chunks import TornError
from catchment.runs.loose import chunk_names
from catchment.runs.segments import Index, Place, read_body

T = TypeVar("T")


@dataclass
class Seen(Generic[T]):
    """What the chunks of a cell hold, by name, as long as the cell lies at these places; ``None`` where damaged."""

    places: tuple[Place, ...] = ()
    chunks: dict[str, T | None] = field(default_factory=dict)


def parts(index: Index, folder: Path, read: Callable[[bytes], T], seen: Seen[T]) -> list[T]:
    """What ``read`` gives for each part of a cell, earliest first: of those in segments, then of the chunks in its
    folder. A damaged part is left out with one warning that names it. Chunks that were ``seen`` are not read again."""
    while True:
        places = index.places().get(folder.name, ())
        if places != seen.places:  # after a compaction a chunk may have the name that another one had
            seen.places = places
            seen.chunks.clear()
        in_chunks = [_chunk(index, folder / name, read, seen) for name in chunk_names(folder)]
        in_segments = [segment_part(index, folder.name, place, read) for place in places]
        if places == index.places().get(folder.name, ()):  # else chunks were compacted while they were read
            return [part for part in (*in_segments, *in_chunks) if part is not None]


def _chunk(index: Index, path: Path, read: Callable[[bytes], T], seen: Seen[T]) -> T | None:
    if path.name not in seen.chunks:
        try:
            seen.chunks[path.name] = chunk_part(index, path, read)
        except FileNotFoundError:
            return None  # compacted by another process since the folder was listed: the segment has it
    return seen.chunks[path.name]


def chunk_part(index: Index, path: Path, read: Callable[[bytes], T]) -> T | None:
    """What ``read`` gives for a chunk; ``None`` with a warning where it is damaged.

    Raises:
        FileNotFoundError: It is not there.
    """
    try:
        return read(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, TornError) as error:
        index.warn(str(path), str(error))
        return None


def segment_part(index: Index, key: str, place: Place, read: Callable[[bytes], T]) -> T | None:
    """What ``read`` gives for what a segment holds of a cell; ``None`` with a warning where it is damaged, and without
    one where another process merged the segment since the index was read."""
    path = index.folder / place.segment
    try:
        return read(read_body(index.folder, place))
    except FileNotFoundError as error:
        if place in index.places().get(key, ()):
            index.warn(str(path), str(error))
    except (OSError, TornError) as error:
        index.warn(f"{path} at byte {place.start}", str(error))
    return None
