"""Plateaus: against brute force, by invariance, how often a break is claimed wrongly, and how often it is covered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from catchment.errors import InputError
from catchment.statistics import Plateau, plateau
from tests.unit.statistics.simulate import above

Curve = NDArray[np.float64]
TOKENS = {m: np.geomspace(1e9, 1e12, m) for m in (5, 6, 8, 12, 20)}


def _stick(tokens: Curve, share: float) -> tuple[Curve, float]:
    """A curve that rises by 1 and is flat from ``share`` of the log range on; the break in tokens."""
    x = np.log(tokens)
    at = x[0] + share * (x[-1] - x[0])
    return (np.minimum(x, at) - x[0]) / (at - x[0]), float(math.exp(at))


def _covers(result: Plateau, truth: float) -> bool:
    return result.tokens is not None and result.tokens.low * 0.9999 <= truth <= result.tokens.high * 1.0001


def test_a_curve_without_noise_gives_its_own_break() -> None:
    curve, at = _stick(TOKENS[12], 0.6)
    result = plateau(TOKENS[12], 0.2 + 0.5 * curve)
    assert result.shape == "plateau"
    assert result.tokens is not None
    assert result.tokens.estimate == pytest.approx(at, rel=0.01)
    assert result.height == pytest.approx(0.7, abs=1e-3)
    assert result.before == pytest.approx(0.5 / math.log2(at / 1e9), rel=0.01)


def test_break_and_interval_are_those_of_brute_force() -> None:
    """For a fine grid of breaks, least squares on (1, min(x, c)); the set of breaks from scipy's F; the slopes."""
    tokens = TOKENS[8]
    x = np.log(tokens)
    y = _stick(tokens, 0.5)[0] + np.random.default_rng(0).normal(0, 0.06, 8)
    breaks = np.linspace(x[1], x[-1], 6000)[:-1]
    fits = [np.linalg.lstsq(np.stack([np.ones(8), np.minimum(x, c)], axis=1), y, rcond=None) for c in breaks]
    squares = np.array([float(fit[1][0]) for fit in fits])
    likely = breaks[squares <= squares.min() * (1 + stats.f.isf(0.1, 1, 5) / 5)]
    result = plateau(tokens, y, level=0.9)
    assert result.tokens is not None
    ends = np.log([result.tokens.low, result.tokens.estimate, result.tokens.high])
    np.testing.assert_allclose(ends, [likely[0], breaks[squares.argmin()], likely[-1]], atol=0.02)

    def lines(x: Curve, a: float, b: float, d: float) -> Curve:
        return np.asarray(a + b * np.minimum(x, ends[1]) + d * np.maximum(x - ends[1], 0))

    values, covariance = optimize.curve_fit(lines, x, y, p0=[0, 0.1, 0.1])
    assert result.before == pytest.approx(values[1] * math.log(2))
    assert result.after is not None
    half = stats.t.isf(0.05, 4) * math.sqrt(covariance[2, 2] * 5 / 4) * math.log(2)  # the break takes a degree
    after = values[2] * math.log(2)
    assert (result.after.low, result.after.high) == pytest.approx((after - half, after + half), rel=1e-4)


def test_units_and_direction_do_not_matter() -> None:
    y = _stick(TOKENS[12], 0.5)[0] + np.random.default_rng(1).normal(0, 0.1, 12)
    result = plateau(TOKENS[12], y)
    for again in (plateau(TOKENS[12], 3 - 2 * y), plateau(1000 * TOKENS[12], y)):
        assert (again.shape, again.p_line, again.p_constant) == (result.shape, result.p_line, result.p_constant)
        assert again.tokens is not None
        assert result.tokens is not None
        ratio = again.tokens.estimate / result.tokens.estimate
        assert (again.tokens.low / result.tokens.low, again.tokens.high / result.tokens.high) == pytest.approx(
            (ratio, ratio)
        )


def test_each_shape_is_named_with_its_reason() -> None:
    noise = np.random.default_rng(2).normal(0, 0.01, 12)
    x = np.arange(12.0)
    shapes = {
        "plateau": np.minimum(x, 6),
        "bend": np.minimum(x, 6) + 0.2 * np.maximum(x - 6, 0),
        "straight line": x,
        "constant": 0 * x,
    }
    for shape, curve in shapes.items():
        result = plateau(TOKENS[12], curve + noise)
        assert result.shape == shape, result
        assert (result.tokens is None) == (shape in ("straight line", "constant"))
        assert (result.height is None) == (shape != "plateau")
    assert "straight line (p = " in plateau(TOKENS[12], x + noise).reason
    assert plateau(TOKENS[12], 0 * x).shape == "constant"
    assert plateau(TOKENS[12], x).shape == "straight line"
    few = plateau([1e9, 2e9, 4e9, 8e9], [0.1, 0.2, 0.3, 0.3])
    assert (few.shape, few.tokens, few.p_line) == ("too few checkpoints", None, None)
    assert few.reason.startswith("4 checkpoints")


def test_one_checkpoint_after_the_break_makes_no_plateau() -> None:
    result = plateau(TOKENS[8], np.array([0, 1, 2, 3, 4, 5, 6, 6.2]) + np.random.default_rng(3).normal(0, 0.01, 8))
    assert result.shape == "bend"
    assert "only the last checkpoint" in result.reason
    assert result.tokens is not None
    assert result.tokens.estimate > TOKENS[8][-2]


@pytest.mark.parametrize("checkpoints", [5, 8, 20])
@pytest.mark.parametrize("slope", [0.0, 0.3, 3.0])
def test_straight_lines_and_constants_are_rarely_called_a_plateau(checkpoints: int, slope: float) -> None:
    rng = np.random.default_rng(checkpoints)
    line = slope * np.linspace(0, 1, checkpoints)
    curves = line + rng.normal(0, 0.1, (400, checkpoints))
    broken = sum(plateau(TOKENS[checkpoints], curve, level=0.9).tokens is not None for curve in curves)
    assert broken / 400 < above(0.1, 400)
    assert slope < 3 or broken / 400 > 0.04  # the test of "straight line" is exact, not timid


@pytest.mark.parametrize("checkpoints", [6, 12])
def test_the_break_is_covered(checkpoints: int) -> None:
    rng = np.random.default_rng(checkpoints)
    curve, at = _stick(TOKENS[checkpoints], 0.5)
    results = [plateau(TOKENS[checkpoints], curve + rng.normal(0, 0.03, checkpoints)) for _ in range(300)]
    assert Counter(result.shape for result in results)["plateau"] > 280
    assert np.mean([not _covers(result, at) for result in results]) < above(0.06, 300)


def _rows_missed(checkpoints: int, rows: int, shared: float, spread: float, repeats: int) -> float:
    """Rows with noise of their own and of the checkpoint, breaks that vary with ``spread`` in log tokens. The share of
    the intervals that miss, where a break is shown."""
    rng = np.random.default_rng(rows)
    x = np.log(TOKENS[checkpoints])
    at = x[0] + 0.55 * (x[-1] - x[0])
    missed = shown = 0
    for _ in range(repeats):
        own = at + spread * rng.standard_normal((rows, 1))
        curves = np.minimum(x - x[0], own - x[0]) / (at - x[0]) + shared * rng.standard_normal(checkpoints)
        curves += rng.normal(0, 0.03 * math.sqrt(rows), (rows, checkpoints))
        result = plateau(TOKENS[checkpoints], curves)
        shown += result.tokens is not None
        missed += result.tokens is not None and not _covers(result, math.exp(at))
    assert shown > 0.8 * repeats
    return missed / shown


@pytest.mark.parametrize(("rows", "shared", "spread"), [(3, 0.0, 0.0), (5, 0.0, 0.5), (40, 0.03, 0.0)])
def test_the_break_is_covered_over_rows(rows: int, shared: float, spread: float) -> None:
    assert _rows_missed(8, rows, shared, spread, 50) < above(0.09, 50)


@pytest.mark.soak
@pytest.mark.parametrize("checkpoints", [5, 8, 12])
def test_the_break_is_covered_over_rows_in_bulk(checkpoints: int) -> None:
    for rows, shared, spread in ((3, 0.0, 0.0), (5, 0.0, 0.5), (10, 0.0, 0.5), (100, 0.03, 0.0), (100, 0.0, 0.8)):
        assert _rows_missed(checkpoints, rows, shared, spread, 500) < above(0.1, 500), (rows, shared, spread)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plateau([1, 2, 2, 3, 4], [0] * 5), "expected rising numbers above 0"),
        (lambda: plateau([0, 1, 2, 3, 4], [0] * 5), "leave step 0 out"),
        (lambda: plateau([1, 2, 3, 4, 5], [0] * 4), "one score per checkpoint"),
        (lambda: plateau([1, 2, 3, 4, 5], [0, 0, math.nan, 0, 0]), r"scores\[2\] is nan"),
        (lambda: plateau([1, 2, 3, 4, 5], [0] * 5, family=0), "family is 0"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Plateau], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
