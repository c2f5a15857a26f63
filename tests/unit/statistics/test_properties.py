"""Properties that hold for all inputs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catchment.statistics import decide, mean_interval, paired_interval
from tests.unit.statistics.simulate import scores

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80)
fractions = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=80)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def _columns(rows: list) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(rows, dtype=float)
    return array[:, 0], array[:, 1]


@quick
@given(st.one_of(pairs, fractions))
def test_swapping_the_models_mirrors_the_interval(rows: list) -> None:
    base, tuned = _columns(rows)
    there, back = paired_interval(base, tuned), paired_interval(tuned, base)
    assert there.low == pytest.approx(-back.high, abs=1e-9)
    assert there.high == pytest.approx(-back.low, abs=1e-9)


@quick
@given(st.one_of(pairs, fractions))
def test_the_interval_has_width_and_contains_the_estimate(rows: list) -> None:
    base, tuned = _columns(rows)
    found = paired_interval(base, tuned)
    assert -1 <= found.low <= found.estimate + 1e-9
    assert found.estimate - 1e-9 <= found.high <= 1
    assert found.high - found.low > 1e-3
    own = mean_interval(base)
    assert 0 <= own.low <= own.estimate + 1e-9
    assert own.estimate - 1e-9 <= own.high <= 1


@quick
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 60))
def test_more_items_at_equal_rates_never_widen(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same
    one = paired_interval(*scores(lost, gained, n))
    two = paired_interval(*scores(2 * lost, 2 * gained, 2 * n))
    assert two.high - two.low <= one.high - one.low + 1e-12


@quick
@given(pairs, st.integers(1, 30))
def test_a_larger_family_never_narrows(rows: list, family: int) -> None:
    base, tuned = _columns(rows)
    one, many = paired_interval(base, tuned), paired_interval(base, tuned, family=family)
    assert many.low <= one.low + 1e-12
    assert many.high >= one.high - 1e-12


@quick
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60))
def test_one_more_loss_never_raises_the_interval(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same
    one, more = paired_interval(*scores(lost, gained, n)), paired_interval(*scores(lost + 1, gained, n))
    assert more.low < one.low
    assert more.high < one.high


@quick
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_binary_items_does_not_matter(rows: list, random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert decide(*_columns(rows), chance=0.25) == decide(*_columns(shuffled), chance=0.25)


@quick
@given(st.one_of(pairs, fractions), st.floats(0.0, 0.9), st.integers(1, 12), st.booleans())
def test_every_verdict_agrees_with_its_interval(rows: list, chance: float, family: int, generated: bool) -> None:
    base, tuned = _columns(rows)
    found = decide(base, tuned, chance=chance, family=family, generated=generated)
    assert (found.verdict == "undecided") == (found.decide_n is not None)
    assert (found.verdict == "not measurable") <= (not found.admitted)
    assert found.admitted <= found.can_lose
    assert found.can_lose == (mean_interval(base).low > chance)
    if found.verdict == "gained":
        assert found.interval.low > 0
        assert mean_interval(tuned, found.interval.level).low > chance
    if found.verdict == "lost":
        assert found.interval.high < 0
    if found.can_lose and found.interval.high < 0:
        assert found.verdict in ("lost", "kept")
        assert found.verdict == "lost" or found.admitted
    if found.decide_n is not None:
        assert found.decide_n > len(rows)


def test_two_thousand_fractional_items_take_under_50_ms() -> None:
    rng = np.random.default_rng(0)
    base, tuned = rng.random(2000), rng.random(2000)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        paired_interval(base, tuned)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05
