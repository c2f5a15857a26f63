"""Most-case basins against models whose drop is known in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from catchment.capabilities import Item, Task
from catchment.landscape import (
    Design,
    Field,
    basin,
    estimate,
    fill,
    items_each,
    profile,
    scout,
    search,
    sharpen,
)
from catchment.landscape.basin import place
from catchment.landscape.units import CHUNK, values
from catchment.records import Outcome, to_json
from catchment.runs import Store
from catchment.statistics import ladder, most_nodes
from tests.tiny import TEXT, tiny_llama
from tests.unit.landscape.oracles import NAMES, Oracle, bare_ground, cells, half_spaces, real, real_ground

PHI = NormalDist().cdf
INVERSE = NormalDist().inv_cdf
RUNGS = ladder(0.05, 6.4, 8)
SIZE = 24


def field_of(score: Any, *, count: int = 300, tau: float = 0.1, names: Sequence[str] = ("t",), **design: Any) -> Field:
    settings: dict[str, Any] = {"ladder": RUNGS, "depth": 3, "items_each": 2, "cap": 150, **design}
    size = settings.pop("size", SIZE)
    options = settings.pop("options", {})
    seer = Oracle(size, [bare_ground(name, count, tau=tau) for name in names], score, **options)
    return Field(seer, Design(**settings))


def seen(field: Field) -> list[tuple[str, tuple[str, ...], Tensor]]:
    """What was measured: task, items, move."""
    assert isinstance(field.evaluator, Oracle)
    return field.evaluator.seen


def holds(outcomes: dict[float, Outcome], drop: Any, tau: float) -> bool:
    """Whether every decision is right."""
    return all(
        (drop(scale) <= tau) if outcome == "inside" else (drop(scale) > tau)
        for scale, outcome in outcomes.items()
        if outcome != "undecided"
    )


@pytest.mark.parametrize("seed", range(3))
def test_half_spaces(seed: int) -> None:
    """drop(s) = Phi(-margin / s), so that sigma* = margin / -Phi^-1(tau) (1-basins.md, 8.1)."""
    field = field_of(half_spaces(SIZE, 1.0, seed), seed=seed)
    search(field, ["t"])
    found = basin(field, "t")
    truth = 1.0 / -INVERSE(0.1)
    assert found.high is not None
    assert found.low <= truth <= found.high
    assert found.low > 0
    assert found.high / found.low < 4 * RUNGS[1] / RUNGS[0]
    assert holds(field.decided["t"], lambda s: PHI(-1.0 / s), 0.1)
    assert found.estimate is not None
    assert found.estimate.estimate == pytest.approx(truth, rel=0.1)
    assert to_json(found)


def test_profiles_estimate_the_smoothed_score() -> None:
    field = field_of(half_spaces(SIZE, 1.0), items_each=4, names=("t", "u"))
    scales = RUNGS[2:8:2]
    fill(field, ["t", "u"], scales, 60)
    for task in ("t", "u"):
        found = profile(field, task)
        assert [point.scale for point in found.points] == list(scales)
        for point in found.points:
            truth = PHI(1.0 / point.scale)
            assert point.score.low - 0.01 <= truth <= point.score.high + 0.01
            assert point.score.high - point.score.low < 0.15
            assert (point.directions, point.items) == (60, 480)
            assert point.companion is not None
        assert to_json(found)


def quadratic(h: Tensor) -> Any:
    return lambda move, i: 1.0 if move.numel() == 1 else max(1.0 - 0.5 * float((h * move) @ move), 0.0)


def test_the_most_case_sigma_of_a_quadratic() -> None:
    """sigma* = sqrt(2 tau / tr H) (STATISTICS.md)."""
    h = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01
    truth = math.sqrt(2 * 0.1 / float(h.sum()))
    field = field_of(quadratic(h), size=200)
    search(field, ["t"])
    found = basin(field, "t")
    assert found.high is not None
    assert found.low <= truth <= found.high
    assert found.high / found.low < 2
    assert found.estimate is not None
    assert found.estimate.estimate == pytest.approx(truth, rel=0.15)  # straight lines between the scales
    assert [s.hits for s in found.strict] == [0] * len(found.strict), "some loss on every direction"


def angle(move: Tensor) -> float:
    """Uniform on [0, 1) over random directions in the plane, at every scale."""
    return (math.atan2(float(move[1]), float(move[0])) / (2 * math.pi)) % 1.0


def test_a_drop_of_exactly_tau_is_not_called_outside() -> None:
    """drop(s) = tau at every s: "inside" is right, "outside" is wrong, in at most gamma of the runs."""
    wrong = 0
    for seed in range(20):
        field = field_of(lambda move, i: float(angle(move) >= 0.1), size=2, count=200, cap=48, seed=seed)
        search(field, ["t"])
        wrong += "outside" in field.decided["t"].values()
    assert wrong <= 4  # expected at most 1; more than 4 has a chance of 0.3%, and the runs are seeded


def band(low: float, high: float) -> Any:
    """Lost where the RMS of the move lies in a band, and nowhere else."""
    return lambda move, i: float(move.numel() == 1 or not low <= float(move.square().mean().sqrt()) <= high)


def test_a_curve_that_is_not_monotone() -> None:
    """Lost in a band only, whose ends lie between the scales that can be looked at. Whatever was, the statement
    holds."""
    start, end = 0.2 * 2 ** (1.5 / 8), 0.8 * 2 ** (1.5 / 8)
    field = field_of(band(start, end), size=8000)
    search(field, ["t"])
    found = basin(field, "t")

    def drop(scale: float) -> float:
        return float(start <= scale <= end)

    assert holds(field.decided["t"], drop, 0.1)
    assert drop(found.low) <= 0.1
    if found.high is None:
        assert all(outcome == "inside" for outcome in field.decided["t"].values())
    else:
        assert drop(found.high) == 1
    field.guesses["t"] = start  # as scout would have it
    field.decided.clear()
    search(field, ["t"])
    found = basin(field, "t")
    assert holds(field.decided["t"], drop, 0.1)
    assert found.low < start < (found.high or 0.0) < end
    assert found.earlier != "yes"
    field.measure(["t"], RUNGS[-1], 150)
    assert field.settle("t", RUNGS[-1])
    assert basin(field, "t").earlier == "yes", "inside again above an outside"


@pytest.mark.parametrize("guess", [None, 0.01, 0.5, 50.0])
@pytest.mark.parametrize("margin", [0.0001, 0.3, 1.0, 500.0])
def test_at_most_the_nodes_that_the_error_was_split_over(guess: float | None, margin: float) -> None:
    field = field_of(half_spaces(SIZE, margin), cap=30, count=240)
    field.guesses["t"] = guess
    search(field, ["t"])
    assert 1 <= len(field.decided["t"]) <= most_nodes(len(RUNGS), 3)
    assert field.design.error == pytest.approx(0.05 / most_nodes(len(RUNGS), 3))
    found = basin(field, "t")
    assert to_json(found)
    assert len(found.nodes) == len(field.decided["t"])
    if margin == 0.0001:
        assert found.high is not None
        assert found.low == 0


def test_a_model_that_loses_at_the_first_rung_says_so() -> None:
    field = field_of(lambda move, i: 0.0)
    search(field, ["t"])
    found = basin(field, "t")
    assert (found.low, found.high) == (0.0, RUNGS[0])
    assert "lower" in found.note
    assert found.place == "outside"


def test_a_flat_task_is_open_above() -> None:
    field = field_of(lambda move, i: 1.0)
    search(field, ["t"])
    found = basin(field, "t")
    assert (found.low, found.high, found.estimate) == (RUNGS[-1], None, None)
    assert all(s.hits == s.directions for s in found.strict)


def test_the_pilot_decides_nothing() -> None:
    field = field_of(half_spaces(SIZE, 1.0))
    scout(field, ["t"], 4)
    assert not field.units
    assert not field.decided
    assert {scale for _, scale in field.pilot} == set(RUNGS[1::2])
    assert 0.2 < (field.guesses["t"] or 0) < 3
    found = basin(field, "t")
    assert (found.low, found.high, found.nodes, found.evaluations) == (0.0, None, (), 0)
    assert found.estimate is None, "nothing is decided on either side"
    assert estimate(field, "t") is not None, "the pilot does enter estimates"
    moves = {tuple(move.abs().tolist()) for _, _, move in seen(field)}
    search(field, ["t"])
    for (_, scale), units in field.units.items():
        assert len(field.seen("t", scale)) == len(units) + len(field.pilot.get(("t", scale), []))
    after = seen(field)[2 * sum(map(len, field.pilot.values())) :]
    assert not moves & {tuple(move.abs().tolist()) for _, _, move in after}, "directions of their own"


def test_units_of_a_profile_stay_out_of_the_bracket() -> None:
    field = field_of(half_spaces(SIZE, 1.0))
    fill(field, ["t"], RUNGS, 40)
    found = basin(field, "t")
    assert (found.low, found.high, found.earlier) == (0.0, None, "no")
    assert {node.outcome for node in found.nodes} == {"undecided"}
    search(field, ["t"])
    looked = set(field.decided["t"])
    assert len(looked) <= most_nodes(len(RUNGS), 3)
    found = basin(field, "t")
    assert {node.scale for node in found.nodes if node.outcome != "undecided"} <= looked
    assert {found.low, found.high} <= looked


def test_sharpening_makes_the_estimate_narrower_and_leaves_the_bracket() -> None:
    field = field_of(half_spaces(SIZE, 1.0))
    search(field, ["t"], lambda: len(seen(field)) >= 60)
    fill(field, ["t"], RUNGS, 8)
    rough, first, decided = basin(field, "t"), estimate(field, "t"), dict(field.decided["t"])
    before = {scale: len(units) for (_, scale), units in field.units.items()}
    sharpen(field, ["t"], 100, rungs=3)
    fine, second = basin(field, "t"), estimate(field, "t")
    assert field.decided["t"] == decided
    assert (fine.low, fine.high, fine.earlier) == (rough.low, rough.high, rough.earlier)
    assert first is not None
    assert second is not None
    assert second.high - second.low < 0.7 * (first.high - first.low)
    raised = [s for (_, s), units in field.units.items() if len(units) > before[s]]
    assert all(0.2 < s / first.estimate < 5 for s in raised)
    assert 1 <= len(raised) <= 3
    assert max(map(len, field.units.values())) == 100


def test_a_search_reads_what_a_profile_measured_before_it_measures() -> None:
    field = field_of(lambda move, i: 0.0)
    fill(field, ["t"], RUNGS, 40)
    before = len(seen(field))
    search(field, ["t"])
    assert len(seen(field)) == before
    assert basin(field, "t").high == RUNGS[0]


def test_no_item_twice_at_a_scale_and_no_unit_above_the_cap() -> None:
    """Two tasks of very unequal size share the displaced points."""
    field = field_of(lambda move, i: float(angle(move) >= 0.1), size=2, names=("small", "large"))
    field.evaluator.grounds["small"] = bare_ground("small", 13, tau=0.1)  # 6 units of 2 items
    search(field, ["small", "large"])
    assert len(field.decided["small"]) > 0
    for (task, scale), units in field.units.items():
        used = [row.item for unit in units for row in unit.base]
        assert len(used) == len(set(used)), (task, scale)
        assert len(units) <= field.design.units(field.evaluator.grounds[task])
    assert max(len(u) for (t, _), u in field.units.items() if t == "small") == 6


def test_a_search_after_a_profile_that_used_up_all_units() -> None:
    field = field_of(lambda move, i: float(angle(move) >= 0.1), size=2, count=12)
    fill(field, ["t"], RUNGS, 99)
    assert {len(units) for units in field.units.values()} == {6}
    search(field, ["t"])
    assert set(field.decided["t"].values()) == {"undecided"}


def test_fixed_items_are_used_again() -> None:
    field = field_of(half_spaces(SIZE, 1.0), count=8, fixed=True, cap=80)
    search(field, ["t"])
    assert max(map(len, field.units.values())) > 2
    assert "population" in basin(field, "t").sampling


def test_pairs_are_plus_and_minus_of_one_direction_shared_by_the_tasks() -> None:
    field = field_of(
        lambda move, i: 0.5 if move.numel() == 1 else (1 + math.tanh(float(move[0]))) / 2, names=("t", "u")
    )
    field.measure(["t", "u"], 0.7, 3)
    moves = [move for _, _, move in seen(field)]
    assert [task for task, _, _ in seen(field)] == ["t", "u"] * 6
    for k in range(3):
        plus, also, minus, too = moves[4 * k : 4 * k + 4]
        assert torch.equal(plus, also)
        assert torch.equal(minus, too)
        assert torch.allclose(plus, -minus, atol=1e-6)
        for task in ("t", "u"):
            unit = field.units[task, 0.7][k]
            assert {row.score for row in unit.plus} == {(1 + math.tanh(float(plus[0]))) / 2}
            assert {row.score for row in unit.minus} == {(1 + math.tanh(float(minus[0]))) / 2}
            assert [r.item for r in unit.base] == [r.item for r in unit.plus] == [r.item for r in unit.minus]
    drawn = torch.stack(moves[::4])
    assert abs(float(drawn.square().mean().sqrt()) / 0.7 - 1) < 0.4
    assert not torch.allclose(drawn[0], drawn[1], atol=0.1)
    field.measure(["t", "u"], 0.9, 1)
    other = seen(field)[-4][2]
    assert not torch.allclose(other / 0.9, drawn[0] / 0.7, atol=0.1), "no two scales share a direction"


def test_the_same_address_is_the_same_direction() -> None:
    moves = []
    for names in (("t",), ("u", "t")):
        for seed in (0, 0, 1):
            field = field_of(lambda move, i: 1.0, names=names, seed=seed)
            field.measure(list(names), 0.7, 2)
            moves.append(torch.stack([move for task, _, move in seen(field) if task == "t"]))
    assert torch.equal(moves[0], moves[1])
    assert torch.equal(moves[0], moves[3])
    assert not torch.allclose(moves[0], moves[2], atol=0.1)


def test_the_value_of_a_unit() -> None:
    field = field_of(lambda move, i: 0.25 if move.numel() == 1 or float(move[0]) > 0 else 0.75)
    field.measure(["t"], 1.0, 2)
    ground = field.evaluator.grounds["t"]
    assert values(ground, field.units["t", 1.0]) == [0.5, 0.5]  # 1 - (0.25 + 0.75) / 2


def test_each_task_is_booked_what_it_cost() -> None:
    field = field_of(lambda move, i: 1.0, names=("t", "u"))
    field.evaluator.grounds["u"] = bare_ground("u", 600, tau=0.1, tokens=30)
    field.measure(["t", "u"], 0.7, 5)
    field.measure(["u"], 0.9, 1)
    short, long = basin(field, "t"), basin(field, "u")
    assert (short.evaluations, long.evaluations) == (5 * 2 * 2, 6 * 2 * 2)
    assert (short.tokens, long.tokens) == (5 * 2 * 2 * 3, 6 * 2 * 2 * 30)
    assert field.evaluator.tokens == short.tokens + long.tokens


def test_a_unit_of_fewer_items_than_asked_for_counts_them() -> None:
    field = field_of(lambda move, i: 1.0, count=3, items_each=8)
    field.measure(["t"], 0.7, 1)
    assert basin(field, "t").nodes[0].evaluations == 6


def test_tasks_are_searched_evenly_and_agree_with_being_searched_alone() -> None:
    """Sharing displaced points changes no decision."""
    both = field_of(half_spaces(SIZE, 1.0), names=("t", "u"))
    search(both, ["t", "u"])
    for name in ("t", "u"):
        alone = field_of(half_spaces(SIZE, 1.0), names=(name,))
        search(alone, [name])
        assert alone.decided[name] == both.decided[name]
        found, own = basin(both, name), basin(alone, name)
        assert (found.low, found.high) == (own.low, own.high)


@pytest.mark.parametrize("directions", [10, 22])
def test_a_frozen_replay_gives_the_same_record(directions: int, tmp_path: Path) -> None:
    """Search until stopped, fill profiles, search on; then all of it again from the store."""
    records = []
    for frozen in (False, True):
        ticks = itertools.count()
        options = {"cell": cells(Store(tmp_path)), "frozen": frozen}
        field = field_of(half_spaces(SIZE, 1.0), names=("t", "u"), options=options)
        with field.evaluator:
            scout(field, ["t", "u"], 4)
            search(field, ["t", "u"], lambda: not frozen and next(ticks) > 20)  # noqa: B023
            fill(field, ["t", "u"], RUNGS, directions)
            search(field, ["t", "u"])
        records.append([to_json(basin(field, t)) + to_json(profile(field, t)) for t in ("t", "u")])
        assert bool(seen(field)) != frozen
    assert records[0] == records[1]


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    whole = field_of(half_spaces(SIZE, 1.0))
    search(whole, ["t"])
    ticks = itertools.count()
    cut = field_of(half_spaces(SIZE, 1.0), options={"cell": cells(Store(tmp_path))})
    search(cut, ["t"], lambda: next(ticks) > 5)
    cut.evaluator.flush()
    measured = len(seen(cut))
    assert measured < len(seen(whole))
    on = field_of(half_spaces(SIZE, 1.0), options={"cell": cells(Store(tmp_path))})
    search(on, ["t"])
    assert len(seen(on)) == len(seen(whole)) - measured
    assert to_json(basin(on, "t")) == to_json(basin(whole, "t"))


def test_a_stop_ends_it_between_chunks() -> None:
    field = field_of(half_spaces(SIZE, 1.0))
    search(field, ["t"], lambda: True)
    assert not seen(field)
    fill(field, ["t"], RUNGS, 5, lambda: len(seen(field)) >= 2 * len(RUNGS))
    assert {len(units) for units in field.units.values()} == {1}, "an early end is even"
    assert profile(field, "t").points == ()
    search(field, ["t"], lambda: len(seen(field)) >= 40)
    assert len(seen(field)) <= 40 + 2 * CHUNK


def test_items_that_are_not_finite_count_as_lost() -> None:
    """A move that destroys the model at the first rung is a node, not a crash."""
    seer = real(NAMES)
    scales = tuple(1e10 * 4.0**k for k in range(8))
    field = Field(seer, Design(scales, items_each=4, cap=4, fixed=True))
    with seer:
        search(field, ["names"])
        found = basin(field, "names")
        shape = profile(field, "names")
    assert seer.broken > 0
    assert found.low == 0
    assert {node.drop.estimate for node in found.nodes} == {found.base}, "all of it is lost"
    assert all(point.score.estimate == 0 for point in shape.points)
    assert to_json(found)
    assert to_json(shape)


def test_items_of_a_unit_leave_enough_units() -> None:
    error = 0.05 / 7
    few, many = bare_ground("few", 50, tau=0.1), bare_ground("many", 4000, tau=0.1)
    assert items_each([few, many], error) == 1
    each = items_each([many], error)
    assert 1 < each <= 8
    design = Design(RUNGS, items_each=each)
    field = field_of(lambda move, i: 1.0, count=4000, items_each=each, cap=400)
    search(field, ["t"])
    assert set(field.decided["t"].values()) == {"inside"}, design.units(many)


def test_what_an_answer_rests_on() -> None:
    model = tiny_llama()
    assert place(real_ground(model, Task("x", (Item(TEXT[0]),), "text", style="continue"))[1]) == "prompt"
    inside = Task(
        "y", (Item("A dog is a dog", ("dog", "cat"), 0), Item("Rome and Paris", ("cat", "Paris"), 1)), "choice"
    )
    assert place(real_ground(model, inside)[1]) == "inside"
    outside = dataclasses.replace(inside, items=(Item("A dog is", ("cat", "dog"), 0), Item("2 + 2", ("5", "4"), 1)))
    assert place(real_ground(model, outside)[1]) == "outside"
