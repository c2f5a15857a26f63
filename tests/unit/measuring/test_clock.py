"""The clock of a budget."""

from __future__ import annotations

import math
import time

import pytest

from catchment.measuring import SLACK, Clock, OutOfTimeError


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


def test_measuring_stops_before_the_budget_ends(now: list[float]) -> None:
    clock = Clock(0.0, 100.0)
    clock.check()
    assert (clock.end, clock.remaining()) == (94.0, 100.0)
    now[0] = 94.0
    assert (clock.late, clock.remaining()) == (True, 6.0)
    with pytest.raises(OutOfTimeError):
        clock.check()
    assert Clock(0.0, 8.0).end == 6.0  # of a short budget a quarter is kept


def test_without_a_budget_there_is_no_end(now: list[float]) -> None:
    clock = Clock(0.0)
    with clock.keeping(10.0), clock.following(True):
        assert (clock.end, clock.remaining()) == (math.inf, None)
    with clock.within(5.0):
        now[0] = 6.0
        assert clock.left == math.inf


def test_shares_and_what_is_kept_end_with_their_block(now: list[float]) -> None:
    clock = Clock(0.0, 100.0)
    with clock.keeping(40.0):
        assert clock.end == 54.0
        with clock.within(20.0), clock.within(30.0):
            assert clock.end == 20.0
        with clock.keeping(4.0):
            assert clock.end == 90.0
        assert clock.end == 54.0
    with pytest.raises(OutOfTimeError), clock.within(0.0):
        clock.check()
    assert clock.end == 94.0


def test_a_run_that_follows_a_plan_has_slack_and_no_shares(now: list[float]) -> None:
    clock = Clock(0.0, 100.0)
    with clock.following(True):
        assert clock.resumed
        with clock.within(20.0):
            assert clock.end == pytest.approx(100.0 * SLACK - 6.0)
    assert not clock.resumed
    with clock.following(False):
        assert clock.end == 94.0
