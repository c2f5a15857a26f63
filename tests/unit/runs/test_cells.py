"""Addresses: what changes a key, what does not, and what is refused."""

from __future__ import annotations

import enum
import hashlib
import json
import pathlib
from types import MappingProxyType

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


class Three(enum.IntEnum):
    THREE = 3


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        ({},
         "18cd40eac1600c2d73862dfe9601747a1831dcb10c1359839280e027bca2b06a"),
        ({"weights": "a1", "task": "recall", "system": None, "moved": {"kind": "gaussian", "seed": 0, "scale": 0.1}},
         "de0abfe06a7bf36e97b9dfa24315ba612f83feb1eb7913a5e5b289cd30f233ce"),
        ({"é": ["ü", "\u2028", '"\\\n'], "b": [True, False, None, -0.0, 1e-7, 1e22, 10**30, {"z": (), "a": {}}]},
         "f151cea9df0ed2868b74e9db5e7c4257e65cc475542bc3a7c91644438c7e3319"),
        ({"sigma": 5e-324, "n": 1, "x": 1.0},
         "3fc0bdf4908ae72398249c151e59ac6bc01247ad09b17c2f13a0995d7a4e0b61"),
        ({"subclasses": [Three.THREE, np.float64(0.1), np.str_("x")], "mapping": MappingProxyType({"b": 1, "a": 2})},
         "62791fb3554cd5c3b88701d41a1acd0df32458b89ce0188b45534741c11d8bde"),
    ],
)  # fmt: skip
def test_keys_are_those_that_stores_hold_already(parts: dict, key: str) -> None:
    assert cell_key(parts) == key


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
        ({"path": "\udcff.jsonl"}, r"parts hold '\\udcff'"),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_name(parts: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        cell_key(parts)
