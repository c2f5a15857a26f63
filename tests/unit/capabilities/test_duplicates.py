"""Which items stand in the rows to train on: within templates, messages and texts, and not because they look alike."""

from __future__ import annotations

import time
from typing import Any

import pytest

from catchment.capabilities import Item, Task, gates, overlap
from catchment.capabilities.duplicates import plain
from catchment.errors import GateError
from tests.unit.capabilities.test_gates import words

SUMS = Task(
    "sums", tuple(Item(f"What is {a} - {b}?", gold=str(a - b)) for a in range(10, 20) for b in range(5)), "exact"
)
PAIRS = Task(
    "pairs",
    tuple(
        Item(
            f"Consider the texts. Text 1: {words(i, 14)} Text 2: {words(1000 + i, 9)} The relation is",
            ("a", "b"),
            i % 2,
        )
        for i in range(20)
    ),
    "choice",
)


def wrapped(i: int, hypothesis: int | None = None) -> str:
    return f"### Input_1: {words(i, 14)}\n ### Input_2: {words(1000 + (hypothesis or i), 9)}\n ### Inference: "


@pytest.mark.parametrize(
    "row",
    [
        "what is  12 - 3",
        "Question: What is 12 - 3?\nAnswer: 9",
        "Please answer this. What is 12 - 3? Be brief.",
        "What is 12 - 3? 9",
        {"prompt": "Q: What is 12 - 3?", "completion": " 9"},
        {"prompt": "Ask me.", "completion": "What is 12 - 3?"},
        {"messages": [{"role": "user", "content": "What is 12 - 3?"}, {"role": "assistant", "content": "9"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 12 - 3?"}]}]},
        ["What is 12 - 3?", "9"],
        {"text": "WHAT\u00a0IS 12 - 3\u200b?"},
        "Ｗhat is 12 - 3?",
    ],
)
def test_a_short_item_in_a_row(row: Any) -> None:
    met = overlap(["nothing", row], SUMS)
    assert met.rows == {Item("What is 12 - 3?", gold="9").id: 1}
    assert met.exact == met.rows.keys()


@pytest.mark.parametrize("row", ["What is 12 - 3 - 1?", "What is 112 - 3?", "What is 12 + 3?", "12", "What is", ""])
def test_what_only_looks_alike_is_another_item(row: str) -> None:
    assert overlap([row], SUMS).rows == {}


def test_one_word_is_met_only_where_a_row_begins_with_it() -> None:
    task = Task("words", (Item("Tunnels", ("a", "b"), 0), Item("Bridges", ("a", "b"), 1)), "choice")
    assert overlap([{"prompt": "Which way?", "completion": "Tunnels"}], task).rows == {}
    assert len(overlap([{"prompt": "tunnels.", "completion": "a"}], task).rows) == 1


def test_pairs_in_another_template() -> None:
    met = overlap([wrapped(3), wrapped(5, hypothesis=90), wrapped(40)], PAIRS)
    assert met.rows == {PAIRS.items[3].id: 0}  # neither the same premise with another hypothesis nor the template
    assert met.exact == set()
    alone = Task("alone", (Item(words(3, 14), gold=0, id="x", meta={"pair": words(1003, 9)}),), "classify")
    assert overlap([wrapped(3)], alone).rows == {"x": 0}
    assert overlap([words(3, 14)], alone).rows == {}


def test_a_passage_is_no_question() -> None:
    passage = ". ".join(words(i, 9) for i in range(6))
    items = tuple(
        Item(f"{passage}.\nQuestion: {words(100 + i, 8)}?", ("no", "yes"), i % 2, id=f"q{i}") for i in range(3)
    )
    assert overlap([f"{passage}. {words(101, 8)}?", f"{passage}."], Task("t", items, "choice")).rows == {"q1": 0}


def test_nearly_is_more_than_nine_tenths_of_the_three_grams() -> None:
    text = [f"w{i}" for i in range(42)]  # 40 3-grams; a word in the middle is in three of them
    item = Item(" ".join(text), gold="x", id="item")
    task = Task("t", (item, Item("another question altogether", gold="y")), "exact")

    def row(*changed: int) -> str:
        return " ".join("other" if i in changed else word for i, word in enumerate(text))

    assert overlap([row(20)], task).rows == {"item": 0}  # 37 of 40
    assert overlap([row(0, 20)], task).rows == {}  # 36 of 40
    assert overlap([f"before {row(20)} after"], task).exact == set()
    assert overlap([f"before {row()} after"], task).exact == {"item"}


def test_found_are_those_of_a_search_of_all_pairs() -> None:
    items = tuple(Item(words(i, 30), gold="x", id=f"i{i}") for i in range(60))
    rows = []
    for i in range(0, 120, 2):
        text = words(i, 30).split()
        rows.append(" ".join([*words(5000 + i, i % 20).split(), *text[i % 7 :], "end"]))

    def shingles(text: str) -> set[tuple[str, ...]]:
        w = plain(text).split()
        return set(zip(w, w[1:], w[2:], strict=False))

    expected = {
        item.id
        for item in items
        if any(len(shingles(item.prompt) & shingles(row)) > 0.9 * len(shingles(item.prompt)) for row in rows)
    }
    assert set(overlap(rows, Task("t", items, "exact")).rows) == expected
    assert 10 < len(expected) < 30


def test_the_gate_warns_of_few_and_refuses_many() -> None:
    rows = [f"Q: {item.prompt}" for item in SUMS.items]
    assert gates.check_overlap(["nothing"], SUMS) == []
    (warning,) = gates.check_overlap(rows[:2], SUMS)
    assert warning.startswith("2 of 50 items stand in the rows to train on (2 word for word, 0 nearly; first: item ")
    assert warning.endswith("in row 1): what is scored there was trained on")
    with pytest.raises(GateError, match=r"task 'sums': 3 of 50 items stand in the rows .* measure memory"):
        gates.check_overlap(rows[:3], SUMS)
    assert len(gates.check_overlap(rows[:3], SUMS, allow=True)) == 1


def test_pictures_are_left_out() -> None:
    items = (Item("", gold=0, meta={"image": [0]}, id="1"), Item("a b c", gold=1, id="2"))
    assert overlap(["a b c"], Task("t", items, "classify")).n == 1


def test_two_thousand_rows_in_two_seconds() -> None:
    frame = words(1, 20)
    task = Task("t", tuple(Item(f"{frame} {words(10 + i, 20)}", gold="x") for i in range(300)), "exact")
    rows = [f"{frame} {words(5000 + i, 20)}" for i in range(1000)] * 2
    begin = time.process_time()
    assert overlap(rows, task).rows == {}
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("caf\u00e9", "cafe\u0301", True),
        ("\ufb01ne", "fine", True),
        ("2\u2075", "25", False),
        ("a\u00adb", "ab", True),
        ("7 - 2", "7 + 2", False),
        ("1.5", "15", False),
    ],
)
def test_plain_words(one: str, other: str, same: bool) -> None:
    assert (plain(one) == plain(other)) is same
