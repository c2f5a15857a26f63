"""Every gate is tripped by a task or model that has the fault, and passes one that has not."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from catchment.capabilities import duplicates, evaluate, gates, prepare, run, task_from_dataset
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
            if len(a & b) / len(a | b) > duplicates.NEAR:
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


@pytest.mark.parametrize("choices_", [(), ("big",), ("big", ""), ("big", " \n")])
def test_choices_that_are_none(choices_: tuple[str, ...]) -> None:
    items = (*choices(), Item("one more", choices_, 0, id="bad"))
    with pytest.raises(GateError, match=r"item bad: its choices are \[.*\]; expected at least 2 visible texts"):
        gates.check_task(task(items))


def test_a_choice_that_is_offered_twice() -> None:
    twice = Item("one more", ("big", "old", "big"), 0, id="twice")
    assert gates.check_task(task((*choices(), twice))) == ["1 of 21 items offer a choice twice (first: twice)"]


def test_one_text_is_right_wherever_it_stands() -> None:
    items = tuple(replace(item, choices=("big", "yes", "old")[i:] + ("big", "yes", "old")[:i], gold=(1 - i) % 3)
                  for i, item in ((n % 3, item) for n, item in enumerate(choices())))  # fmt: skip
    assert {item.gold for item in items} == {0, 1, 2}
    with pytest.raises(GateError, match="the right answer is 'yes' for all 20 items"):
        gates.check_labels(task(items))


@pytest.mark.parametrize("golds", [["Yes.", "yes"] * 6, [("yes", "y"), ("YES", "ok")] * 6])
def test_one_answer_is_right_for_all(golds: list[Any]) -> None:
    with pytest.raises(GateError, match="the right answer is 'yes' for all 12 items"):
        gates.check_labels(generated("exact", golds))


@pytest.mark.parametrize("scorer", ["exact", "rouge_l"])
@pytest.mark.parametrize("gold", ["-1", "-1 ", ("-1",), -1])
def test_minus_one_as_text_is_no_label(scorer: str, gold: Any) -> None:
    with pytest.raises(GateError, match=r"3 of 3 items have no label"):
        gates.check_labels(generated(scorer, [gold] * 3))
    gates.check_labels(generated(scorer, ["-1", "2", "3"]))


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint8, torch.tensor])
def test_numbers_of_numpy_and_torch_are_labels(kind: Any) -> None:
    items = tuple(Item(item.prompt, item.choices, kind(item.gold)) for item in choices())
    assert [item.id for item in items] == [Item(i.prompt, i.choices, i.gold).id for i in choices()]
    gates.check_labels(task(items))
    assert Item("q", gold=np.array(["a", "b"])).gold == Item("q", gold=["a", "b"]).gold == ("a", "b")  # type: ignore


def test_unlabelled_rows_of_a_table() -> None:
    rows = [{"q": f"question {i}", "l": label} for i, label in enumerate([0, 1, 1, 0])]
    for bad in (-1, "-1", "-1.0", -1.0, float("nan"), None, "", np.int64(-1), np.float64("nan")):
        for options in ({"choices": ["no", "yes"]}, {"scorer": "classify"}):
            made = task_from_dataset([*rows, {"q": "one more", "l": bad}], prompt="{q}?", gold="l", **options)
            with pytest.raises(GateError, match="1 of 5 items have no label"):
                gates.check_task(made)
    floats = [{**row, "l": float(row["l"])} for row in rows]
    for options in ({"choices": ["no", "yes"]}, {"scorer": "classify"}):
        assert [i.gold for i in task_from_dataset(floats, prompt="{q}", gold="l", **options).items] == [0, 1, 1, 0]


def test_a_shot_that_nearly_repeats_an_item_is_told() -> None:
    items = choices(length=40)
    near = Item("Indeed " + items[3].prompt, items[3].choices[::-1], 1, id="near")
    (warning,) = gates.check_task(task(items, shots=(near, Item("another", ("a", "b"), 0))))
    assert warning == "1 of 2 shots nearly repeat a scored item (first: near repeats q3)"


def test_references_that_rouge_cannot_read() -> None:
    gates.check_labels(generated("rouge_l", ["caf\u00e9", ("\u6771\u4eac", "Tokyo")]))
    with pytest.raises(GateError, match="item q1: the right answer '\u6771\u4eac' holds no ASCII letter"):
        gates.check_labels(generated("rouge_l", ["Tokyo", "\u6771\u4eac"]))


NLI = tuple(Item(words(i, 8), ("no", "yes"), int(i % 20 < 8), id=f"q{i}") for i in range(40))  # 24 no, 16 yes


def answered(items: tuple[Item, ...], said: Any) -> list[Row]:
    return [Row(i.id, float(said(i) == i.gold), i.choices[said(i)], logprobs=(-1.0, -2.0)) for i in items]


def test_a_constant_predictor_is_told_with_its_histogram_and_the_baseline() -> None:
    given = task(NLI)
    (warning,) = gates.check_rows(given, answered(NLI, lambda item: 0))
    assert warning == (
        "constant answers: 40 of 40 are 'no' ('no' 40, 'yes' 0), which is right for 24; the score 0.600 equals the "
        "majority baseline 0.600 ('no' is right for 24); chance 0.500"
    )
    (warning,) = gates.check_rows(given, answered(NLI, lambda item: int(item.id != "q1")))
    assert warning.startswith("constant answers: 39 of 40 are 'yes' ('yes' 39, 'no' 1), which is right for 16; the ")
    assert "score 0.375 beside the majority baseline 0.600 ('no' is right for 24)" in warning


@pytest.mark.parametrize("said", [lambda item: item.gold, lambda item: int(item.id in ("q1", "q2", "q3"))])
def test_mixed_answers_are_not_constant(said: Any) -> None:
    assert gates.check_rows(task(NLI), answered(NLI, said)) == []


def test_a_constant_answer_where_the_gold_is_nearly_constant() -> None:
    items = tuple(replace(item, gold=int(n < 2)) for n, item in enumerate(NLI))
    assert gates.check_rows(task(items), answered(items, lambda item: 0)) == []
    assert gates.check_rows(task(NLI), answered(NLI[:9], lambda item: 0)) == []  # too few to say


def test_a_sample_of_one_class_is_told() -> None:
    part = tuple(item for item in NLI if item.gold == 0)
    (warning,) = gates.check_rows(task(NLI), answered(part, lambda item: 0))
    assert warning == "the right answer is 'no' for all 24 items that were measured: always saying so scores 1"


@pytest.mark.parametrize(
    ("scorer", "golds", "said", "label"),
    [
        ("exact", ["1", "2", "3"], "", "''"),
        ("exact", [("1", "one"), "2", "3"], " Seven.\nmore", "'seven'"),
        ("regex", [r"\d", r"[a-c]"], "x", "'x'"),
        ("rouge_l", ["the cat", "a dog"], "the the", "'the the'"),
        ("refusal", ["refuse", "comply"], "I'm sorry, but no.", "'refuse'"),
        ("classify", [0, 1, 2], "spam", "'class 1'"),
    ],
)
def test_constant_answers_of_every_kind(scorer: str, golds: list[Any], said: str, label: str) -> None:
    given = generated(scorer, golds * 8)
    rows = [Row(item.id, 0.0, said, logprobs=(-2.0, -1.0, -3.0)) for item in given.items]
    (warning,) = gates.check_constant(given, rows)
    assert f"constant answers: {len(rows)} of {len(rows)} are {label}" in warning
    mixed = [replace(row, prediction=f"{n}", logprobs=(-1.0, -n % 3 - 2.5)) for n, row in enumerate(rows)]
    if scorer != "refusal":
        assert gates.check_constant(given, mixed) == []


def test_answers_that_begin_alike_are_not_constant() -> None:
    given = generated("callable", [str(n) for n in range(20)])
    begun = [Row(i.id, 0.0, f"Let us think.\nIt is {i.gold}.") for i in given.items]
    assert gates.check_constant(given, begun) == []
    (warning,) = gates.check_constant(given, [replace(row, prediction="Let us\nthink.") for row in begun])
    assert "20 of 20 are 'let us think.'" in warning


def test_places_are_counted_where_choices_differ() -> None:
    items = tuple(Item(words(i, 8), (words(i, 2), words(i, 3)), i % 2, id=f"q{i}") for i in range(20))
    (warning,) = gates.check_constant(task(items), answered(items, lambda item: 1))
    assert "20 of 20 are 'choice 2' ('choice 2' 20, 'choice 1' 0)" in warning
    assert gates.check_constant(generated("callable", [None] * 20), rows([()] * 20)) == []


def test_identical_outputs_among_many_models() -> None:
    def model(seed: int) -> dict[str, list[Row]]:
        rng = random.Random(seed)
        return {"t": [Row(f"q{i}", 1.0, "a", logprobs=(rng.random(), rng.random())) for i in range(8)]}

    outputs = {"step1": model(1), "step2": model(2), "step3": model(3), "main": model(3)}
    weights = {"step1": "a", "step2": "b", "step3": "c", "main": "c"}
    gates.check_identical(outputs, weights)
    wrong = {**outputs, "tuned 342k": model(2), "tuned main": model(2)}
    hashes = {**weights, "tuned 342k": "d", "tuned main": "e"}
    with pytest.raises(GateError, match=r"models 'step2', 'tuned 342k' and 'tuned main' have different weights.*all 8"):
        gates.check_identical(wrong, hashes)
    gates.check_identical({**outputs, "other task": {"u": model(2)["t"]}}, {**weights, "other task": "f"})
    gates.check_identical({}, {})


class Letters:
    """A tokenizer with a token a letter."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_labels_that_begin_with_one_token() -> None:
    def labels(*texts: str) -> Task:
        return task(tuple(Item(words(i, 8), texts, i % 2, id=f"q{i}") for i in range(4)))

    without, with_ = gates.check_first_tokens(labels("neutral", "no", "yes"), Letters())
    assert without.startswith("the labels 'neutral', 'no' begin with the same token without a blank in front")
    assert with_.startswith("the labels 'neutral', 'no', 'yes' begin with the same token with a blank in front")
    differing = tuple(Item(words(i, 8), (f"a{i}", f"a {i}"), i % 2, id=f"q{i}") for i in range(4))
    assert gates.check_first_tokens(task(differing), Letters()) == []
