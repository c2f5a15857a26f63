"""What items cost, as foretold and as learnt."""

from __future__ import annotations

import pytest

from catchment.capabilities import Pace
from catchment.commands.compare.prices import Load, Prices


def prices() -> Prices:
    """An item reads 10 tokens of 1 ms on the base and of 3 ms on the tuned model."""
    return Prices((Pace(0.001), Pace(0.003)), {"t": Load(10.0)}, 1024)


def test_what_was_measured_corrects_what_is_foretold() -> None:
    first = prices()
    assert first.seconds("t", 5) == pytest.approx(0.2)
    learnt = first.learn("t", (5, 5), 0.6)
    assert learnt.seconds("t", 5) == pytest.approx(0.6)
    assert learnt.learn("t", (0, 5), 0.15).seconds("t", 5) == pytest.approx(0.2)  # the last items count
    assert first.seconds("t", 5) == pytest.approx(0.2)


def test_items_that_were_not_done_in_time_are_taken_to_need_twice_as_long() -> None:
    assert prices().fell_short("t", (5, 5), 0.3).seconds("t", 5) == pytest.approx(0.6)
    learnt = prices().learn("t", (5, 5), 2.0)
    assert learnt.fell_short("t", (5, 0), 0.05).seconds("t", 5) == pytest.approx(2.0)  # never cheaper than known


def test_rows_that_were_in_the_store_teach_nothing() -> None:
    assert prices().learn("t", (0, 0), 0.0) == prices()
    assert prices().fell_short("t", (0, 0), 1.0) == prices()
