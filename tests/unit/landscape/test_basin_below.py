"""Basins whose edge lies below the ladder, against a drop in closed form; estimates only where they are bracketed."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from catchment.landscape import Design, Field, basin, estimate, fill, scout, search
from catchment.landscape.units import CHUNK
from catchment.records import to_json
from catchment.runs import Store
from catchment.statistics import ladder, node_error, rungs_below
from tests.unit.landscape.oracles import Oracle, bare_ground, cells, half_spaces

RUNGS = ladder(0.05, 6.4, 8)
BELOW = rungs_below(RUNGS, 1e-4)
SIZE = 24


def field_of(score: Any, *, below: tuple[float, ...] = BELOW, options: dict[str, Any] | None = None) -> Field:
    seer = Oracle(SIZE, [bare_ground("t", 300, tau=0.1)], score, **(options or {}))
    design = Design(RUNGS, depth=2, items_each=2, cap=150, below=below, floor="float16" if below else "")
    return Field(seer, design)


def edge(margin: float) -> float:
    """Where half_spaces drops by 0.1: Phi(-margin / s) = 0.1."""
    return -margin / NormalDist().inv_cdf(0.1)


@pytest.mark.parametrize("piloted", [True, False])
@pytest.mark.parametrize("margin", [0.04, 0.01, 0.001])
def test_an_edge_below_the_ladder_is_found(margin: float, piloted: bool) -> None:
    """At the first rung, and far above it, most is lost."""
    truth = edge(margin)
    assert truth < RUNGS[0]
    field = field_of(half_spaces(SIZE, margin))
    if piloted:
        scout(field, ["t"], 4)
        assert min(scale for _, scale in field.pilot) < RUNGS[0]
    search(field, ["t"])
    found = basin(field, "t")
    assert found.high is not None
    assert 0 < found.low <= truth <= found.high
    assert found.high / found.low < 4 * RUNGS[1] / RUNGS[0]
    assert (found.note, found.floor) == ("", "")
    assert to_json(found)
    without = field_of(half_spaces(SIZE, margin), below=())
    search(without, ["t"])
    alone = basin(without, "t")
    assert (alone.low, alone.high, alone.estimate) == (0.0, RUNGS[0], None)
    assert "choose a lower --ladder" in alone.note


def test_the_error_counts_the_rungs_below() -> None:
    field = field_of(half_spaces(SIZE, 1.0))
    assert field.design.error == node_error(0.05, len(RUNGS) + len(BELOW), 2)


def test_a_task_that_is_lost_at_every_scale_is_outside_down_to_the_number_format() -> None:
    field = field_of(lambda move, i: float(move.numel() == 1))
    scout(field, ["t"], 4)
    assert min(scale for _, scale in field.pilot) == BELOW[0], "the pilot looked that far"
    search(field, ["t"])
    found = basin(field, "t")
    assert (found.low, found.high, found.estimate, found.floor) == (0.0, BELOW[0], None, "float16")
    assert "smallest step that float16 holds" in found.note
    assert estimate(field, "t") is not None, "straight lines from 0 have one all the same"


def test_a_search_that_was_stopped_above_does_not_claim_the_end() -> None:
    field = field_of(lambda move, i: float(move.numel() == 1))
    search(field, ["t"], lambda: min(field.decided["t"], default=1.0) <= RUNGS[0])
    found = basin(field, "t")
    assert (found.low, found.high, found.floor) == (0.0, RUNGS[0], "")
    assert "was not decided" in found.note


def test_a_flat_task_looks_at_nothing_below() -> None:
    field = field_of(lambda move, i: 1.0)
    scout(field, ["t"], 4)
    search(field, ["t"])
    assert min(field.scales("t")) >= RUNGS[0]
    assert (basin(field, "t").low, basin(field, "t").high) == (RUNGS[-1], None)


@pytest.mark.parametrize("margin", [0.01, 1.0, 1e3])
def test_an_estimate_stands_in_its_bracket_or_nowhere(margin: float) -> None:
    """Wherever a search is stopped."""
    field = field_of(half_spaces(SIZE, margin))
    fill(field, ["t"], RUNGS, 2)
    for units in itertools.count(2 * len(RUNGS) + CHUNK, 240):
        search(field, ["t"], lambda: sum(map(len, field.units.values())) >= units)  # noqa: B023
        found = basin(field, "t")
        if found.estimate is not None:
            assert found.high is not None
            assert 0 < found.low <= found.estimate.estimate <= found.high
        if sum(map(len, field.units.values())) < units:
            break
    assert (found.estimate is not None) == (found.low > 0 and found.high is not None)


def test_a_frozen_replay_below_the_ladder_gives_the_same_record(tmp_path: Path) -> None:
    records = []
    for frozen in (False, True):
        options = {"cell": cells(Store(tmp_path)), "frozen": frozen}
        field = field_of(half_spaces(SIZE, 0.03), options=options)
        with field.evaluator:
            scout(field, ["t"], 4)
            search(field, ["t"])
        records.append(to_json(basin(field, "t")))
    assert records[0] == records[1]
