from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catchment.models import varint

naturals = st.integers(0, 2**63 - 1)


@settings(deadline=None)
@given(st.lists(naturals, max_size=50))
def test_round_trip(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert varint.decode(varint.encode(array)).tolist() == values


@settings(deadline=None)
@given(st.lists(naturals, max_size=20))
def test_bytes_are_leb128(values: list[int]) -> None:
    expected = []
    for value in values:
        while value >= 0x80:
            expected.append(value & 0x7F | 0x80)
            value >>= 7
        expected.append(value)
    assert varint.encode(np.array(values, np.int64)).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 10**6), min_size=1, max_size=30), max_size=5))
def test_indices_of_several_tensors(tensors: list[set[int]]) -> None:
    indices = [np.array(sorted(t), np.int64) for t in tensors]
    gaps = np.concatenate([varint.to_gaps(i) for i in indices]) if indices else np.zeros(0, np.int64)
    counts = np.array([i.size for i in indices], np.int64)
    found = varint.from_gaps(gaps, counts)
    assert found.tolist() == [n for i in indices for n in i.tolist()]
    assert (gaps >= 0).all()


@pytest.mark.parametrize("data", [[0x80], [1, 0xFF], [0x80] * 9 + [1]])
def test_damaged_bytes(data: list[int]) -> None:
    with pytest.raises(ValueError, match="integer"):
        varint.decode(np.array(data, np.uint8))
