"""Addresses: what changes a key, what does not, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pathlib

import numpy as np
import pytest

from catchment.errors import InputError
from catchment.records import SCHEMA_VERSION
from catchment.runs import canonical_json, cell_key


def test_the_key_is_the_hash_of_canonical_json() -> None:
    text = f'{{"parts":{{"a":0.1,"b":[1,null,true,"é"]}},"schema_version":{SCHEMA_VERSION}}}'
    assert cell_key({"b": (1, None, True, "é"), "a": 0.1}) == hashlib.sha256(text.encode()).hexdigest()


def test_order_does_not_matter_and_content_does() -> None:
    one = {"task": "recall", "items": ["a", "b"], "sigma": 0.1, "nested": {"x": 1, "y": 2}}
    assert cell_key(one) == cell_key(dict(reversed(one.items())) | {"nested": {"y": 2, "x": 1}})
    others = [
        {**one, "sigma": 0.1 + 1e-16},  # the next float64
        {**one, "items": ["b", "a"]},
        {**one, "extra": None},
        {**one, "sigma": "0.1"},
        {**one, "nested": {"x": 1, "y": 2.0}},
    ]
    assert len({cell_key(other) for other in [one, *others]}) == 6


def test_floats_survive() -> None:
    for value in (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0):
        assert json.loads(canonical_json([value]))[0].hex() == value.hex()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"sigma": float("nan")}, "parts.sigma is nan"),
        ({"a": {"b": [1, float("-inf")]}}, r"parts\.a\.b\[1\] is -inf"),
        ({"dtype": np.dtype("float32")}, r"parts\.dtype is a numpy\.dtypes"),
        ({"path": pathlib.PurePosixPath("x")}, r"parts\.path is a pathlib"),
        ({"ids": {1, 2}}, r"parts\.ids is a set"),
        ({"n": np.int64(3)}, r"parts\.n is a numpy\.int64"),
        ({"a": {3: 1}}, r"parts\.a has the key 3"),
        ({"raw": b"x"}, r"parts\.raw is a bytes"),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_name(parts: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        cell_key(parts)
