"""Sorted indices as gaps in LEB128: seven bits per byte, the high bit says that more follow. Vectorised.

At a density of 1 in 900 a gap takes about 1.9 bytes instead of the 4 of an int32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Bytes = NDArray[np.uint8]
_MAX_BYTES = 9  # 63 bits: every non-negative int64


def encode(values: Indices) -> Bytes:
    """LEB128 of non-negative integers, one after the other. Memory: the bytes, and 17 bytes per value.

    >>> encode(np.array([1, 127, 128])).tolist()
    [1, 127, 128, 1]
    """
    if not values.size:
        return np.zeros(0, np.uint8)
    lengths = np.ones(values.size, np.int64)
    for i in range(1, _MAX_BYTES):
        longer = values >> (7 * i) != 0
        if not longer.any():
            break
        lengths += longer
    starts = np.cumsum(lengths) - lengths
    out = np.empty(int(lengths.sum()), np.uint8)
    for i in range(int(lengths.max())):
        longer = lengths > i
        septets = (values[longer] >> (7 * i)) & 0x7F
        out[starts[longer] + i] = septets | np.where(lengths[longer] > i + 1, 0x80, 0)
    return out


def decode(data: Bytes) -> Indices:
    """The integers that :func:`encode` wrote.

    Raises:
        ValueError: The last integer is cut short, or one is longer than 63 bits.

    >>> decode(np.array([1, 127, 128, 1], np.uint8)).tolist()
    [1, 127, 128]
    """
    if not data.size:
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(data < 0x80)
    if not ends.size or ends[-1] != data.size - 1:
        raise ValueError("the last integer is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_BYTES:
        raise ValueError("an integer is longer than 63 bits")
    values = np.zeros(starts.size, np.int64)
    for i in range(int(lengths.max())):
        longer = lengths > i
        values[longer] |= (data[starts[longer] + i] & 0x7F).astype(np.int64) << (7 * i)
    return values


def to_gaps(indices: Indices) -> Indices:
    """Strictly increasing indices as the number of entries skipped before each.

    >>> to_gaps(np.array([0, 1, 5])).tolist()
    [0, 0, 3]
    """
    return np.diff(indices, prepend=-1) - 1


def from_gaps(gaps: Indices, counts: Indices) -> Indices:
    """Indices of several tensors from their concatenated gaps; ``counts[i]`` of them belong to tensor ``i``.

    Memory: two int64 per index.

    >>> from_gaps(np.array([0, 0, 3, 2]), np.array([3, 1])).tolist()
    [0, 1, 5, 2]
    """
    ends = np.cumsum(gaps + 1)
    firsts = np.cumsum(counts) - counts
    before = np.concatenate([[0], ends])[firsts]
    return ends - 1 - np.repeat(before, counts)
