"""The grid of a study: how many cells, what they are called, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import Task
from catchment.commands.study import questions
from catchment.commands.study.many import names_of
from catchment.commands.study.standing import Unit, cell_of
from catchment.errors import InputError, TaskError
from tests.unit.commands.study.grids import design, write_grid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tasks and rows, and no model: a grid is read without one."""
    choices = ["red", "blue", "green"]
    words = ["tall", "small", "warm", "cold", "fast", "slow", "old", "new"]
    items = [
        {"prompt": f"echo {i}: a {words[i % 8]} {words[(3 * i + 1) % 8]} thing is", "choices": choices, "gold": i % 3}
        for i in range(40)
    ]
    (tmp_path / "echo.jsonl").write_text("\n".join(map(json.dumps, items)))
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(4) for b in range(4)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_grid_is_the_product_of_its_axes(folder: Path) -> None:
    grid = design(write_grid(folder, models=[{"model": "m-{revision}", "revisions": [1000, "main"], "name": "m"}]))
    units = [unit for place in grid.places for unit in grid.units(place)]
    cells = {cell_of(unit, question) for unit in units for question in grid.questions}
    # 2 checkpoints x (base + 2 methods x 2 seeds) x 1 task x 2 formats
    assert len(cells) == 2 * (1 + 2 * 2) * 2
    assert {cell.revision for cell in cells} == {"1000", "main"}
    assert {cell.tuning for cell in cells} == {"base", "sums full", "sums lora"}
    assert {cell.seed for cell in cells} == {None, 0, 1}
    assert [place.spec for place in grid.places] == ["m-1000", "m-main"]


def test_a_value_more_adds_cells_and_changes_none(folder: Path) -> None:
    def cells(**changes: Any) -> set[Any]:
        grid = design(write_grid(folder, **changes))
        return {cell_of(u, q) for place in grid.places for u in grid.units(place) for q in grid.questions}

    few, many = cells(), cells(seeds=[0, 1, 2])
    assert few < many
    assert {cell.seed for cell in many - few} == {2}


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"method": "full"}, ["sums"]),
        ({"method": ["full", "sift"]}, ["sums full", "sums sift"]),
        ({"method": "full", "learning_rate": [1e-4, 0.001]}, ["sums lr=0.0001", "sums lr=0.001"]),
        ({"method": "lora", "method_args": [{"r": 4}, {"r": 8}]}, ["sums r=4", "sums r=8"]),
    ],
)
def test_labels_say_what_differs(folder: Path, changes: dict[str, Any], labels: list[str]) -> None:
    tuning = {"name": "sums", "data": "sums.jsonl", "max_steps": 3, **changes}
    assert [recipe.label for recipe in design(write_grid(folder, tunings=[tuning])).recipes] == labels


def test_entries_of_one_name_are_told_apart(folder: Path) -> None:
    entries = [
        {"name": "sums", "data": "sums.jsonl", "method": "full", "learning_rate": [1e-4, 1e-3]},
        {"name": "sums", "data": "sums.jsonl", "method": "lora", "method_args": {"r": 4}},
    ]
    labels = [recipe.label for recipe in design(write_grid(folder, tunings=entries)).recipes]
    assert labels == ["sums full lr=0.0001", "sums full lr=0.001", "sums lora"]


def test_formats_of_a_task_and_the_default(folder: Path) -> None:
    grid = design(write_grid(folder, formats=["default", "bare"]))
    assert [question.format for question in grid.questions] == ["question", "bare"]
    assert [q.wanted for q in grid.questions] == [24, 24]


def _unreachable(resolve: Callable[[list[str]], list[Task]]) -> Callable[[list[str]], list[Task]]:
    def resolved(names: list[str]) -> list[Task]:
        if names[0].startswith("lm-eval:"):
            raise TaskError("its data set cannot be had: the hub cannot be reached.")
        return resolve(names)

    return resolved


def test_a_task_that_is_not_here_stays_in_the_grid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ["echo.jsonl", {"task": "lm-eval:far_task", "name": "far", "items": 500, "split": "test"}]
    monkeypatch.setattr(questions, "resolve_tasks", _unreachable(questions.resolve_tasks))
    grid = design(write_grid(folder, tasks=tasks, limit=None))
    far = next(question for question in grid.questions if question.name == "far")
    assert (far.task, far.status, far.wanted) == (None, "failed", 500)


FAR: dict[str, Any] = {"dataset": "owner/far", "name": "far", "prompt": "q", "choices": ["no", "yes"], "gold": "a"}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "none"))


@pytest.mark.usefixtures("no_hub")
def test_a_data_set_that_is_not_here_stays_in_the_grid(folder: Path) -> None:
    far = {**FAR, "items": 500, "split": "test", "note": "a note", "shot_split": "train"}
    grid = design(write_grid(folder, tasks=[far], limit=None, shots=[0, 3], scorers=["choice"]))
    there = [question for question in grid.questions if question.name == "far"]
    assert [(q.format, q.shots, q.scorer) for q in there] == [
        (form, shots, "choice") for shots in (0, 3) for form in ("question", "bare")
    ]
    assert {(q.task, q.status, q.wanted, q.split, q.notes) for q in there} == {
        (None, "failed", 500, "test", ("a note",))
    }
    assert {q.reason for q in there} == {"not in the cache of data sets, and HF_HUB_OFFLINE=1 forbids asking the hub"}


def test_a_task_written_out_is_the_task_of_its_file(folder: Path) -> None:
    (folder / "rows.csv").write_text("q,a\n" + "\n".join(f"which of {n}?,{n % 2}" for n in range(20)))
    written = {**FAR, "dataset": "rows.csv", "style": "continue", "formats": ["{prompt}", "{q} Well:"], "items": 3}
    (folder / "far.yaml").write_text(json.dumps({k: v for k, v in written.items() if k != "items"}))
    one = design(write_grid(folder, tasks=[written], limit=None)).questions
    other = design(write_grid(folder, tasks=["far.yaml"], limit=None)).questions
    assert [q.task.hash() for q in one if q.task] == [q.task.hash() for q in other if q.task]
    assert [(q.format, q.wanted, q.status) for q in one] == [("format 1", 20, "missing"), ("format 2", 20, "missing")]
    counted = design(write_grid(folder, tasks=[{**written, "formats": 3, "style": "ask"}], limit=None)).questions
    assert [q.format for q in counted] == ["question", "bare", "instructed"]


def test_an_unlabelled_task_is_not_read(folder: Path) -> None:
    far = {**FAR, "dataset": "none.csv", "unlabelled": "all -1", "items": 9}
    refused = design(write_grid(folder, tasks=[far, {"task": "none.jsonl", "unlabelled": "no"}], formats=1)).questions
    assert [(q.name, q.status, q.reason, q.wanted) for q in refused] == [
        ("far", "refused", "all -1", 9), ("none.jsonl", "refused", "no", 0),
    ]  # fmt: skip


def test_a_label_that_is_missing_is_seen_outside_the_sample(folder: Path) -> None:
    rows = [f"which of {n} things it is?,{n % 2 if n else -1}" for n in range(300)]
    (folder / "rows.csv").write_text("q,a\n" + "\n".join(rows))
    (question, _) = design(write_grid(folder, tasks=[{**FAR, "dataset": "rows.csv"}], limit=2)).questions
    assert all(item.gold != -1 for item in question.items)
    assert question.status == "refused"
    assert "1 of 300 items have no label" in question.reason


def test_a_task_whose_shots_are_not_here(folder: Path) -> None:
    task = {"task": "echo.jsonl", "shots_from": "none.jsonl"}
    (question, _) = design(write_grid(folder, tasks=[task], shots=2)).questions
    assert (question.name, question.shots, question.status) == ("echo", 2, "failed")
    assert question.reason.startswith("shots_from: no task file 'none.jsonl'")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": [{**FAR, "promt": "x"}]}, "tasks[0]: unknown key 'promt'. Did you mean 'prompt'?"),
        ({"tasks": [{**FAR, "unlabeled": "x"}]}, "tasks[0]: unknown key 'unlabeled'. Did you mean 'unlabelled'?"),
        ({"tasks": [{"datset": "owner/far"}]}, "tasks[0]: unknown key 'datset'. Did you mean 'dataset'?"),
        ({"tasks": [{**FAR, "task": "echo.jsonl"}]}, "tasks[0] has task and dataset; expected one of them"),
        ({"tasks": [{**FAR, "items": "many"}]}, "tasks[0]: items is 'many'"),
        ({"tasks": [{**FAR, "scorer": "chioce"}]}, "scorer 'chioce' cannot be used on rows"),
        ({"tasks": [{**FAR, "style": "chat"}]}, "tasks[0]: 'style' is 'chat'"),
        ({"tasks": [FAR], "scorers": ["rouge_l"]}, "task 'far' cannot be scored by 'rouge_l'"),
        ({"tasks": [FAR], "scorers": ["chioce"]}, "unknown scorer 'chioce'; expected one of"),
        ({"tasks": [FAR], "shots": 4}, "task 'far': 4 shots and no rows to draw them from"),
        ({"tasks": [FAR], "formats": ["bear"]}, "task 'far' has no format 'bear'"),
        ({"tasks": ["far.yaml"]}, "far.yaml: unknown field 'promt'"),
    ],
)
def test_wrong_keys_of_tasks_that_are_not_here(folder: Path, changes: dict[str, Any], said: str) -> None:
    (folder / "far.yaml").write_text(json.dumps({**FAR, "promt": "x"}))
    with pytest.raises(InputError) as caught:
        design(write_grid(folder, **changes))
    assert said in str(caught.value)


@pytest.mark.parametrize("gold", [-1, None])
def test_an_unlabelled_task_is_refused_and_listed(folder: Path, gold: int | None) -> None:
    lines = [json.loads(line) for line in (folder / "echo.jsonl").read_text().splitlines()]
    dataset = [{"q": line["prompt"], "a": -1 if gold is None else gold} for line in lines]
    (folder / "blind.csv").write_text("q,a\n" + "\n".join(f"{row['q']},{row['a']}" for row in dataset))
    (folder / "blind.yaml").write_text("dataset: blind.csv\nprompt: '{q}'\nchoices: ['no', 'yes']\ngold: a\n")
    grid = design(write_grid(folder, tasks=["echo.jsonl", "blind.yaml"]))
    blind = [question for question in grid.questions if question.name == "blind"]
    assert blind
    assert all(q.task is None and q.status in ("refused", "failed") and "-1" in q.reason for q in blind)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": None}, "models is empty"),
        ({"models": [{"model": "m", "revisions": ["a", "b", "a"]}]}, "revisions of m: 'a' is there twice"),
        ({"models": ["m", "m"]}, "is there twice"),
        ({"models": [{"modle": "m"}]}, "unknown key 'modle'. Did you mean 'model'?"),
        ({"models": [{"model": "m", "revisions": ["a", "b"], "tokens": [1.0]}]}, "1 numbers for 2 checkpoints"),
        ({"seeds": [0, 0]}, "seeds: 0 is there twice"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [0, None]}, "seeds holds None"),
        ({"seeds": [0, -1]}, "seeds holds -1"),
        ({"seeds": [0, True]}, "seeds holds True"),
        ({"seeds": [0.5]}, "seeds holds 0.5"),
        ({"shots": [0, 0]}, "shots: 0 is there twice"),
        ({"shots": [-2]}, "shots holds -2"),
        ({"scorers": ["own", "own"]}, "scorers: 'own' is there twice"),
        ({"formats": 0}, "formats is 0"),
        ({"formats": ["default", "default"]}, "formats: 'default' is there twice"),
        ({"formats": ["bear"]}, "no format 'bear'"),
        ({"tasks": ["echo.jsonl", "echo.jsonl"]}, "is there twice"),
        ({"tasks": ["ecko.jsonl"]}, "ecko.jsonl"),
        ({"tunings": [{"name": "x"}]}, "neither data nor model"),
        ({"tunings": [{"data": "sums.jsonl", "model": "m"}]}, "both data and model"),
        ({"tunings": [{"data": "sums.jsonl", "name": "base"}]}, "is called 'base'"),
        ({"tunings": [{"data": "sums.jsonl", "method": "sfit"}]}, "Did you mean 'sift'?"),
        ({"tunings": [{"data": "sums.jsonl", "method": ["full", "full"]}]}, "'full' is there twice"),
        ({"tunings": [{"data": "sums.jsonl", "learning_rate": [1e-3, 1e-3]}]}, "0.001 is there twice"),
        ({"tunings": [{"data": "sums.jsonl", "learning_rate": ["fast"]}]}, "learning_rate is ['fast']"),
        (
            {"tunings": [{"data": "sums.jsonl", "method": "sift", "method_args": {"sparcity": 0.1}}]},
            "Did you mean 'sparsity'?",
        ),
        ({"tunings": [{"data": "sums.jsonl"}, {"data": "sums.jsonl"}]}, "is there twice"),
        ({"contrasts": {"far": [{"sums": ["far"]}]}}, "no task 'far'"),
        ({"contrasts": {"far": [{"suns": ["echo"]}]}}, "no tuning 'suns'"),
        ({"tunings": [{"data": "sums.jsonl", "in_domain": "ekho"}]}, "no task 'ekho'. Did you mean 'echo'?"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        design(write_grid(folder, **changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_models_that_are_compared() -> None:
    assert names_of(["runs/a", "runs/b"]) == ["a", "b"]
    assert names_of(["a/final", "b/final"]) == ["a/final", "b/final"]
    with pytest.raises(InputError, match="given twice"):
        names_of(["a", "a"])


def test_units_are_values(folder: Path) -> None:
    grid = design(write_grid(folder))
    assert len({unit.name for unit in grid.units(grid.places[0])}) == 5
    assert Unit(grid.places[0]).name == "base"
