"""The search that goes on below its ladder: where it looks, what it says, and that its error is accounted for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from catchment.records import Outcome, Ruler
from catchment.statistics import (
    bracket,
    crossing,
    decide_mean,
    ladder,
    most_nodes,
    next_down,
    next_near,
    node_error,
    rungs_below,
)
from tests.unit.statistics.simulate import above

RUNGS = ladder(1 / 256, 1 / 2, 15)  # a scan's, for a ruler of 1
BELOW = {dtype: rungs_below(RUNGS, Ruler(1.0, "matrices", 1.0, dtype=dtype).step) for dtype in ("bfloat16", "float32")}
DEPTH = 2


def search(
    outcome: Callable[[float], Outcome], below: Sequence[float], guess: float | None = None, depth: int = DEPTH
) -> dict[float, Outcome]:
    outcomes: dict[float, Outcome] = {}
    while (scale := next_down(outcomes, RUNGS, below, depth, guess)) is not None:
        assert scale not in outcomes
        outcomes[scale] = outcome(scale)
    return outcomes


def at(edge: float, blind: float = 0.0) -> Callable[[float], Outcome]:
    def outcome(scale: float) -> Outcome:
        if abs(math.log(scale / edge)) < blind:
            return "undecided"
        return "inside" if scale <= edge else "outside"

    return outcome


def test_rungs_go_down_at_the_ratio_of_the_ladder_to_the_end() -> None:
    assert [round(math.log2(s), 6) for s in BELOW["bfloat16"]] == [-9, -8.5]
    assert [round(math.log2(s), 6) for s in BELOW["float32"]] == [k / 2 for k in range(-50, -16)]
    assert rungs_below(RUNGS, RUNGS[0]) == ()
    assert rungs_below(RUNGS, RUNGS[0] / 1.3) == ()
    small = ladder(1e-307, 1e-306, 8)
    assert all(s > 2e-308 for s in rungs_below(small, 0.0)), "subnormal numbers are no scales"


@pytest.mark.parametrize("guess", [None, 0.003, 0.02, 0.3])
def test_nothing_below_is_looked_at_where_a_rung_is_inside(guess: float | None) -> None:
    for edge in [1.2 * s for s in RUNGS[:-1]] + [7.0]:
        outcomes: dict[float, Outcome] = {}
        while (scale := next_near(outcomes, RUNGS, DEPTH, guess)) is not None:
            outcomes[scale] = at(edge)(scale)
        if any(o == "inside" for o in outcomes.values()):
            assert search(at(edge), BELOW["float32"], guess) == outcomes


@pytest.mark.parametrize("dtype", BELOW)
@pytest.mark.parametrize("off", [None, 1.0, 1.4, 0.7, 10.0, 0.02], ids=lambda f: f"guess x{f}")
def test_an_edge_below_the_ladder_is_bracketed_wherever_it_lies(dtype: str, off: float | None) -> None:
    below = BELOW[dtype]
    for edge in [1.1 * s for s in below]:
        outcomes = search(at(edge), below, None if off is None else off * edge)
        low, high, _ = bracket(outcomes, (*below, *RUNGS))
        assert len(outcomes) <= most_nodes(len(below) + len(RUNGS), DEPTH)
        assert high is not None
        assert 0 < low <= edge < high
        if off != 10.0:
            assert high / low < 2**0.5 + 1e-9, "two adjacent rungs, or nearer"
        if off == 1.0:
            assert high / low < 2**0.2 or dtype == "bfloat16", "a good guess leaves nodes for bisections"


@pytest.mark.parametrize("guess", [None, 1e-9, 0.1])
def test_a_model_that_is_lost_everywhere_ends_at_the_number_format(guess: float | None) -> None:
    for below in BELOW.values():
        outcomes = search(at(1e-30), below, guess)
        assert set(outcomes.values()) == {"outside"}
        assert min(outcomes) == below[0]
        assert bracket(outcomes, (*below, *RUNGS)) == (0.0, below[0], "no")
    assert min(search(at(1e-30), ())) == RUNGS[0]


def test_undecided_rungs_are_no_reason_to_stop() -> None:
    """Around an edge near the first rung nothing is decided: an inside is looked for further down."""
    below = BELOW["float32"]
    outcomes = search(at(RUNGS[0], blind=1.2), below)
    low, high, _ = bracket(outcomes, (*below, *RUNGS))
    assert high is not None
    assert 0 < low < RUNGS[0] < high


def test_no_more_nodes_than_the_error_was_split_over() -> None:
    rng = np.random.default_rng(0)
    kinds: tuple[Outcome, ...] = ("inside", "outside", "undecided")
    for _ in range(300):
        below = BELOW["float32" if rng.random() < 0.5 else "bfloat16"]
        odds, guess = rng.dirichlet([0.6, 1, 0.6]), float(10 ** rng.uniform(-8, 0))
        outcomes = search(lambda s: kinds[rng.choice(3, p=odds)], below, guess if rng.random() < 0.5 else None)  # noqa: B023
        assert 1 <= len(outcomes) <= most_nodes(len(below) + len(RUNGS), DEPTH)


# ------------------------------------------------------------------------- coverage, with draws

TAU, GAMMA, ITEMS, CAP = 0.05, 0.1, 8, 500
Drop = Callable[[float], float]
SHAPES: dict[str, Drop] = {
    "quadratic at 2^-9.3": lambda s: min(0.6, TAU * (s / 2**-9.3) ** 2),
    "quadratic at 2^-17": lambda s: min(0.6, TAU * (s / 2**-17) ** 2),
    "linear at 2^-22": lambda s: min(0.6, TAU * s / 2**-22),
    "exactly tau below the ladder": lambda s: 0.4 if s >= RUNGS[0] else TAU,
    "lost everywhere": lambda s: 0.4,
    "lost, back again below, lost": lambda s: 0.4 if s > 2**-10 else 0.0 if s > 2**-14 else 0.3 if s > 2**-18 else 0.0,
    "at the first rung": lambda s: min(0.6, TAU * (s / RUNGS[0]) ** 2),
}


def _draw(rng: np.random.Generator, drop: Drop, scale: float, count: int) -> np.ndarray:
    return rng.binomial(2 * ITEMS, drop(scale), count) / (2 * ITEMS)


def _pilot(rng: np.random.Generator, drop: Drop, below: Sequence[float]) -> float | None:
    """A guess from 4 units at every second rung and every fourth below: of another stream than what decides."""
    scales = [*below[::4], *RUNGS[1::2]]
    return crossing(scales, [float(_draw(rng, drop, s, 4).mean()) for s in scales], TAU)


@pytest.mark.parametrize("piloted", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_statements_hold_together_at_the_stated_rate(name: str, piloted: bool) -> None:
    """Of 120 whole searches, those with any wrong statement, at a node or about the bracket, are no more than gamma
    allows; and where an edge lies below the ladder, most of them find it."""
    drop, below, repeats = SHAPES[name], BELOW["float32"], 120
    error = node_error(GAMMA, len(below) + len(RUNGS), DEPTH)
    rng, right, bracketed = np.random.default_rng(3), 0, 0
    for _ in range(repeats):
        guess = _pilot(rng, drop, below) if piloted else None
        outcomes = search(lambda s: decide_mean(_draw(rng, drop, s, CAP), TAU, error), below, guess)
        low, high, earlier = bracket(outcomes, (*below, *RUNGS))
        nodes = all((drop(s) <= TAU) == (o == "inside") for s, o in outcomes.items() if o != "undecided")
        ends = (low == 0 or drop(low) <= TAU) and (high is None or drop(high) > TAU)
        flag = not (earlier == "no" and any(drop(s) > TAU for s in (*below, *RUNGS) if s < low))
        right += nodes and ends and flag
        bracketed += low > 0 and high is not None
    assert right / repeats >= 1 - above(GAMMA, repeats)
    if "quadratic" in name or "linear" in name:
        assert bracketed / repeats > 0.9
    if name == "lost everywhere":
        assert bracketed == 0


def test_an_error_per_node_that_leaves_out_the_rungs_below_would_not_be_accounted_for() -> None:
    """The nodes that a search visits when it goes down are more than those of its ladder alone."""
    below = BELOW["float32"]
    most = max(len(search(at(1.1 * s), below)) for s in below)
    assert most > most_nodes(len(RUNGS), DEPTH)
    assert node_error(GAMMA, len(below) + len(RUNGS), DEPTH) <= GAMMA / most
