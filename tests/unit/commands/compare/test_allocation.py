"""The dial: what a budget buys, what twice the budget would buy, and which point is chosen when recovering."""

from __future__ import annotations

import dataclasses

import pytest

from catchment.capabilities import Item, Task
from catchment.commands.compare.allocation import Plan, allocate, edges, first_plan, hopeless
from catchment.commands.compare.recover import Candidate, choose
from catchment.commands.compare.settings import CompareSettings
from catchment.errors import InputError
from catchment.options import parse_seconds, read_config
from catchment.statistics import expected_half_width


def make_plan(budget: float | None = 100.0, sizes: tuple[int, ...] = (1600, 400), reached: int = 64) -> Plan:
    tasks = [
        Task(f"t{k}", tuple(Item(f"{k} {i}?", gold=str(i)) for i in range(n)), "exact") for k, n in enumerate(sizes)
    ]
    plan = first_plan(
        tasks, limit=None, formats=3, budget=budget, batch_tokens=512, tokens={t.name: 20.0 for t in tasks}
    )
    return plan.with_tasks(pilot={t.name: reached for t in tasks}) if budget else plan


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


def test_a_dear_task_does_not_keep_the_others_from_their_items() -> None:
    """60 s pay for 2 items at 20 s, and not for a third; what is left goes to the other task, at 0.1 s an item."""
    plan = allocate(make_plan(sizes=(1600, 400), reached=0), {"t0": 20.0, "t1": 0.1}, 60.0, set(), 0)
    assert plan.of("t0").items == 2
    assert plan.of("t1").items == 200


def test_a_task_without_an_item_is_tried_while_there_is_time() -> None:
    costs = {"t0": 20.0, "t1": 0.1}
    assert [t.items for t in allocate(make_plan(reached=0), costs, 1.0, set(), 0).tasks] == [1, 10]
    nothing = allocate(make_plan(reached=0), costs, 0.0, set(), 0)
    assert nothing.unmeasured == ("t0", "t1")
    assert "no time for t0, t1" in nothing.sentence()


@pytest.mark.parametrize(
    ("items", "chunk", "budgeted", "places"),
    [
        (700, 256, False, [0, 64, 320, 576, 700]),
        (700, 256, True, [0, 64, 320, 576, 700]),
        (200, 64, True, [0, 64, 128, 192, 200]),
        (70, 16, True, [0, 16, 32, 48, 64, 70]),
        (10, 4, True, [0, 4, 8, 10]),
        (3, 4, True, [0, 3]),
        (0, 256, True, [0]),
    ],
)
def test_rounds_begin_and_end_at_fixed_places(items: int, chunk: int, budgeted: bool, places: list[int]) -> None:
    plan = make_plan().with_tasks(items={"t0": items}, chunk={"t0": chunk})
    assert edges(plan.of("t0"), budgeted) == places


def test_a_plan_survives_its_file() -> None:
    plan = dataclasses.replace(
        allocate(make_plan(), {"t0": 0.1, "t1": 0.1}, 30.0, set(), 2), cut=True, recover=(8, 9, 6)
    )
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("right", "n", "chance", "change", "closed"),
    [
        (16, 64, 0.25, 0.0, True),  # at chance
        (16, 64, 0.25, 0.3, False),  # at chance, and the tuned model is not
        (16, 64, 0.25, -0.2, False),  # a drop below chance, which more items would show
        (21, 64, 0.25, -0.2, False),  # 33%: may be above chance, and then it lost
        (4, 16, 0.25, 0.0, False),  # too few to tell
        (31, 64, 0.0, -0.4, False),  # 48% of generated answers: a loss can be shown
        (1, 64, 0.0, 0.0, False),
        (0, 64, 0.0, 0.0, True),
    ],
)
def test_a_pilot_closes_only_what_more_items_could_not_show(
    right: int, n: int, chance: float, change: float, closed: bool
) -> None:
    assert hopeless([1.0] * right + [0.0] * (n - right), chance, change) == closed


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
