"""The search over nodes: what it visits, in which order, how many at most, and what its bracket says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pytest

from catchment.errors import InputError
from catchment.records import Outcome
from catchment.statistics import bracket, ladder, most_nodes, next_node, node_error

RUNGS = ladder(0.01, 1.28, 8)  # doubling


def _search(
    outcome: Callable[[float], Outcome], rungs: tuple[float, ...] = RUNGS, depth: int = 3
) -> dict[float, Outcome]:
    outcomes: dict[float, Outcome] = {}
    while (scale := next_node(outcomes, rungs, depth)) is not None:
        assert scale not in outcomes
        assert rungs[0] <= scale <= rungs[-1]
        outcomes[scale] = outcome(scale)
    return outcomes


def _crossing_at(true: float, blind: float = 0.0) -> Callable[[float], Outcome]:
    """A monotone drop; undecided when the scale is within a factor of exp(blind) of the crossing."""

    def outcome(scale: float) -> Outcome:
        if abs(math.log(scale / true)) <= blind:
            return "undecided"
        return "inside" if scale <= true else "outside"

    return outcome


def test_the_ladder_has_equal_ratios_and_its_ends() -> None:
    rungs = ladder(3e-4, 0.02, 11)
    assert len(rungs) == 11
    assert (rungs[0], rungs[-1]) == (3e-4, 0.02)
    ratios = [b / a for a, b in pairwise(rungs)]
    assert ratios == pytest.approx([(0.02 / 3e-4) ** 0.1] * 10)


def test_the_order_of_visits_by_hand() -> None:
    """Crossing at 0.1, between the rungs .08 and .16: rungs 4, 6, 5, then geometric middles .1131, .0951, .1037."""
    visited = list(_search(_crossing_at(0.1)))
    assert visited == pytest.approx([0.08, 0.32, 0.16, 0.08 * 2**0.5, 0.08 * 2**0.25, 0.08 * 2**0.375])
    low, high, earlier = bracket(_search(_crossing_at(0.1)), RUNGS)
    assert (low, high) == (pytest.approx(0.08 * 2**0.25), pytest.approx(0.08 * 2**0.375))
    assert earlier == "not looked"


def test_an_undecided_node_is_searched_around_by_hand() -> None:
    """Undecided at .08: first the rungs below it (.02, .04), then those above (.32, .16), then the wider gap."""
    seen: dict[float, Outcome] = {RUNGS[3]: "undecided"}
    for scale, outcome in ((0.02, "inside"), (0.04, "inside"), (0.32, "outside"), (0.16, "outside")):
        found = next_node(seen, RUNGS, 4)
        assert found == pytest.approx(scale)
        assert found is not None
        seen[found] = outcome  # type: ignore[assignment]
    assert bracket(seen, RUNGS)[:2] == (pytest.approx(0.04), pytest.approx(0.16))
    seen[next_node(seen, RUNGS, 4) or 0] = "inside"  # the lower of two equal gaps
    assert max(s for s, outcome in seen.items() if outcome == "inside") == pytest.approx(0.04 * 2**0.5)
    assert next_node(seen, RUNGS, 4) == pytest.approx(0.08 * 2**0.5)  # now the upper one is wider


@pytest.mark.parametrize("rungs", [8, 9, 15, 16, 31])
@pytest.mark.parametrize("depth", [0, 1, 3, 6])
def test_a_monotone_drop_is_enclosed_as_finely_as_promised(rungs: int, depth: int) -> None:
    scales = ladder(1e-3, 1.0, rungs)
    step = math.log(scales[1] / scales[0])
    for true in np.geomspace(1.01e-3, 0.99, 40):
        outcomes = _search(_crossing_at(float(true)), scales, depth)
        low, high, earlier = bracket(outcomes, scales)
        assert high is not None
        assert low <= true < high
        assert math.log(high / low) <= step / 2**depth * (1 + 1e-6)
        assert len(outcomes) <= rungs.bit_length() + depth <= most_nodes(rungs, depth)
        assert earlier != "yes"


def test_ends_of_the_ladder() -> None:
    assert bracket(_search(lambda s: "inside"), RUNGS) == (1.28, None, "not looked")
    everything = _search(lambda s: "outside")
    assert bracket(everything, RUNGS) == (0.0, 0.01, "no")
    assert len(everything) == 3  # .08, .02, .01: nothing is bisected below the ladder
    blind = _search(lambda s: "undecided")
    assert bracket(blind, RUNGS) == (0.0, None, "no")


def _unseen(outcomes: dict[float, Outcome], rungs: tuple[float, ...]) -> list[float]:
    """Rungs that could still narrow the bracket: not visited, and not between two undecided nodes."""
    low, high, _ = bracket(outcomes, rungs)
    blind = [s for s, o in outcomes.items() if o == "undecided" and low < s < (high or math.inf)]
    left = [s for s in rungs if low < s < (high or math.inf) and s not in outcomes]
    return [s for s in left if not blind or not min(blind) < s < max(blind)]


@pytest.mark.parametrize("seed", range(3))
def test_any_outcomes_at_all_keep_the_promises(seed: int) -> None:
    """Outcomes at random, not from any curve: ends at most_nodes, never twice the same, no rung left."""
    rng = np.random.default_rng(seed)
    most = 0
    for _ in range(400):
        rungs, depth = int(rng.integers(8, 40)), int(rng.integers(0, 6))
        scales = ladder(1e-3, 1.0, rungs)
        weights = rng.dirichlet([1, 1, 1])
        outcomes = _search(lambda s, w=weights: str(rng.choice(["inside", "outside", "undecided"], p=w)), scales, depth)
        assert len(outcomes) <= most_nodes(rungs, depth)
        most = max(most, len(outcomes) - (rungs.bit_length() + depth))
        low, high, _ = bracket(outcomes, scales)
        assert low == 0 or outcomes[low] == "inside"
        assert high is None or outcomes[high] == "outside"
        top = high or math.inf
        assert not [s for s, o in outcomes.items() if o == "inside" and low < s < top]
        assert not [s for s, o in outcomes.items() if o == "outside" and s < top]
        if len(outcomes) < most_nodes(rungs, depth):
            assert not _unseen(outcomes, scales)
    assert most > 0  # the larger budget of undecided nodes was put to the test


@pytest.mark.parametrize("blind", [0.05, 0.3, 1.0, 2.5])
def test_undecided_nodes_widen_the_bracket_no_more_than_they_must(blind: float) -> None:
    """Bracket ends are within one rung of the undecided zone, and still enclose the crossing."""
    step = math.log(2) + 1e-9
    for true in np.geomspace(0.02, 0.6, 25):
        for rungs in (8, 15, 16, 33):
            scales = ladder(0.01, 1.28, rungs)
            assert not _unseen(_search(_crossing_at(float(true), blind), scales, 2), scales)
        low, high, _ = bracket(_search(_crossing_at(float(true), blind)), RUNGS)
        assert low <= true
        assert high is None or true < high
        if true * math.exp(-blind) > RUNGS[0]:
            assert math.log(true / low) <= blind + step
        if true * math.exp(blind) < RUNGS[-1]:
            assert high is not None
            assert math.log(high / true) <= blind + step


def test_what_is_said_of_earlier_crossings() -> None:
    def said(outcomes: Mapping[int, Outcome]) -> tuple[float, float | None, str]:
        return bracket({RUNGS[i]: outcome for i, outcome in outcomes.items()}, RUNGS)

    assert said({0: "inside", 1: "inside", 2: "inside", 3: "outside"}) == (RUNGS[2], RUNGS[3], "no")
    assert said({0: "inside", 2: "inside", 3: "outside"})[2] == "not looked"
    assert said({0: "inside", 1: "undecided", 2: "inside", 3: "outside"})[2] == "not looked"
    assert said({0: "inside", 1: "outside", 4: "inside", 5: "outside"}) == (RUNGS[0], RUNGS[1], "yes")
    assert said({0: "undecided", 3: "outside"})[:2] == (0.0, RUNGS[3])


def test_the_error_of_a_node_adds_up_to_gamma() -> None:
    for rungs, depth, family in ((8, 4, 1), (12, 0, 5), (40, 6, 3)):
        each = node_error(0.05, rungs, depth, family)
        assert each * most_nodes(rungs, depth) * family == pytest.approx(0.05)
    assert node_error(0.05, 8, 4) == pytest.approx(0.05 / 8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ladder(0.01, 1, 7), "7 rungs; expected at least 8"),
        (lambda: ladder(1, 0.01, 8), "0 < low < high"),
        (lambda: next_node({}, RUNGS[:4], 1), "4 rungs"),
        (lambda: next_node({}, RUNGS, -1), "depth is -1"),
        (lambda: bracket({0.5: "inside"}, RUNGS[::-1]), "rising"),
        (lambda: node_error(0.05, 8, 3, family=0), "family is 0"),
        (lambda: node_error(5, 8, 3), "gamma is 5"),
    ],
)
def test_bad_settings_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
