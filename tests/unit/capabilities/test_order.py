"""The seeded order and the split in two, and the streams below the commands: written down before they became one
function, because another order is another sample and another cell."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from catchment.capabilities import Format, Item, Prepared, Task, sample, seeded_halves, seeded_order
from catchment.landscape import Ground
from catchment.landscape.evaluator import subset
from catchment.records import Row
from catchment.training import split_items
from catchment.training.fence import _chunked

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "7", "x/1", "é:2", "z z")
ITEMS = tuple(Item(f"p {name}", gold="x", id=name) for name in NAMES)
TASK = Task("t", ITEMS, "exact")
GROUND = Ground(Prepared(TASK, Format("f"), (), 0, 1, 1), {name: Row(name, 1.0, "") for name in NAMES}, NAMES, 0.0, 0.1)


def ids(items: tuple[Item, ...] | list[Item]) -> list[str]:
    return [item.id for item in items]


def test_samples() -> None:
    samples = [ids(sample(ITEMS, count, seed)) for seed in (0, 7) for count in (1, 3, 6)]
    assert samples == [
        ["h"],
        ["f", "h", "7"],
        ["d", "f", "g", "h", "7", "é:2"],
        ["x/1"],
        ["c", "7", "x/1"],
        ["a", "c", "e", "7", "x/1", "z z"],
    ]


def test_parts_of_a_protected_task() -> None:
    parts = [[ids(part.items) for part in split_items(TASK, seed, (0.25, 0.25, 0.5), 1)] for seed in (0, 7)]
    assert parts == [
        [["a", "h", "x/1"], ["f", "g", "é:2"], ["b", "c", "d", "e", "7", "z z"]],
        [["e", "h", "x/1"], ["b", "d", "z z"], ["a", "c", "f", "g", "7", "é:2"]],
    ]


def test_chunks_of_the_fence() -> None:
    assert [[ids(chunk.items) for chunk in _chunked(TASK, seed)] for seed in (0, 7)] == [
        [["x/1", "c", "7", "h", "g", "z z", "b", "e", "d", "a", "é:2", "f"]],
        [["e", "c", "a", "g", "z z", "f", "d", "é:2", "x/1", "b", "h", "7"]],
    ]


def test_units_of_a_landscape() -> None:
    turns = [[subset(GROUND, f"t/{seed}", unit, 4) for unit in range(4)] for seed in (0, 7)]
    assert turns == [
        [("x/1", "z z", "h", "b"), ("f", "g", "d", "e"), ("é:2", "7", "a", "c"), ("d", "a", "z z", "e")],
        [("é:2", "h", "c", "e"), ("b", "a", "d", "x/1"), ("7", "z z", "g", "f"), ("f", "c", "7", "d")],
    ]
    redrawn = [[subset(GROUND, f"t/{seed}", unit, 4, redraw=True) for unit in range(4)] for seed in (0, 7)]
    assert redrawn == [
        [("x/1", "z z", "h", "b"), ("d", "a", "z z", "e"), ("b", "7", "f", "e"), ("g", "é:2", "z z", "a")],
        [("é:2", "h", "c", "e"), ("f", "c", "7", "d"), ("b", "x/1", "h", "é:2"), ("g", "b", "d", "é:2")],
    ]


@given(st.lists(st.text(max_size=4), unique=True), st.text(max_size=4), st.randoms(use_true_random=False))
def test_an_order_is_of_the_ids_and_the_prefix_alone(names: list[str], prefix: str, shuffle: random.Random) -> None:
    order = seeded_order(names, prefix)
    again = list(names)
    shuffle.shuffle(again)
    assert seeded_order(again, prefix) == order
    assert ids(seeded_order([Item("p", id=name or "empty") for name in names if name], prefix)) == [
        n for n in order if n
    ]
    half = names[::2]
    assert seeded_order(half, prefix) == [name for name in order if name in set(half)]


@given(st.lists(st.text(max_size=4), unique=True), st.text(max_size=4))
def test_halves_are_two_parts_and_each_item_stays_on_its_side(names: list[str], prefix: str) -> None:
    one, two = seeded_halves(names, prefix)
    assert sorted([*one, *two]) == sorted(names)
    assert [name for name in names if name in set(one)] == one
    assert seeded_halves(names[::2], prefix)[0] == [name for name in names[::2] if name in set(one)]


def test_orders_of_two_prefixes_differ_and_halves_are_about_even() -> None:
    names = [str(k) for k in range(4000)]
    assert seeded_order(names, "a") != seeded_order(names, "b")
    one, two = seeded_halves(names, "a")
    assert abs(len(one) - len(two)) < 4 * 4000**0.5
