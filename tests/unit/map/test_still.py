"""The list of what does not hold yet can neither hide something new nor keep what holds."""

from __future__ import annotations

import pytest

from tests.unit.map.still import told


def test_what_is_listed_and_found_passes() -> None:
    told({"a:f": 70}, {"a:f"})


def test_what_is_new_is_told_with_its_size() -> None:
    with pytest.raises(AssertionError, match="against the map:\na:g 70"):
        told({"a:f": 61, "a:g": 70}, {"a:f"})


def test_an_entry_that_is_no_longer_needed_is_told() -> None:
    with pytest.raises(AssertionError, match=r"these hold now; take them out.*\na:f"):
        told([], {"a:f"})
