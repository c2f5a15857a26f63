"""Outputs that are not finite: an error at a model's own weights, a flagged 0 for exactly these items elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from catchment.capabilities import (
    CONTINUE,
    NON_FINITE,
    Engine,
    Item,
    Prepared,
    Task,
    agreement,
    non_finite_note,
    prepare,
    run,
)
from catchment.capabilities.engine import Prefix
from catchment.capabilities.generation import generate
from catchment.errors import NonFiniteError, TaskError
from catchment.records import Row
from tests import tiny

MARK = "~"
NOUNS = ("cat", "dog", "garden ~", "stone", "warm door", "old city and the big dog")
SICK = NOUNS.index("garden ~")


def _task(scorer: str, choices: tuple[str, ...] = (), gold: Any = None, **options: Any) -> Task:
    items = tuple(Item(f"The capital of the {noun} is", choices, gold, id=noun) for noun in NOUNS)
    return Task(scorer, items, scorer, CONTINUE, "continue", max_new_tokens=6, stop=(), **options)


TASKS = {
    "choice": _task("choice", (" Rome", " Paris", " a small dog"), 0),
    "exact": _task("exact", gold="Rome"),
    "regex": _task("regex", gold=".*a.*"),  # no right answer is known, so none is scored beside the generation
    "text": _task("text"),
}
WAYS = [pytest.param(name, packed, id=f"{name}-{'packed' if packed else 'plain'}")
        for name in TASKS for packed in (True, False) if packed or name != "text"]  # fmt: skip


def engine_of(model: Any, tokenizer: Any, packed: bool = True) -> Engine:
    return Engine(model, tokenizer, packed=packed, batch_tokens=64)


def prepared_of(tokenizer: Any, task: Task, names: Sequence[str] = NOUNS) -> Prepared:
    return prepare(tokenizer, task, items=[item for item in task.items if item.id in names], context=256)


@contextmanager
def broken(model: Any, tokenizer: Any, value: float = math.nan, *, rows: str = "own") -> Iterator[None]:
    """The logits of every text with the marked token are ``value``; ``rows="all"``: of all texts beside it too."""
    token = tokenizer(MARK, add_special_tokens=False)["input_ids"][0]

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        sick = (kwargs["input_ids"] == token).any(dim=1)
        output.logits[sick if rows == "own" or not sick.any() else ...] = value

    handle = model.register_forward_hook(spoil, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def flagged(rows: Sequence[Row]) -> list[str]:
    return [row.item for row in rows if NON_FINITE in row.flags]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "packed"), WAYS)
def test_exactly_the_item_is_isolated(tokenizer: Any, llama: Any, name: str, packed: bool, value: float) -> None:
    """Its row is a flagged 0; those of the others in its batch are bit for bit what they were."""
    prepared, engine = prepared_of(tokenizer, TASKS[name]), engine_of(llama, tokenizer, packed)
    healthy = {row.item: row for row in run(engine, prepared)}
    with broken(llama, tokenizer, value):
        rows = {row.item: row for row in run(engine, prepared, non_finite="isolate")}
    assert engine.packed == packed or name == "text"
    assert rows.pop(NOUNS[SICK]) == Row(NOUNS[SICK], 0.0, "", (), None, (NON_FINITE,))
    assert rows == {item: row for item, row in healthy.items() if item != NOUNS[SICK]}


@pytest.mark.parametrize(("name", "packed"), WAYS)
def test_the_others_are_scored_as_without_the_item(tokenizer: Any, llama: Any, name: str, packed: bool) -> None:
    others = [noun for k, noun in enumerate(NOUNS) if k != SICK]
    without = {r.item: r for r in run(engine_of(llama, tokenizer, packed), prepared_of(tokenizer, TASKS[name], others))}
    with broken(llama, tokenizer):
        engine = engine_of(llama, tokenizer, packed)
        rows = {r.item: r for r in run(engine, prepared_of(tokenizer, TASKS[name]), non_finite="isolate")}
    for noun in others:
        assert rows[noun].logprobs == pytest.approx(without[noun].logprobs, abs=1e-4)
        for part in ("score", "prediction", "flags"):
            assert getattr(rows[noun], part) == pytest.approx(getattr(without[noun], part), abs=1e-5)


def test_the_check_of_the_layout_does_not_trip_over_the_item(tokenizer: Any, llama: Any) -> None:
    """It is made with the tokens of the longest prompt. What is not finite either way says nothing of the layout."""
    items = tuple(Item(f"{begin} dog is", (" here", " there"), 0) for begin in ("The", "The big ~ old cat and the"))
    engine = engine_of(llama, tokenizer)
    with broken(llama, tokenizer):
        rows = run(engine, prepare(tokenizer, Task("t", items, "choice", CONTINUE, "continue")), non_finite="isolate")
    assert flagged(rows) == [items[1].id]
    assert engine.checked
    assert engine.packed
    assert engine.notes == []


@pytest.mark.parametrize(("name", "packed"), WAYS)
def test_the_item_alone(tokenizer: Any, llama: Any, name: str, packed: bool) -> None:
    prepared = prepared_of(tokenizer, TASKS[name], [NOUNS[SICK]])
    with broken(llama, tokenizer):
        assert flagged(run(engine_of(llama, tokenizer, packed), prepared, non_finite="isolate")) == [NOUNS[SICK]]


@pytest.mark.parametrize(("name", "packed"), WAYS)
def test_without_isolation_it_is_an_error_that_names_the_item(
    tokenizer: Any, llama: Any, name: str, packed: bool
) -> None:
    for names in (NOUNS, [NOUNS[SICK]]):
        with broken(llama, tokenizer), pytest.raises(NonFiniteError, match=r"item garden ~: .*expected finite numbers"):
            run(engine_of(llama, tokenizer, packed), prepared_of(tokenizer, TASKS[name], names))


@pytest.mark.parametrize("name", ["choice", "exact", "regex"])
def test_items_that_another_one_spoils_in_its_batch_are_scored_alone(tokenizer: Any, llama: Any, name: str) -> None:
    """As where activations of a whole batch share one scale."""
    engine = engine_of(llama, tokenizer)
    prepared = prepared_of(tokenizer, TASKS[name])
    healthy = {row.item: row for row in run(engine, prepared)}
    with broken(llama, tokenizer, rows="all"):
        rows = run(engine, prepared, non_finite="isolate")
    assert flagged(rows) == [NOUNS[SICK]]
    for row in rows:
        if row.item != NOUNS[SICK]:
            assert row.prediction == healthy[row.item].prediction
            assert row.logprobs == pytest.approx(healthy[row.item].logprobs, abs=1e-4)


def test_a_token_of_a_shared_row_that_is_not_finite_spoils_its_item_only(tokenizer: Any) -> None:
    """Attention to masked columns is 0, but 0 * NaN is NaN; the others keep their rows bit for bit all the same."""
    llama = tiny.tiny_llama()
    prepared, engine = prepared_of(tokenizer, TASKS["choice"]), engine_of(llama, tokenizer)
    healthy = {row.item: row for row in run(engine, prepared)}
    with torch.no_grad():
        llama.get_input_embeddings().weight[tokenizer(MARK, add_special_tokens=False)["input_ids"][0]] = math.nan
    rows = {row.item: row for row in run(engine, prepared, non_finite="isolate")}
    assert engine.packed
    assert flagged(list(rows.values())) == [NOUNS[SICK]]
    assert {item: rows[item] for item in NOUNS if item != NOUNS[SICK]} == {
        item: row for item, row in healthy.items() if item != NOUNS[SICK]
    }
    with pytest.raises(NonFiniteError, match=r"item garden ~: "):
        run(engine, prepared)


@pytest.mark.parametrize("packed", [True, False])
def test_a_token_in_the_middle_of_an_answer(tokenizer: Any, llama: Any, packed: bool) -> None:
    """What follows a token that only one answer holds is not finite; prompts and the other answers are."""
    engine, prepared = engine_of(llama, tokenizer, packed), prepared_of(tokenizer, TASKS["regex"])
    healthy = {row.item: row for row in run(engine, prepared)}
    said = {
        e.item.id: generate(engine, Prefix(0), [e.prompt], max_new_tokens=6, stop=())[0].ids for e in prepared.encoded
    }
    victim, token = next(
        (item, token)
        for item, ids in said.items()
        for token in ids[1:-1]
        if sum(token in others for others in said.values()) == 1
    )

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if kwargs["input_ids"].shape[1] == 1:
            output.logits[kwargs["input_ids"][:, 0] == token] = math.nan

    handle = llama.register_forward_hook(spoil, with_kwargs=True)
    try:
        rows = {row.item: row for row in run(engine, prepared, non_finite="isolate")}
        with pytest.raises(NonFiniteError, match=victim):
            run(engine, prepared)
    finally:
        handle.remove()
    assert rows.pop(victim) == Row(victim, 0.0, "", (), None, (NON_FINITE,))
    assert rows == {item: row for item, row in healthy.items() if item != victim}


def test_a_token_that_is_ruled_out_is_no_broken_output(tokenizer: Any, llama: Any) -> None:
    """Some models give minus infinity to tokens that are never to be said."""
    token = tokenizer(MARK, add_special_tokens=False)["input_ids"][0]

    def rule_out(module: Any, args: Any, output: Any) -> None:
        output.logits[..., token] = -math.inf

    handle = llama.register_forward_hook(rule_out)
    try:
        for packed in (True, False):
            engine = engine_of(llama, tokenizer, packed)
            rows = run(engine, prepared_of(tokenizer, TASKS["regex"]))
            assert flagged(rows) == []
            assert engine.packed == packed
    finally:
        handle.remove()


def test_a_function_is_not_asked_about_an_answer_that_is_none(tokenizer: Any, llama: Any) -> None:
    said = []

    def judge(item: Item, answer: str) -> float:
        said.append(item.id)
        return 1.0

    task = _task("callable", function=judge)
    with broken(llama, tokenizer):
        rows = run(engine_of(llama, tokenizer), prepared_of(tokenizer, task), non_finite="isolate")
    assert flagged(rows) == [NOUNS[SICK]]
    assert sorted(said) == sorted(noun for noun in NOUNS if noun != NOUNS[SICK])


def test_an_error_of_a_function_is_never_isolated(tokenizer: Any, llama: Any) -> None:
    def judge(item: Item, answer: str) -> float:
        raise ZeroDivisionError

    with pytest.raises(TaskError, match="ZeroDivisionError"):
        run(
            engine_of(llama, tokenizer), prepared_of(tokenizer, _task("callable", function=judge)), non_finite="isolate"
        )


def test_rows_that_were_done_are_not_returned_again(tokenizer: Any, llama: Any) -> None:
    prepared, engine = prepared_of(tokenizer, TASKS["choice"]), engine_of(llama, tokenizer)
    seen: list[Row] = []
    with broken(llama, tokenizer):
        whole = run(engine, prepared, non_finite="isolate")
        part = run(
            engine, prepared, non_finite="isolate", done=set(NOUNS[:SICK]), on_rows=lambda rows, _: seen.extend(rows)
        )
    assert part == seen == [row for row in whole if row.item not in NOUNS[:SICK]]
    assert flagged(part) == [NOUNS[SICK]]


def test_agreement_refuses_a_base_that_says_nothing(tokenizer: Any) -> None:
    base, tuned = tiny.tiny_llama(), tiny.tiny_llama()
    prompts = [item.prompt for item in TASKS["text"].items]
    with broken(base, tokenizer), pytest.raises(NonFiniteError, match="largest logit of a token of the answer"):
        agreement(base, tuned, prompts, tokenizer=tokenizer, batch_tokens=64)


def test_the_note_counts() -> None:
    row = Row("a", 0.0, "")
    assert non_finite_note([row]) is None
    assert non_finite_note([row, Row("b", 0.0, "", flags=(NON_FINITE,))]) == (
        "1 of 2 outputs are not finite; they count as 0"
    )
