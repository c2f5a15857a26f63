"""The dial: what a budget buys, what twice the budget would buy, and which point is chosen when recovering."""

from __future__ import annotations

import dataclasses

import pytest

from catchment.capabilities import Item, Task
from catchment.errors import InputError
from catchment.settings import CompareSettings, parse_seconds, read_config
from catchment.statistics import expected_half_width
from catchment.workflows.plan import Plan, allocate, first_plan, pilot_size
from catchment.workflows.recover import Candidate, choose


def make_plan(budget: float | None = 100.0, sizes: tuple[int, ...] = (1600, 400)) -> Plan:
    tasks = [
        Task(f"t{k}", tuple(Item(f"{k} {i}?", gold=str(i)) for i in range(n)), "exact") for k, n in enumerate(sizes)
    ]
    return first_plan(
        tasks, limit=None, formats=3, budget=budget, batch_tokens=512, tokens={t.name: 20.0 for t in tasks}
    )


def seconds(plan: Plan, costs: dict[str, float], others: int) -> float:
    return sum(costs[t.task] * (t.items - t.pilot + others * t.format_items) for t in plan.tasks)


def test_without_a_budget_all_items_are_planned() -> None:
    plan = make_plan(budget=None)
    assert plan.frozen
    assert [t.items for t in plan.tasks] == [1600, 400]
    assert plan.tasks[0].half_width == pytest.approx(expected_half_width(1600, 0.05), abs=1e-4)


@pytest.mark.parametrize("left", [0.0, 5.0, 30.0, 60.0, 1e6])
def test_an_allocation_fits_and_wastes_nothing(left: float) -> None:
    costs = {"t0": 0.05, "t1": 0.2}
    plan = allocate(make_plan(), costs, left, set(), 2)
    spent = seconds(plan, costs, 2)
    assert plan.frozen
    assert spent <= left
    if all(t.items < t.available for t in plan.tasks) and left > 0:
        assert spent > left - (1 + 2 * 16) * sum(costs.values())  # formats begin at 16 items each
        assert len({t.items for t in plan.tasks}) == 1
    if left == 1e6:
        assert [t.items for t in plan.tasks] == [1600, 400]


def test_twice_the_budget_buys_narrower_intervals() -> None:
    plan = allocate(make_plan(budget=30.0), {"t0": 0.05, "t1": 0.2}, 20.0, set(), 2)
    assert plan.doubled is not None
    assert plan.doubled < plan.half_width
    assert "twice the budget would buy" in plan.sentence()


def test_a_task_that_cannot_be_measured_costs_no_more() -> None:
    plan = allocate(make_plan(), {"t0": 0.05, "t1": 0.2}, 60.0, {"t1"}, 2)
    assert (plan.of("t1").items, plan.of("t1").format_items) == (64, 0)


def test_a_slow_machine_gets_a_smaller_pilot() -> None:
    slow = pilot_size(make_plan(budget=30.0), speed=70.0)
    fast = pilot_size(make_plan(budget=30.0), speed=7000.0)
    assert [t.pilot for t in fast.tasks] == [64, 64]
    assert [t.pilot for t in slow.tasks] == [16, 16]


def test_a_plan_survives_its_file() -> None:
    plan = dataclasses.replace(allocate(make_plan(), {"t0": 0.1, "t1": 0.1}, 30.0, set(), 2), cut=True)
    assert Plan.from_json(plan.to_json()) == plan


def test_recover_prefers_safe_points_and_then_the_smallest_loss() -> None:
    half, whole, cut = Candidate("interpolation", 0.5), Candidate("interpolation", 1.0), Candidate("truncation", 0.1)
    tried = [
        (half, {"gain": 0.2, "kept": -0.01}),
        (whole, {"gain": 0.4, "kept": -0.2}),
        (cut, {"gain": 0.1, "kept": 0.0}),
    ]
    assert choose(tried, 0.02, {"kept"}) == half
    assert choose(tried, 0.001, {"kept"}) == cut
    assert choose(tried, 0.02, set()) == whole
    assert choose([*tried[1:2], (half, {"gain": 0.2, "kept": -0.1})], 0.02, {"kept"}) == half


@pytest.mark.parametrize("word", ["", "fast", "-3m", "0s", "4x", "1.2.3s"])
def test_a_budget_that_is_no_time_is_refused(word: str) -> None:
    with pytest.raises(InputError, match="90s, 4m"):
        parse_seconds(word)


def test_config_types(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "c.yaml"
    path.write_text("tasks: recall\nbudget: 240\nout: somewhere\nlimit: 5\n")
    values = read_config(path, CompareSettings)
    assert CompareSettings("a", "b", **values).seconds == 240
    assert values["tasks"] == ("recall",)
    path.write_text("- a\n- b\n")
    with pytest.raises(InputError, match="list"):
        read_config(path, CompareSettings)
