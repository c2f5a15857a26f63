"""Rows at displaced points: measured once, kept, never made up."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.capabilities import Item, Task, run
from catchment.errors import TaskError
from catchment.landscape import Mover, NotStoredError, Subspace, gaussian
from catchment.landscape.evaluator import subset
from catchment.models import named_weights, weights_hash
from catchment.runs import Store
from tests import tiny
from tests.unit.landscape.oracles import NAMES, SUMS, Oracle, bare_ground, cells, real, real_ground

FAMILY = {"kind": "test"}
TEXT = Task("text", tuple(Item(text) for text in tiny.TEXT[:2]), "text", style="continue")
EXACT = Task("exact", (Item("12 + 7?", gold="19"), Item("2 + 2?", gold="4")), "exact", max_new_tokens=3)


def oracle(**options: Any) -> Oracle:
    return Oracle(16, [bare_ground("t", 6, tau=0.1)], lambda move, i: float(move[i] >= 0), **options)


def test_the_scores_are_those_of_the_moved_model() -> None:
    seer = real(SUMS, NAMES)
    model, direction = seer.engine.model, gaussian(seer.mover.subspace, 3)
    clean = {n: w.detach().clone() for n, w in named_weights(model).items()}
    with seer:
        wanted = {g.name: g.items for g in seer.grounds.values()}
        found = seer.rows(FAMILY, "0", wanted, (direction, 0.2))
    with torch.no_grad():
        for name, weight in named_weights(model).items():
            assert torch.equal(weight, clean[name])
            weight += 0.2 * direction.delta(name).reshape(weight.shape)
    for ground in seer.grounds.values():
        for row in run(seer.engine, ground.prepared):
            assert found[ground.name][row.item].logprobs == pytest.approx(row.logprobs, abs=1e-4)
            assert abs(row.logprobs[0] - ground.base[row.item].logprobs[0]) > 1e-2, "the move can be seen"


def test_rows_are_measured_once_and_come_back_the_same() -> None:
    seer, items = oracle(), ("t0004", "t0001")
    move = gaussian(seer.mover.subspace, 0), 0.5
    first = seer.rows(FAMILY, "a", {"t": items}, move)
    again = seer.rows(FAMILY, "a", {"t": items}, move)
    assert len(seer.seen) == 1
    assert first == again
    assert list(first["t"]) == list(again["t"]) == list(items), "the order of sums"
    assert all(row.item == item for item, row in again["t"].items())
    seer.rows(FAMILY, "b", {"t": items}, move)
    seer.rows({"kind": "other"}, "a", {"t": items}, move)
    assert len(seer.seen) == 3
    assert (seer.evaluations, seer.tokens, seer.fresh_tokens) == (8, 24, 18)


def test_real_rows_come_in_the_order_asked_for() -> None:
    """Batches are sorted by length; sums over rows must not depend on where the rows came from."""
    seer = real(NAMES)
    with seer:
        items = seer.grounds["names"].items[::-1]
        move = gaussian(seer.mover.subspace, 0), 0.1
        first = seer.rows(FAMILY, "a", {"names": items}, move)["names"]
        again = seer.rows(FAMILY, "a", {"names": items}, move)["names"]
    assert list(first) == list(again) == list(items)
    assert first == again


def test_more_items_at_a_point_leave_those_kept_as_they_are(tmp_path: Path) -> None:
    numbers = iter(range(100))

    def never_twice(move: Any, i: int) -> float:
        return next(numbers) / 100

    store = Store(tmp_path)
    grounds = [bare_ground("t", 6, tau=0.1)]
    with Oracle(16, grounds, never_twice, cell=cells(store)) as seer:
        move = gaussian(seer.mover.subspace, 0), 0.5
        few = seer.rows(FAMILY, "a", {"t": ("t0000", "t0001")}, move)["t"]
        many = seer.rows(FAMILY, "a", {"t": ("t0000", "t0001", "t0002")}, move)["t"]
    assert {i: many[i] for i in few} == few
    with Oracle(16, grounds, never_twice, cell=cells(Store(tmp_path)), frozen=True) as seer:
        assert seer.rows(FAMILY, "a", {"t": ("t0000", "t0001", "t0002")}, move)["t"] == many


def test_a_killed_scan_goes_on_where_it_was_flushed(tmp_path: Path) -> None:
    first = real(SUMS, cell=cells(Store(tmp_path)))
    direction = gaussian(first.mover.subspace, 0)
    wanted = {"sums": first.grounds["sums"].items}
    kept = [first.rows(FAMILY, str(k), wanted, (direction, 0.1 * k)) for k in (1, 2)]
    first.keep("sums", FAMILY, "loss", [1 / 3])
    first.flush()
    lost = first.rows(FAMILY, "3", wanted, (direction, 0.3))
    del first  # no close, no flush
    second = real(SUMS, cell=cells(Store(tmp_path)))
    with second:
        assert [second.rows(FAMILY, str(k), wanted, (direction, 0.1 * k)) for k in (1, 2)] == kept
        assert second.kept("sums", FAMILY, "loss") == [1 / 3]
        assert second.fresh_tokens == 0
        assert second.rows(FAMILY, "3", wanted, (direction, 0.3)) == lost
        assert second.fresh_tokens > 0


def test_frozen_gives_what_is_kept_and_measures_nothing(tmp_path: Path) -> None:
    with oracle(cell=cells(Store(tmp_path))) as seer:
        move = gaussian(seer.mover.subspace, 0), 0.5
        rows = seer.rows(FAMILY, "a", {"t": ("t0000",)}, move)
    with oracle(cell=cells(Store(tmp_path)), frozen=True) as seer:
        before = weights_hash(seer.engine.model)
        assert seer.rows(FAMILY, "a", {"t": ("t0000",)}, move) == rows
        for label, items in (("b", ("t0000",)), ("a", ("t0000", "t0001"))):
            with pytest.raises(NotStoredError):
                seer.rows(FAMILY, label, {"t": items}, move)
        with pytest.raises(NotStoredError):
            seer.kept("t", FAMILY, "nothing")
        assert not seer.seen
        assert weights_hash(seer.engine.model) == before


def test_what_a_frozen_evaluator_does_not_have_is_not_counted(tmp_path: Path) -> None:
    booked: list[int] = []
    with oracle(cell=cells(Store(tmp_path)), frozen=True, on_tokens=booked.append) as seer:
        with pytest.raises(NotStoredError):
            seer.rows(FAMILY, "a", {"t": ("t0000",)}, (gaussian(seer.mover.subspace, 0), 0.5))
        assert (seer.evaluations, seer.tokens, seer.fresh_tokens, booked) == (0, 0, 0, [])


def test_without_a_move_rows_are_looked_up_and_never_measured(tmp_path: Path) -> None:
    """At the model's own weights they would stand under the address of another point, for good."""
    store = Store(tmp_path)
    with oracle(cell=cells(store)) as seer:
        rows = seer.rows(FAMILY, "a", {"t": ("t0000",)}, (gaussian(seer.mover.subspace, 0), 0.5))
        assert seer.rows(FAMILY, "a", {"t": ("t0000",)}) == rows
        with pytest.raises(NotStoredError, match="no move"):
            seer.rows(FAMILY, "a", {"t": ("t0000", "t0001")})
        assert len(seer.seen) == 1
        assert seer.evaluations == 2
    again = oracle(cell=cells(Store(tmp_path)), frozen=True)
    with pytest.raises(NotStoredError):
        again.rows(FAMILY, "a", {"t": ("t0001",)})


def test_a_kept_result_is_no_item(tmp_path: Path) -> None:
    """Whatever items are called."""
    names = ("json", "json#loss", "loss:json", "#json")
    ground = bare_ground("t", len(names), tau=0.1)
    encoded = [
        dataclasses.replace(e, item=dataclasses.replace(e.item, id=name))
        for e, name in zip(ground.prepared.encoded, names, strict=True)
    ]
    rows = {name: dataclasses.replace(row, item=name) for name, row in zip(names, ground.base.values(), strict=True)}
    prepared = dataclasses.replace(ground.prepared, encoded=tuple(encoded))
    ground = dataclasses.replace(ground, prepared=prepared, base=rows, items=names)

    class Named(Oracle):
        def fresh(self, task: str, items: Any) -> Any:
            return {item: dataclasses.replace(rows[item], score=0.25) for item in items}

    for frozen in (False, True):
        seer = Named(16, [ground], lambda move, i: 1.0, cell=cells(Store(tmp_path)), frozen=frozen)
        with seer:
            move = gaussian(seer.mover.subspace, 0), 0.5
            for label in ("loss", "a"):
                if not frozen:
                    seer.keep("t", FAMILY, label, [label])
                assert set(seer.rows(FAMILY, label, {"t": names}, move)["t"]) == set(names)
            for label in ("loss", "a"):
                assert seer.kept("t", FAMILY, label) == [label]
                found = seer.rows(FAMILY, label, {"t": names}, move)["t"]
                assert [row.score for row in found.values()] == [0.25] * len(names)


@pytest.mark.parametrize("task", [SUMS, TEXT, EXACT], ids=lambda task: task.scorer)
def test_outputs_that_are_not_finite_are_flagged_and_counted(task: Task) -> None:
    seer = real(task)
    ground, before = seer.grounds[task.name], weights_hash(seer.engine.model)
    with seer:
        move = gaussian(seer.mover.subspace, 0), 1e18
        found = seer.rows(FAMILY, "far", {task.name: ground.items}, move)[task.name]
        assert set(found) == set(ground.items)
        assert seer.broken == len(found)
        near = seer.rows(FAMILY, "near", {task.name: ground.items}, (move[0], 0.0))[task.name]
        assert seer.broken == len(found)
    assert all(row.score == 0 and "non-finite" in row.flags and row.companion is None for row in found.values())
    assert all(ground.value(row) == 0 for row in found.values())
    assert near == {item: ground.base[item] for item in ground.items}
    assert weights_hash(seer.engine.model) == before


def test_one_item_that_is_not_finite_leaves_the_others_alone() -> None:
    """Only a token that one item holds has broken weights."""
    model = tiny.tiny_llama()
    seer = real(NAMES, model=model)
    own = {e.item.id: set(e.prompt) for e in seer.grounds["names"].prepared.encoded}
    alone = {i: min(ids - set().union(*(x for j, x in own.items() if j != i)), default=None) for i, ids in own.items()}
    victim, token = next((i, t) for i, t in alone.items() if t is not None)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    rows = seer.fresh("names", seer.grounds["names"].items)
    assert [i for i, row in rows.items() if "non-finite" in row.flags] == [victim]
    base = seer.grounds["names"].base
    assert {i: row for i, row in rows.items() if i != victim} == {i: row for i, row in base.items() if i != victim}


def test_a_scoring_function_that_fails_is_no_broken_model() -> None:
    def fails(item: Item, answer: str) -> float:
        raise ZeroDivisionError

    good = Task("own", (Item("2 + 2?"),), "callable", function=lambda item, answer: 1.0, max_new_tokens=2)
    model = tiny.tiny_llama()
    _, ground = real_ground(model, good)
    bad = dataclasses.replace(ground.prepared, task=dataclasses.replace(good, function=fails))
    seer = real(SUMS, model=model)
    seer.grounds["own"] = dataclasses.replace(ground, prepared=bad)
    with seer, pytest.raises(TaskError, match="ZeroDivisionError"):
        seer.rows(FAMILY, "a", {"own": ground.items}, (gaussian(seer.mover.subspace, 0), 0.1))


def test_the_model_is_restored_after_an_exception_inside() -> None:
    class BrokenError(Exception):
        pass

    seer = real(SUMS)
    before = weights_hash(seer.engine.model)

    def inside() -> None:
        with seer:
            seer.rows(FAMILY, "a", {"sums": seer.grounds["sums"].items}, (gaussian(seer.mover.subspace, 0), 0.1))
            assert weights_hash(seer.engine.model) != before
            raise BrokenError

    with pytest.raises(BrokenError):
        inside()
    assert weights_hash(seer.engine.model) == before


def test_the_value_of_a_text_is_the_mean_probability_of_a_byte() -> None:
    _, ground = real_ground(tiny.tiny_llama(), TEXT)
    item = ground.items[0]
    row = ground.base[item]
    size = len(ground.encoded[item].item.prompt.encode())
    assert ground.value(row) ** size == pytest.approx(2.718281828459045 ** row.logprobs[0], rel=1e-6)


def test_units_use_no_item_twice_before_all_were_used() -> None:
    ground = bare_ground("t", 17, tau=0.1)
    units = [subset(ground, "s", unit, 3) for unit in range(10)]
    for turn in (units[:5], units[5:]):  # 5 pieces of 3; 2 items are left out
        flat = [item for piece in turn for item in piece]
        assert len(flat) == len(set(flat)) == 15
    assert units[:5] != units[5:]
    assert units == [subset(ground, "s", unit, 3) for unit in range(10)]
    assert units != [subset(ground, "other", unit, 3) for unit in range(10)]
    assert subset(ground, "s", 3, 99) == subset(ground, "s", 3, 17)


def test_another_task_another_subset() -> None:
    """The task is in the stream, so that equal item ids would not be drawn alike."""
    ground = bare_ground("t", 40, tau=0.1)
    assert subset(ground, "0/0.1/a", 0, 8) != subset(ground, "0/0.1/b", 0, 8)


def test_redrawn_units_are_independent() -> None:
    ground = bare_ground("t", 10, tau=0.1)
    units = [subset(ground, "s", unit, 2, redraw=True) for unit in range(2000)]
    counts = Counter(item for unit in units for item in unit)
    assert max(abs(n - 400) for n in counts.values()) < 5 * (400 * 0.8) ** 0.5
    pairs = Counter(bool(set(a) & set(b)) for a, b in zip(units[::2], units[1::2], strict=True))
    shared = 1 - (8 * 7) / (10 * 9)  # of two independent draws of 2 of 10
    assert abs(pairs[True] / 1000 - shared) < 5 * (shared * (1 - shared) / 1000) ** 0.5


def test_tokens_are_booked_as_they_cost() -> None:
    booked: list[int] = []
    seer = oracle(on_tokens=booked.append)
    seer.rows(FAMILY, "a", {"t": ("t0000", "t0001")}, (gaussian(seer.mover.subspace, 0), 0.1))
    assert booked == [6]
    assert seer.seconds > 0


def test_a_sparse_subspace_can_be_measured_too() -> None:
    model = tiny.tiny_llama()
    _, ground = real_ground(model, SUMS)
    seer = real(SUMS, model=model)
    subspace = Subspace.sparse(model, {"lm_head.weight": torch.arange(320 * 32)})
    seer.mover = Mover(model, subspace)
    with seer:
        rows = seer.rows(FAMILY, "a", {"sums": ground.items}, (gaussian(subspace, 0), 0.3))["sums"]
    assert all(rows[i].logprobs != ground.base[i].logprobs for i in rows)
