"""Every gate is tripped by a task or model that has the fault, and passes one that has not."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from catchment.capabilities import evaluate, gates, prepare, run
from catchment.capabilities.tasks import Item, Task
from catchment.errors import GateError, TaskError
from catchment.records import Row
from tests import tiny

WORDS = [w for text in tiny.TEXT for w in text.lower().split()]


def words(seed: int, n: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(1000)}" for _ in range(n))


def choices(n: int = 20, *, gold: Any = None, length: int = 20) -> tuple[Item, ...]:
    return tuple(
        Item(words(i, length), ("big", "old", "warm"), i % 3 if gold is None else gold, id=f"q{i}") for i in range(n)
    )


def task(items: tuple[Item, ...], scorer: str = "choice", **settings: Any) -> Task:
    return Task("t", items, scorer, **settings)


def generated(scorer: str, golds: list[Any]) -> Task:
    return task(tuple(Item(words(i, 8), gold=g, id=f"q{i}") for i, g in enumerate(golds)), scorer)


def test_a_sound_task_passes() -> None:
    assert gates.check_task(task(choices(), shots=(Item("another question", ("a", "b"), 0),))) == []


@pytest.mark.parametrize("gold", [-1, None, 3, "big", True])
def test_unlabelled_choices(gold: Any) -> None:
    items = (*choices(), Item("one more", ("big", "old", "warm"), gold, id="bad"))
    with pytest.raises(GateError, match=r"1 of 21 items have no label that 'choice' .*item bad, gold .*validation"):
        gates.check_task(task(items))


@pytest.mark.parametrize(
    ("scorer", "good", "bad"),
    [
        ("exact", ["4", "-1", ("four", "4"), 7], [None, -1, "", " ", (), ("four", "")]),
        ("regex", [r"\d+", "yes|no"], [None, "", 3]),
        ("refusal", ["refuse", "comply"], [None, "yes", 1]),
        ("classify", [0, 1], [-1, None, "cat"]),
    ],
)
def test_labels_by_scorer(scorer: str, good: list[Any], bad: list[Any]) -> None:
    gates.check_labels(generated(scorer, good))
    for gold in bad:
        with pytest.raises(GateError, match=r"items have no label"):
            gates.check_labels(generated(scorer, [*good, gold]))


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(GateError, match=r"item q1: '\(' is no regular expression"):
        gates.check_labels(generated("regex", ["a", "("]))


def test_unlabelled_is_fine_where_nothing_is_compared_with_a_label() -> None:
    for scorer in ("text", "agreement", "callable"):
        gates.check_labels(generated(scorer, [None] * 12))


@pytest.mark.parametrize(("scorer", "gold"), [("choice", 0), ("exact", "4"), ("refusal", "refuse"), ("classify", 1)])
def test_constant_gold(scorer: str, gold: Any) -> None:
    constant = task(choices(gold=0)) if scorer == "choice" else generated(scorer, [gold] * 20)
    with pytest.raises(GateError, match=f"the right answer is '{gold}' for all 20 items"):
        gates.check_labels(constant)
    gates.check_labels(replace(constant, items=constant.items[:9]))  # too few to say
    gates.check_labels(generated("regex", [r"\d+"] * 20))  # a format, not an answer


@pytest.mark.parametrize(
    "shot",
    [
        Item("What is 12 - 7?", ("5", "6"), 0),
        Item("  what is 12 - 7 ", ("5", "6"), 0),
        Item("What is 12 - 7?", ("6", "5"), 1),
    ],
)
def test_a_shot_among_the_items(shot: Item) -> None:
    items = (Item("What is 12 - 7?", ("5", "6"), 0), Item("What is 12 + 7?", ("19", "6"), 0))
    with pytest.raises(GateError, match=f"1 of its 1 shots are among the scored items .*{shot.id}"):
        gates.check_task(task(items, shots=(shot,)))
    gates.check_task(task(items, shots=(Item("What is 12 * 7?", ("5", "6"), 0),)))


def test_few_near_duplicates_warn_and_many_refuse() -> None:
    items = list(choices(40))
    near = Item("Indeed " + items[3].prompt, items[3].choices, 1, id="near")
    equal = Item(items[5].prompt.upper() + " ?", items[5].choices, 1, id="equal")
    found = gates.check_duplicates(task((*items, near, equal)))
    assert found == ["2 of 42 items nearly repeat another (first: equal repeats q5)"]
    with pytest.raises(GateError, match=r"2 of 22 items nearly repeat another"):
        gates.check_duplicates(task((*items[:20], near, equal)))


@pytest.mark.parametrize(
    "items",
    [
        (Item("What is 7 - 2?", gold="5"), Item("What is 7 + 2?", gold="9"), Item("What is 7 * 2?", gold="14")),
        (Item("Round 1.5.", gold="2"), Item("Round 15.", gold="15")),
        (Item("a[1]", gold="2"), Item("a(1)", gold="3")),
        (Item("A dog runs.", gold=0, meta={"pair": "An animal."}, id="1"),
         Item("A dog runs.", gold=1, meta={"pair": "A cat."}, id="2")),
        (Item("", gold=0, meta={"image": [0]}, id="1"), Item("", gold=1, meta={"image": [1]}, id="2")),
        (Item("Pick.", ("a", "b"), 0), Item("Pick.", ("c", "d"), 0)),
    ],
)  # fmt: skip
def test_what_only_looks_alike_is_no_duplicate(items: tuple[Item, ...]) -> None:
    assert gates.near_duplicates(items) == []


def test_near_duplicates_equal_a_search_of_all_pairs() -> None:
    rng = random.Random(0)
    items = []
    for i in range(60):
        text = words(i, 40).split()
        items.append(Item(" ".join(text), gold="x", id=f"a{i}"))
        for k in range(rng.randrange(3)):
            text[k] = "other"
            items.append(Item(" ".join(text), gold="x", id=f"b{i}{k}"))

    def shingles(item: Item) -> set[tuple[str, ...]]:
        w = item.prompt.split()
        return set(zip(w, w[1:], w[2:], strict=False))

    expected = set()
    for k, item in enumerate(items):
        for other in items[:k]:
            a, b = shingles(item), shingles(other)
            if len(a & b) / len(a | b) > gates.NEAR:
                expected.add(item.id)
    assert {later for _, later in gates.near_duplicates(items)} == expected
    assert len(expected) > 10


def test_two_thousand_items_are_checked_in_two_seconds() -> None:
    frame = " ".join(WORDS[:30])
    items = tuple(Item(f"{frame} {words(i, 12)}", ("a", "b"), i % 2) for i in range(2000))
    begin = time.process_time()
    assert gates.check_task(task(items)) == []
    assert time.process_time() - begin < 2


def test_prompts_longer_than_the_context(tokenizer: Any) -> None:
    long = Item(words(1, 100), ("big", "old", "warm"), 1, id="long")
    given = task((*choices(length=4), long))
    with pytest.raises(GateError, match=r"1 of 21 prompts are longer .* 256 tokens \(longest: item long, \d+ tokens"):
        prepare(tokenizer, given, context=256)
    kept = prepare(tokenizer, given, context=256, drop_long=True)
    assert kept.dropped == ("long",)
    assert "long" not in {e.item.id for e in kept.encoded}
    with pytest.raises(TaskError, match="every prompt is longer than the context of 5"):
        prepare(tokenizer, given, context=5, drop_long=True)


@pytest.mark.parametrize("scorer", ["exact", "agreement"])
def test_room_for_the_answer_is_part_of_the_length(tokenizer: Any, scorer: str) -> None:
    given = task((Item(words(1, 4), gold="x"), Item(words(2, 4), gold="y")), scorer, max_new_tokens=50)
    longest = max(len(e.prompt) for e in prepare(tokenizer, given).encoded)
    prepare(tokenizer, given, context=longest + 50)
    with pytest.raises(GateError, match="answer included"):
        prepare(tokenizer, given, context=longest + 49)


def rows(flags: list[tuple[str, ...]]) -> list[Row]:
    return [Row(f"q{i}", 0.0, "", flags=f) for i, f in enumerate(flags)]


def test_warnings_about_rows() -> None:
    given = generated("exact", ["1", "2"])
    assert gates.check_rows(given, rows([()] * 20)) == []
    assert gates.check_rows(given, rows([("cut",)] * 2 + [()] * 18)) == []
    assert gates.check_rows(given, rows([("cut",)] * 3 + [()] * 17)) == [
        "3 of 20 answers were cut at the limit of 32 tokens"
    ]
    assert "gibberish" in gates.check_rows(given, rows([("incoherent",)] + [()] * 19))[0]
    assert "1 of 20 decisions are ties" in gates.check_rows(given, rows([("tie",)] + [()] * 19))[0]
    assert "1 of 20 passages were cut" in gates.check_rows(given, rows([("truncated",)] + [()] * 19))[0]


def test_cut_completions_are_reported_by_evaluate(tokenizer: Any, llama: Any) -> None:
    given = replace(generated("exact", ["1", "2", "3"]), max_new_tokens=3, stop=())
    scores = evaluate(llama, given, tokenizer=tokenizer, batch_tokens=256)
    assert all("cut" in row.flags for row in scores.rows)
    assert "3 of 3 answers were cut at the limit of 3 tokens" in scores.warnings


def test_weights_that_no_training_made() -> None:
    gates.check_model("m", [], [])
    with pytest.raises(
        GateError, match=r"model 'm': 2 weights .*newly initialised at random \(first: 'score.weight'\)"
    ):
        gates.check_model("m", ["score.weight", "score.bias"], [])
    with pytest.raises(GateError, match=r"1 tensors hold NaN or infinite values \(first: 'lm_head.weight'\)"):
        gates.check_model("m", [], ["lm_head.weight"])


def test_broken_weights_give_an_error_and_no_score(tokenizer: Any) -> None:
    model = tiny.tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    for given in (task(choices(4)), generated("text", [None])):
        with pytest.raises(TaskError, match="expected finite numbers"):
            evaluate(model, given, tokenizer=tokenizer, batch_tokens=256)


def test_identical_outputs_from_different_weights(tokenizer: Any, llama: Any) -> None:
    prepared = prepare(tokenizer, task(choices(6)))
    other = tiny.tiny_llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 0.05

    def measured(model: Any) -> dict[str, list[Row]]:
        from catchment.capabilities.engine import Engine

        return {"t": run(Engine(model, tokenizer), prepared), "empty": []}

    same, again, moved = measured(llama), measured(llama), measured(other)
    gates.check_twins(same, again, same_weights=True)
    gates.check_twins(same, moved, same_weights=False)
    gates.check_twins({"t": same["t"][:4]}, {"t": again["t"][:4]}, same_weights=False)  # too few to say
    with pytest.raises(GateError, match="different weights but gave bit-identical log-probabilities on all 6 items"):
        gates.check_twins(same, {"empty": [], "t": again["t"][::-1]}, same_weights=False)
