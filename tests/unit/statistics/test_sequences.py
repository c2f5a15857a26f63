"""Confidence sequences: their error at any stopping time, their power, and the capital by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from catchment.errors import InputError
from catchment.statistics import decide_mean, mean_sequence, units_needed
from tests.unit.statistics.simulate import above

TAU, ERROR = 0.05, 0.1
REPEATS, UNITS = 300, 500
Draw = Callable[[np.random.Generator, int], np.ndarray]


def _lattice(rng: np.random.Generator, n: int) -> np.ndarray:
    """Mean drop over 8 items of an antithetic pair, the pair sharing its own rate: sixteenths, of mean tau."""
    rate = rng.beta(0.5, 9.5, n)
    return rng.binomial(16, rate) / 16


# all of mean TAU exactly; rare and lopsided ones are what a bet near the largest fears
SHAPES: dict[str, Draw] = {
    "rare loss of all": lambda rng, n: (rng.random(n) < TAU).astype(float),
    "rare gain": lambda rng, n: np.where(rng.random(n) < 0.05, -1.0, (TAU + 0.05) / 0.95),
    "small noise": lambda rng, n: TAU + rng.uniform(-0.03, 0.03, n),
    "wide noise": lambda rng, n: TAU + rng.uniform(-0.9, 0.9, n),
    "coin": lambda rng, n: np.where(rng.random(n) < (1 + TAU) / 2, 1.0, -1.0),
    "lattice": _lattice,
}


def _verdicts(draw: Draw, units: int = UNITS, tau: float = TAU, error: float = ERROR) -> list[str]:
    rng = np.random.default_rng(7)
    return [decide_mean(draw(rng, units), tau, error) for _ in range(REPEATS)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mean_of_exactly_tau_is_rarely_decided(shape: str) -> None:
    """What was decided at any of 500 looks stays decided, so this counts every wrong stop. Each side at 10%."""
    found = _verdicts(SHAPES[shape])
    for side in ("inside", "outside"):
        assert found.count(side) / REPEATS <= above(ERROR, REPEATS), side


def test_a_rule_for_one_n_fails_when_asked_at_every_n() -> None:
    """The harness can tell: Student's bound, valid at one n, looked at after each draw."""
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(REPEATS):
        x = SHAPES["wide noise"](rng, UNITS)
        n = np.arange(1, UNITS + 1)
        mean = np.cumsum(x) / n
        spread = np.sqrt(np.maximum(np.cumsum(x**2) / n - mean**2, 1e-9) / n)
        wrong += bool((mean - 1.2816 * spread > TAU)[20:].any())
    assert wrong / REPEATS > above(ERROR, REPEATS) + 0.1


def _by_hand(values: list[float], tau: float, error: float, low: float, high: float) -> list[str]:
    """The verdict after each draw, in plain numbers on the scale of the draws: two capitals, five bettors each."""
    verdicts, decided = [], "undecided"
    capital = {side: [0.5, 0.08, 0.06, 0.06, 0.3] for side in ("outside", "inside")}
    width = high - low
    for i, x in enumerate(values, start=1):
        seen = values[: i - 1]
        pseudo = (low + high) / 2  # one pseudo-draw of variance width^2/4
        squares, total = width**2 / 4, pseudo
        for count, y in enumerate(seen, start=2):
            total += y
            squares += (y - total / count) ** 2
        variance = squares / i
        plug_in = math.sqrt(2 * math.log(1 / error) / (variance * i * math.log(1 + i)))
        for side, gain, room in (("outside", x - tau, tau - low), ("inside", tau - x, high - tau)):
            bets = [0.99 / room, 0.6 / room, 0.3 / room, 0.15 / room, min(plug_in, 0.95 / room)]
            capital[side] = [c * (1 + bet * gain) for c, bet in zip(capital[side], bets, strict=True)]
            if decided == "undecided" and sum(capital[side]) >= 1 / error:
                decided = side
        verdicts.append(decided)
    return verdicts


@pytest.mark.parametrize(
    ("mean", "spread", "low", "high", "seed"), [(0.0, 0.05, -1, 1, 0), (0.2, 0.3, -1, 1, 1), (0.01, 0.2, -0.5, 0.7, 2)]
)
def test_the_verdict_after_each_draw_is_that_of_the_capital_by_hand(
    mean: float, spread: float, low: float, high: float, seed: int
) -> None:
    values = np.clip(np.random.default_rng(seed).normal(mean, spread, 400), low, high).tolist()
    expected = _by_hand(values, TAU, 0.02, low, high)
    assert {"undecided", expected[-1]} == set(expected)
    assert expected[-1] != "undecided"
    change = expected.index(expected[-1])
    for n in [*range(1, 400, 23), change, change + 1]:
        assert decide_mean(values[:n], TAU, 0.02, low, high) == expected[n - 1]


@pytest.mark.parametrize(("tau", "error", "high"), [(0.05, 0.05 / 8, 1.0), (0.02, 0.01, 1.0), (0.05, 0.01, 0.6)])
def test_quiet_units_are_decided_at_nearly_the_smallest_possible_number(tau: float, error: float, high: float) -> None:
    fewest = math.ceil(math.log(error) / math.log1p(-tau / high))
    needed = units_needed(tau, error, high)
    assert fewest <= needed <= 1.1 * fewest + 1
    assert decide_mean(np.zeros(needed), tau, error, high=high) == "inside"
    assert decide_mean(np.zeros(needed - 1), tau, error, high=high) == "undecided"


def test_units_needed_at_the_default_settings() -> None:
    """ln(160)/-ln(0.95) = 98.9, so 99 is the smallest number of any valid rule."""
    assert 99 <= units_needed(0.05, 0.05 / 8) <= 107


def _empirical_bernstein(x: np.ndarray, tau: float, error: float) -> int:
    """Draws until the predictable plug-in empirical-Bernstein sequence (Waudby-Smith & Ramdas 2024, theorem 2)
    refuses a mean of at most tau; written down independently, on [0, 1], with a cap of 1/2 on the bets."""
    y, m = (x + 1) / 2, (tau + 1) / 2
    i = np.arange(1, y.size + 1)
    mean = (0.5 + np.cumsum(y)) / (i + 1)
    before = np.concatenate([[0.5], mean[:-1]])
    spread = np.concatenate([[0.25], ((0.25 + np.cumsum((y - mean) ** 2)) / (i + 1))[:-1]])
    bet = np.minimum(np.sqrt(2 * math.log(1 / error) / (spread * i * np.log1p(i))), 0.5)
    log = np.cumsum(bet * (y - m) - 4 * (y - before) ** 2 * (-np.log1p(-bet) - bet) / 4)
    return int((log >= math.log(1 / error)).argmax()) + 1 if log.max() >= math.log(1 / error) else y.size


@pytest.mark.parametrize(("mean", "spread"), [(0.1, 0.15), (0.1, 0.4), (0.0, 0.15)])
def test_noisy_units_take_no_more_than_empirical_bernstein(mean: float, spread: float) -> None:
    rng = np.random.default_rng(3)
    ours, theirs = [], []
    for _ in range(60):
        x = np.clip(rng.normal(mean, spread, 4000), -1, 1)
        found = _first(x)
        ours.append(found)
        theirs.append(_empirical_bernstein(x if mean > TAU else -x, TAU if mean > TAU else -TAU, 0.00625))
    assert max(ours) < 4000
    assert np.median(ours) <= 0.9 * np.median(theirs)


def _first(x: np.ndarray, error: float = 0.00625) -> int:
    """Number of draws at which the verdict falls, by bisection: it never changes afterwards."""
    low, high = 0, x.size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decide_mean(x[:middle], TAU, error) == "undecided" else (low, middle)
    return high


def test_a_known_smaller_range_decides_sooner() -> None:
    assert units_needed(0.05, 0.01, high=0.5) < 0.6 * units_needed(0.05, 0.01)
    losses = np.full(12, 0.2)
    assert decide_mean(losses, TAU, 0.01) == "undecided"
    assert decide_mean(losses, TAU, 0.01, low=0.0) == "outside"  # every item was right before: no drop below 0


@pytest.mark.parametrize("shape", ["rare loss of all", "wide noise", "lattice"])
def test_the_sequence_covers_at_all_times(shape: str) -> None:
    """A running intersection contains the truth only if every interval so far did."""
    rng = np.random.default_rng(11)
    repeats = 150
    hits = 0
    for _ in range(repeats):
        found = mean_sequence(SHAPES[shape](rng, 300), 0.1)
        hits += found.low <= TAU <= found.high
    assert hits / repeats >= 1 - above(0.1, repeats)


def test_the_sequence_agrees_with_the_decision_and_never_widens() -> None:
    x = np.clip(np.random.default_rng(5).normal(0.02, 0.1, 400), -1, 1)
    before = None
    for n in (1, 10, 50, 150, 400):
        found = mean_sequence(x[:n], 0.04)
        assert found.low < found.high
        if before is not None:
            assert before.low <= found.low + 1e-9
            assert found.high <= before.high + 1e-9
        for tau in np.linspace(-0.2, 0.25, 46):
            outcome = decide_mean(x[:n], float(tau), 0.02)
            assert (outcome == "outside") == (tau < found.low)
            assert (outcome == "inside") == (tau > found.high)
        before = found
    assert before is not None
    assert before.estimate == pytest.approx(x.mean())
    assert before.level == pytest.approx(0.96)
    assert before.high - before.low < 0.08


def test_no_draw_decides_nothing() -> None:
    assert decide_mean([], TAU, 0.01) == "undecided"
    assert decide_mean([0.05], TAU, 0.01) == "undecided"
    with pytest.raises(InputError, match="at least one item"):
        mean_sequence([], 0.05)


def test_an_empty_intersection_has_no_negative_width() -> None:
    """A mean that changes its mind: 400 draws of -0.9, then 400 of 0.9 refuse everything."""
    found = mean_sequence([-0.9] * 400 + [0.9] * 4000, 0.05)
    assert found.low == found.high


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: decide_mean([0.1, 1.2], 0.05, 0.01), r"values\[1\] is 1.2"),
        (lambda: decide_mean([0.1], 0.5, 0.01, high=0.4), "tau is 0.5"),
        (lambda: decide_mean([0.1], 0.05, 0.0), "error is 0"),
        (lambda: decide_mean([float("nan")], 0.05, 0.1), "is nan"),
        (lambda: mean_sequence([0.1], 0.05, low=1, high=-1), "low < high"),
        (lambda: units_needed(0.0, 0.05), "tau is 0"),
    ],
)
def test_bad_settings_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
