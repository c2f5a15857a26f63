"""Columns: what statistics need of many rows, read from their encoded form without making the rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catchment.runs.chunks import checked, decode

_TEXT = rb'(?>"[^"]*+(?<!\\)"|"[^"\\]*+(?:\\.[^"\\]*+)*+")'  # the second is for texts with an escape, and slower
_LINE = re.compile(
    rb'^\{"item": (%s), "score": ([^,]*+), "prediction": %s, "logprobs": \[[^]]*+\], "companion": ([^,]*+), '
    rb'"flags": \[((?:%s(?:, )?)*+)\]\}\n' % (_TEXT, _TEXT, _TEXT),
    re.MULTILINE,
)
"""One row as ``chunks.encode`` writes it: the item, score, companion and flags, still as JSON. It may match
over several lines, or what is no JSON; not in a body that an encoder of JSON wrote and that has as many lines."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Rows of one cell as arrays, in the order of :meth:`catchment.runs.Cell.rows`.

    Attributes:
        items: Item of each row, each once. Cells of the same items in the same order may share this tuple.
        scores: float64 of shape ``[rows]``.
        companions: float64 of shape ``[rows]``; NaN where the row has none.
        flags: Number of rows that have a flag, by flag; flags that no row has are not in it.
    """

    items: tuple[str, ...]
    scores: NDArray[np.float64]
    companions: NDArray[np.float64]
    flags: Mapping[str, int]


@dataclass(frozen=True)
class ChunkColumns:
    """One chunk by columns. An item may be in it twice unless it is ``distinct``."""

    items: tuple[str, ...]
    distinct: bool
    scores: NDArray[np.float64]
    companions: NDArray[np.float64]
    flags: Sequence[tuple[str, ...]]


def parse(data: bytes) -> ChunkColumns:
    """A whole chunk by columns: the same values as ``chunks.decode``, at about a fifth of the cost.

    Raises:
        TornError: The chunk is not whole.
    """
    lines = _lines(data)
    if lines is None:
        return _decoded(data)
    names, scores, companions, flags = zip(*lines, strict=True) if lines else ((), (), (), ())
    items, distinct = _texts(b",".join(names))
    return ChunkColumns(
        items,
        distinct,
        _numbers(scores),
        _numbers(companions),
        [_flags(flag) for flag in flags] if any(flags) else [()] * len(lines),
    )


def items_of(data: bytes) -> tuple[str, ...]:
    """The item of each row of a whole chunk. Raises TornError as :func:`parse`."""
    lines = _lines(data)
    if lines is None:
        return tuple(row.item for row in decode(data))
    return _texts(b",".join([item for item, *_ in lines]))[0]


def _lines(data: bytes) -> list[tuple[bytes, bytes, bytes, bytes]] | None:
    """Item, score, companion and flags of each row, as JSON; ``None`` where another writer's lines must be decoded."""
    body, rows = checked(data)
    lines = _LINE.findall(body)
    return lines if len(lines) == rows == body.count(b"\n") else None


def join(parts: Sequence[ChunkColumns]) -> Columns:
    """The columns of a cell from its parts, earliest first. An item counts as its first row has it.

    >>> from catchment.records import Row
    >>> from catchment.runs.chunks import encode
    >>> first, second = encode([Row("a", 1.0, "")]), encode([Row("a", 0.0, ""), Row("b", 0.5, "", (), 0.25, ("tie",))])
    >>> joined = join([parse(first), parse(second)])
    >>> joined.items, joined.scores, joined.companions, dict(joined.flags)
    (('a', 'b'), array([1. , 0.5]), array([ nan, 0.25]), {'tie': 1})
    """
    if len(parts) == 1 and parts[0].distinct:
        (part,) = parts
        return Columns(part.items, part.scores, part.companions, _counts(part.flags))
    first: dict[str, int] = {}
    for place, item in enumerate(chain.from_iterable(part.items for part in parts)):
        first.setdefault(item, place)
    taken = np.fromiter(first.values(), dtype=np.intp, count=len(first))
    flags = [flag for part in parts for flag in part.flags]
    return Columns(
        tuple(first),
        np.concatenate([np.empty(0), *(part.scores for part in parts)])[taken],
        np.concatenate([np.empty(0), *(part.companions for part in parts)])[taken],
        _counts([flags[place] for place in first.values()]),
    )


def _decoded(data: bytes) -> ChunkColumns:
    rows = decode(data)
    items = tuple(row.item for row in rows)
    return ChunkColumns(
        items,
        len(set(items)) == len(items),
        np.array([row.score for row in rows], dtype=np.float64),
        np.array([row.companion for row in rows], dtype=np.float64),
        [row.flags for row in rows],
    )


def _numbers(values: Sequence[bytes]) -> NDArray[np.float64]:
    """Numbers from JSON; ``null`` is NaN."""
    few = list(set(values))
    if 2 * len(few) > len(values):
        return np.array(_loads(values), dtype=np.float64)
    table = dict(zip(few, np.array(_loads(few), dtype=np.float64).tolist(), strict=True))
    return np.array([table[value] for value in values], dtype=np.float64)


def _loads(values: Iterable[bytes]) -> list[Any]:
    return list(json.loads(b"[" + b",".join(values) + b"]"))


def _texts(values: bytes) -> tuple[tuple[str, ...], bool]:
    """Texts from JSON, and whether they are distinct. Those of 64 chunks are kept: most cells of a task have the same
    items."""
    return _kept_texts(values) if len(values) < 1 << 18 else _read_texts(values)


def _read_texts(values: bytes) -> tuple[tuple[str, ...], bool]:
    texts = tuple(json.loads(b"[" + values + b"]"))
    return texts, len(set(texts)) == len(texts)


_kept_texts = lru_cache(64)(_read_texts)


@lru_cache(1024)
def _flags(values: bytes) -> tuple[str, ...]:
    return tuple(json.loads(b"[" + values + b"]"))


def _counts(flags: Sequence[tuple[str, ...]]) -> dict[str, int]:
    return dict(Counter(flag for row in flags if row for flag in set(row)))
