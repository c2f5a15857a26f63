"""Formats that name columns, numbers as labels, entries of lists, pinned data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import Format, Item, Task, gates, hub, task_from_dataset, variant
from catchment.capabilities.prompts import render
from catchment.capabilities.sources import task_from_yaml
from catchment.errors import GateError, InputError, TaskError

ROWS = [{"premise": f"It is {n}.", "hypothesis": f"{{prompt}} {n}", "label": n % 3} for n in range(6)]
FORMATS = (
    {"name": "default", "template": "### Input_1: {premise}\n ### Input_2: {hypothesis}\n ### Inference:"},
    {"name": "io", "template": "{hypothesis} {premise}", "separator": ""},
    {"name": "plain", "template": "{prompt} So"},
)
NLI: dict[str, Any] = {
    "prompt": "{premise} {hypothesis}", "choices": ["entailment", "neutral", "contradiction"], "gold": "label",
}  # fmt: skip


def nli(formats: Any = FORMATS, rows: Any = ROWS, **options: Any) -> Task:
    return task_from_dataset(rows, name="nli", formats=list(formats), **NLI, **options)


def test_formats_order_the_columns_of_one_item() -> None:
    task = nli(shots=1)
    item = next(i for i in task.items if i.prompt.startswith("It is 2."))
    assert [form.fill(item) for form in task.formats] == [
        "### Input_1: It is 2.\n ### Input_2: {prompt} 2\n ### Inference:",
        "{prompt} 2 It is 2.",
        "It is 2. {prompt} 2 So",
    ]
    text = render(None, task, item, task.formats[1], None, None)
    shot = task.shots[0]
    assert shot.columns.keys() == {"premise", "hypothesis"}
    assert text == f"{shot.columns['hypothesis']} {shot.prompt[:8]}{shot.choices[shot.gold]}\n\n{{prompt}} 2 It is 2."  # type: ignore[index]


def test_an_item_is_one_under_all_formats_and_the_hash_knows_its_columns() -> None:
    plain, named = nli(FORMATS[2:]), nli()
    assert [i.id for i in plain.items] == [i.id for i in named.items]
    assert plain.items[0].columns == {}
    other = replace(named, items=tuple(replace(i, columns={**i.columns, "premise": "It"}) for i in named.items))
    assert other.hash() != named.hash()
    bare = replace(named, items=plain.items)
    assert bare.hash() != named.hash()


def test_a_template_needs_the_prompt_or_a_column() -> None:
    for template in ("nothing", "{text}", "{prompt} {prompt}", "{premise} {prompt} {prompt}"):
        with pytest.raises(TaskError, match=r"expected '\{prompt\}' exactly once"):
            nli([FORMATS[0], template])
    with pytest.raises(TaskError, match=r"exactly once, or some of premise, hypothesis\."):
        nli([FORMATS[0], "{text}"])


def test_literal_braces_and_filled_texts_stay() -> None:
    item = Item("p {choices}", ("{prompt}", "b"), 0)
    assert Format("f", "{x} {prompt}\n{choices}").fill(item) == "{x} p {choices}\nA. {prompt}\nB. b"


def test_yaml_with_columns_and_a_pool(tmp_path: Path) -> None:
    import json

    for name in ("a", "b"):
        rows = [{**row, "premise": f"{name}: {row['premise']}"} for row in ROWS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "t.yaml").write_text(
        "dataset: a.jsonl\nshots_from: b.jsonl\nprompt: '{premise} {hypothesis}'\nstyle: continue\n"
        "choices: [entailment, neutral, contradiction]\ngold: label\nformats:\n"
        "- {name: default, template: '1: {premise} 2: {hypothesis} Inference:'}\n", "utf-8")  # fmt: skip
    task = variant(task_from_yaml(tmp_path / "t.yaml"), shots=2)
    assert [task.formats[0].fill(shot)[:4] for shot in task.shots] == ["1: b", "1: b"]
    assert gates.check_task(task) == []


def scored(values: list[Any], **options: Any) -> Task:
    rows = [{"a": f"text {n}", "score": value} for n, value in enumerate(values)]
    return task_from_dataset(rows, prompt="{a}?", choices=["no", "yes"], gold="score", gold_above=3.5, **options)


def test_a_number_above_a_limit_is_the_second_choice() -> None:
    task = scored([0.0, 3.5, 3.6, "4.2", 5])
    assert [item.gold for item in task.items] == [0, 0, 1, 1, 1]
    for bad in (-1, -1.0, "-1.0", None, "", float("nan")):
        with pytest.raises(GateError, match="1 of 3 items have no label"):
            gates.check_labels(scored([1.0, 4.0, bad]))
    with pytest.raises(TaskError, match=r"gold is 'high'; expected a number to compare with gold_above 3.5"):
        scored(["high"])


def test_a_limit_needs_two_choices_and_a_number() -> None:
    rows = [{"q": "x", "l": 1}]
    with pytest.raises(TaskError, match=r"gold_above 1 with the choices \['a', 'b', 'c'\]; expected 2"):
        task_from_dataset(rows, prompt="q", choices=["a", "b", "c"], gold="l", gold_above=1)
    for options in ({"choices": ["a", "b"], "gold": "l", "gold_above": "1"}, {"answer": "l", "gold_above": 1}):
        with pytest.raises(InputError, match=r"gold_above is .*; expected a number, beside choices and gold"):
            task_from_dataset(rows, prompt="q", **options)


def test_an_entry_of_a_column_that_holds_a_list() -> None:
    rows = [{"tweet": "t", "answers": ["first", "second"], "question": "why?"}]
    task = task_from_dataset(rows, prompt="{tweet} {answers[0]}", answer="question")
    assert task.items[0].prompt == "t first"
    for template in ("{answers[2]}", "{tweet[0]}"):
        with pytest.raises(TaskError, match=r"names an entry of .*; expected a list of more than \d values"):
            task_from_dataset(rows, prompt=template, answer="question")


def test_a_revision_of_a_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []
    made = datasets.Dataset.from_list([{"q": f"{n}", "a": "x"} for n in range(3)])
    monkeypatch.setattr(hub, "no_hub", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: asked.append((given, named)) or made)
    task_from_dataset("owner/name", prompt="{q}?", answer="a", revision="refs/convert/parquet")
    assert asked == [(("owner/name", None), {"split": "validation", "revision": "refs/convert/parquet"})]
    (tmp_path / "t.csv").write_text("q,a\nx,y\n", "utf-8")
    for dataset in (str(tmp_path / "t.csv"), str(tmp_path), made):
        with pytest.raises(InputError, match="revision 'v1' of rows that are here"):
            task_from_dataset(dataset, prompt="q", answer="a", revision="v1")
