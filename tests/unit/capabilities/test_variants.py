"""Variants of a task: other shots, other scorers, and the very same task where nothing is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import Item, Task, task_from_dataset, variant
from catchment.capabilities.prompts import render
from catchment.capabilities.sources import task_from_yaml
from catchment.errors import GateError, InputError, TaskError
from tests.unit.capabilities.test_gates import words

LABELS = ("no", "yes")


def choice(n: int, prefix: str, length: int = 6) -> tuple[Item, ...]:
    return tuple(
        Item(f"{prefix} {words(1000 * len(prefix) + i, length)}", LABELS, i % 2, id=f"{prefix}{i}") for i in range(n)
    )


TASK = Task("t", choice(12, "scored"), "choice", pool=choice(30, "pool"))
SHOWN = replace(TASK, shots=choice(3, "own"))


@pytest.mark.parametrize("given", [TASK, SHOWN])
def test_nothing_asked_is_the_very_same_task(given: Task) -> None:
    own = len(given.shots)
    for same in (variant(given), variant(given, shots=own), variant(given, shots=own, scorer="choice")):
        assert same is given
    assert variant(replace(given, pool=())).hash() == given.hash()  # where shots could come from decides no score


def test_shots_are_drawn_by_the_seed_and_fewer_are_among_more() -> None:
    eight = variant(TASK, shots=8, shot_seed=3)
    assert len({shot.id for shot in eight.shots}) == 8
    assert {shot.id for shot in eight.shots} <= {item.id for item in TASK.pool}
    assert variant(TASK, shots=2, shot_seed=3).shots == eight.shots[:2]
    assert variant(TASK, shots=8, shot_seed=3, pool=TASK.pool[::-1]).hash() == eight.hash()
    assert variant(TASK, shots=8, shot_seed=4).shots != eight.shots
    assert eight.hash() != TASK.hash()
    assert variant(eight, shots=0).hash() == TASK.hash()


def test_the_shots_stand_before_every_item() -> None:
    shown = variant(TASK, shots=1)
    text = render(None, shown, shown.items[0], shown.formats[0], None, None)
    assert text.startswith(f"Question: {shown.shots[0].prompt}\nAnswer: {LABELS[shown.shots[0].gold]}\n\n")  # type: ignore


@pytest.mark.parametrize(
    "copy",
    [
        lambda item: item,
        lambda item: Item(item.prompt.upper() + " ?", item.choices, item.gold),
        lambda item: Item(item.prompt.replace(" ", "\u00a0"), LABELS[::-1], 1),
        lambda item: Item("Indeed " + item.prompt, item.choices, item.gold),
    ],
)
def test_a_shot_that_repeats_a_scored_item_is_drawn_again(copy: Any) -> None:
    scored = choice(12, "scored", 40)
    pool = (*map(copy, scored), *choice(3, "fresh", 40))
    task = Task("t", scored, "choice", pool=pool)
    for seed in range(5):
        assert {shot.id for shot in variant(task, shots=3, shot_seed=seed).shots} == {"fresh0", "fresh1", "fresh2"}
    with pytest.raises(GateError, match="4 shots wanted, but only 3 of the 15 items of the pool"):
        variant(task, shots=4)


def test_a_shot_is_drawn_once_and_has_an_answer() -> None:
    one = Item("What is 1 + 1?", LABELS, 1)
    pool = (one, replace(one, id="again"), Item("unlabelled", LABELS, -1), Item("none", LABELS, None))
    assert variant(TASK, shots=1, pool=pool).shots[0].prompt == one.prompt
    with pytest.raises(GateError, match="2 shots wanted, but only 1 of the 4"):
        variant(TASK, shots=2, pool=pool)


def test_without_a_pool_the_first_of_the_own_shots() -> None:
    shown = replace(SHOWN, pool=())
    assert [shot.id for shot in variant(shown, shots=2).shots] == ["own0", "own1"]
    for bad in ({"shots": 4}, {"shots": 2, "shot_seed": 1}):
        with pytest.raises(InputError, match=f"shots {bad['shots']}, .*has 3 shots of its own and no pool.*shot_split"):
            variant(shown, **bad)


@pytest.mark.parametrize("bad", [{"shots": -1}, {"shots": True}, {"shots": 1.5}, {"shots": 1, "shot_seed": "a"}])
def test_numbers_that_are_none(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a whole number"):
        variant(TASK, **bad)


def test_pool_and_seed_concern_nobody_where_the_shots_are_the_own() -> None:
    assert variant(SHOWN, pool=TASK.pool, shot_seed=3) is SHOWN


def test_shots_that_stand_in_the_items_cannot_be_changed() -> None:
    within = replace(TASK, shots_within=5)
    assert variant(within, shots=5) is within
    for shots in (0, 2):
        with pytest.raises(InputError, match=rf"its 5 shots stand in its items.*lm-eval:NAME:{shots}"):
            variant(within, shots=shots)


def test_scorers_of_choices() -> None:
    for scorer in ("choice_per_token", "choice_per_byte"):
        changed = variant(TASK, scorer=scorer)
        assert (changed.scorer, changed.items) == (scorer, TASK.items)
        assert variant(changed, scorer="choice").hash() == TASK.hash()


def generated(scorer: str, *items: Item) -> Task:
    return Task("g", items, scorer)


def test_scorers_of_generated_answers() -> None:
    exact = generated("exact", Item("2 + 2?", gold=("4", "four (4)")), Item("3 + 3?", gold="6"))
    assert variant(exact, scorer="rouge_l").items == exact.items
    pattern = variant(exact, scorer="regex")
    assert [item.id for item in pattern.items] == [item.id for item in exact.items]
    assert pattern.items[0].gold == r"4|four\ \(4\)"
    back = variant(pattern, scorer="exact")
    assert [item.gold for item in back.items] == ["4", "6"]
    with pytest.raises(InputError, match="has a pattern and no answer"):
        variant(generated("regex", Item("2 + 2?", gold=r"\d")), scorer="exact")


@pytest.mark.parametrize(
    ("scorer", "wanted", "reason"),
    [
        ("choice", "exact", "scored by 'choice', and so by choice_per_token or choice_per_byte"),
        ("exact", "choice", "scored by 'exact', and so by regex or rouge_l"),
        ("refusal", "exact", "no other scorer than 'refusal'"),
        ("text", "choice", "no other scorer than 'text'"),
        ("choice", "rogue_l", "unknown scorer 'rogue_l'.*Did you mean 'rouge_l'"),
    ],
)
def test_scorers_of_another_kind(scorer: str, wanted: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        variant(replace(TASK, scorer=scorer), scorer=wanted)


def rows(n: int, prefix: str) -> list[dict[str, Any]]:
    return [{"q": f"{prefix} {i}", "label": i % 2} for i in range(n)]


def test_a_data_set_keeps_a_pool_of_rows_that_are_not_scored() -> None:
    splits = {"validation": rows(8, "scored"), "train": rows(1500, "train")}
    options: dict[str, Any] = {"prompt": "{q}?", "choices": list(LABELS), "gold": "label", "shot_split": "train"}
    bare = task_from_dataset(splits, **options)
    assert (len(bare.items), len(bare.shots), len(bare.pool)) == (8, 0, 1000)
    shown = task_from_dataset(splits, shots=2, **options)
    assert {item.id for item in shown.pool} == {item.id for item in bare.pool}
    four = variant(bare, shots=4, shot_seed=1)
    assert all(shot.prompt.startswith("train ") for shot in four.shots)
    assert variant(shown, shots=4, shot_seed=1).hash() == four.hash()


def test_yaml_files_name_where_shots_come_from(tmp_path: Path) -> None:
    for name, prefix in (("a.csv", "scored"), ("b.csv", "other")):
        lines = [f"{prefix} {i},{i % 2}" for i in range(12)]
        (tmp_path / name).write_text("\n".join(["q,label", *lines]), "utf-8")
    head = "dataset: a.csv\nprompt: '{q}?'\nchoices: ['no', 'yes']\ngold: label\n"
    (tmp_path / "t.yaml").write_text(head + "shots_from: b.csv\n", "utf-8")
    task = task_from_yaml(tmp_path / "t.yaml")
    assert (len(task.items), len(task.pool), task.shots) == (12, 12, ())
    assert all(shot.prompt.startswith("other") for shot in variant(task, shots=3).shots)
    for name in ("c", "d"):
        lines = [f'{{"prompt": "{name} {i}", "answer": "{i}"}}' for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "f.yaml").write_text("file: c.jsonl\nscorer: rouge_l\nshots_from: d.jsonl\n", "utf-8")
    assert [shot.prompt[0] for shot in variant(task_from_yaml(tmp_path / "f.yaml"), shots=2).shots] == ["d", "d"]
    (tmp_path / "bad.yaml").write_text(head + "shots_from: 3\n", "utf-8")
    with pytest.raises(TaskError, match="'shots_from' is 3; expected a text"):
        task_from_yaml(tmp_path / "bad.yaml")
