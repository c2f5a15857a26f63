"""The ruler against a plain RMS, and against tensors that must not move it."""

from __future__ import annotations

import math
import random

import pytest

from catchment.statistics import Tally, is_matrix, ruler
from catchment.statistics.rulers import OUTLIER


def tallies(*sizes: tuple[float, int], matrix: bool = True) -> list[Tally]:
    """One tensor per (own RMS, entries)."""
    kind = "m" if matrix else "v"
    return [Tally(f"{kind}{k}", matrix, n, n * rms**2) for k, (rms, n) in enumerate(sizes)]


def test_without_outliers_it_is_the_plain_rms_over_all_entries() -> None:
    sizes = [(0.02, 50), (0.11, 7), (0.05, 400), (0.04, 12)]
    measure = ruler([*tallies(*sizes), *tallies((1.4, 9), (30.0, 3), matrix=False)])
    assert measure is not None
    entries = [rms for rms, n in sizes for _ in range(n)]
    assert measure.rms == pytest.approx(math.sqrt(sum(x * x for x in entries) / len(entries)))
    assert (measure.of, measure.left_out) == ("matrices", ())
    assert measure.share == pytest.approx(469 / 481)


@pytest.mark.parametrize("factor", [11, 300, 1e6])
@pytest.mark.parametrize("entries", [1, 1000, 10**6])
def test_no_single_matrix_raises_it(factor: float, entries: int) -> None:
    """Whatever share of the entries it holds."""
    usual = tallies(*[(0.03 + 0.01 * k, 100) for k in range(7)])
    before = ruler(usual)
    after = ruler([*usual, Tally("embedding", True, entries, entries * (0.06 * factor) ** 2)])
    assert before is not None
    assert after is not None
    assert after.rms == before.rms
    assert after.left_out == ("embedding",)
    assert after.share == pytest.approx(700 / (700 + entries))


def test_at_most_the_factor_stays() -> None:
    usual = tallies(*[(1.0, 10)] * 6)
    inside, outside = (ruler([*usual, Tally("x", True, 10, 10 * (OUTLIER * f) ** 2)]) for f in (0.999, 1.001))
    assert inside is not None
    assert outside is not None
    assert (inside.left_out, outside.left_out) == ((), ("x",))
    assert outside.rms == 1.0


def test_small_matrices_lower_it_by_their_share_at_most_and_without_a_jump() -> None:
    usual = tallies((0.2, 60), (0.2, 40))
    zero, tiny = (ruler([*usual, *tallies((size, 50), (size, 50))]) for size in (0.0, 1e-12))
    assert zero is not None
    assert tiny is not None
    assert zero.rms == pytest.approx(0.2 * math.sqrt(0.5))
    assert tiny.rms == pytest.approx(zero.rms)
    assert zero.left_out == tiny.left_out == ()


def test_of_two_matrices_none_is_the_outlier() -> None:
    measure = ruler(tallies((1.0, 10), (300.0, 10)))
    assert measure is not None
    assert measure.left_out == ()
    assert measure.rms == pytest.approx(math.sqrt((1 + 300**2) / 2))


def test_without_a_matrix_it_is_over_the_vectors_and_says_so() -> None:
    measure = ruler(tallies((1.0, 8), (1.2, 8), (0.9, 8), (500.0, 8), matrix=False))
    assert measure is not None
    assert measure.of == "vectors"
    assert measure.left_out == ("v3",)
    assert measure.rms == pytest.approx(math.sqrt((1 + 1.44 + 0.81) / 3))


def test_only_zeros_and_nothing_at_all() -> None:
    measure = ruler(tallies((0.0, 8), (0.0, 3)))
    assert measure is not None
    assert (measure.rms, measure.step, measure.left_out) == (0.0, 0.0, ())
    assert ruler([]) is None
    assert ruler([Tally("empty", True, 0, 0.0)]) is None


def test_the_order_of_tensors_does_not_matter() -> None:
    rows = tallies(*[(0.02 * 1.3**k, 10 + k) for k in range(9)], (50.0, 5))
    first = ruler(rows)
    random.Random(0).shuffle(rows)
    second = ruler(rows)
    assert first is not None
    assert second is not None
    assert first.rms == pytest.approx(second.rms, rel=1e-15)
    assert first.left_out == second.left_out


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 4), True), ((8, 3, 4), True), ((8, 3, 5, 5), True), ((7,), False), ((), False), ((1, 1, 7), False),
     ((7, 1), False), ((1, 5, 7), True)],
)  # fmt: skip
def test_what_is_a_matrix(shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(shape) == expected
