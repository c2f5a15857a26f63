"""Values that a grid refuses before anything is loaded: each in one sentence that names the place and the value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catchment.errors import InputError
from catchment.options import read_config
from tests.unit.commands.study.grids import StudySettings, design, write_grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    items = [{"prompt": f"echo {i}: thing {i * i} is", "choices": ["red", "blue"], "gold": i % 2} for i in range(24)]
    (root / "echo.jsonl").write_text("\n".join(map(json.dumps, items)))
    (root / "again.jsonl").write_text("\n".join(map(json.dumps, items)))
    (root / "sums.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "completion": " 2"}))
    (root / "m").mkdir()
    (root / "m" / "config.json").write_text("{}")
    return root


SAME: dict[str, Any] = {"a": {}, "b": {"learning_rate": 2e-5}}
"""One training under two names: the rate of the second is the default."""


def tuned(**changes: Any) -> dict[str, Any]:
    return {"tunings": [{"data": "sums.jsonl", "name": "sums", **changes}]}


@pytest.mark.parametrize("key", ["learning_rate", "epochs", "max_steps", "batch_size", "accumulation", "weight_decay"])
@pytest.mark.parametrize("value", [-1, True, [True], [], float("nan"), float("inf"), [[1]], "fast"])
def test_a_number_of_a_tuning_out_of_range_is_refused(folder: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^tunings\[0\]: {key} is [^\n]+\.$"):
        design(write_grid(folder, **tuned(**{key: value})))


@pytest.mark.parametrize("key", ["learning_rate", "epochs", "max_steps", "batch_size", "accumulation", "rows"])
def test_zero_is_no_default(folder: Path, key: str) -> None:
    with pytest.raises(InputError, match=rf"{key} is 0; input should be greater than"):
        design(write_grid(folder, **tuned(**{key: 0})))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ""}, "model is ''; expected a text that is not empty"),
        ({"models": [{"model": "x", "revisions": [True]}]}, "put what YAML reads as something else in quotes"),
        ({"models": [{"model": "x", "revisions": [1.10]}]}, "put what YAML reads as something else in quotes"),
        ({"models": [{"model": "x", "revisions": [None]}]}, "put what YAML reads as something else in quotes"),
        ({"models": [{"model": "x-{revision}"}]}, "'x-{revision}' has no revisions"),
        ({"models": [{"model": "m", "revisions": ["a"]}]}, "is one model on this machine, and has no revision 'a'"),
        ({"models": [{"model": "x", "revisions": ["a"], "tokens": {"b": 1}}]}, "tokens of x: no revision 'b'"),
        ({"models": [{"model": "x", "tokens": [-1]}]}, "tokens is [-1]"),
        ({"models": [{"model": "x", "parameters": -1}]}, "parameters is -1"),
        ({"models": [{"model": "x", "name": "a\nb"}]}, "expected a text of one line"),
        (tuned(seeds=[0, 0]), "tunings[0].seeds: 0 is there twice"),
        (tuned(seeds="0"), "tunings[0].seeds holds '0'"),
        (tuned(seeds=[]), "tunings[0].seeds is empty"),
        (tuned(name="BASE"), "is called 'BASE'"),
        (tuned(method=None), "method is None"),
        (tuned(epochs=[1, 2], max_steps=3), "several epochs and max_steps"),
        ({"tunings": [{"model": "x", "learning_rate": 1e-3}]}, "has model and learning_rate"),
        ({"tunings": [{"model": "x", "name": "a"}, {"model": "x/", "name": "b"}]}, "'a' and 'b' are the same"),
        (
            {"tunings": [{"data": "sums.jsonl", "name": name, **more} for name, more in SAME.items()]},
            "'a' and 'b' are the same",
        ),
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": ["echo.jsonl", {"task": "again.jsonl", "name": "b"}]}, "'echo' and 'b' ask the same items"),
        ({"tasks": [{"task": "echo.jsonl", "formats": True}]}, "formats is True"),
        ({"formats": []}, "formats is []"),
        ({"formats": [[1]]}, "formats is [[1]]"),
        ({"contrasts": {"a": []}}, "contrasts.a is empty"),
        ({"contrasts": {"a": [{"sums": None}]}}, "contrasts.a holds {'sums': None}"),
        ({"contrasts": {"a": [["sums", 3]]}}, "contrasts.a holds ['sums', 3]"),
    ],
)  # fmt: skip
def test_a_value_without_a_meaning_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        design(write_grid(folder, **changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_yaml_reads_as_texts_are_numbers(folder: Path) -> None:
    (grid,) = design(write_grid(folder, **tuned(learning_rate="1e-3", method="full", seeds=7))).recipes
    assert grid.options is not None
    assert (grid.options["learning_rate"], grid.seeds) == (1e-3, (7,))


def test_a_thousand_revisions_need_no_tokens(folder: Path) -> None:
    names = [f"step{k}" for k in range(1200)]
    places = design(write_grid(folder, models=[{"model": "org/x", "revisions": names}], tunings=[])).places
    assert [place.checkpoint.revision for place in places] == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: a\nmodels: b\n", "key 'models' stands twice, the second time in line 2"),
        ("models: a\ntunings:\n- data: x\n  data: y\n", "key 'data' stands twice, the second time in line 4"),
        ("models: [a\ntasks: b: c", "is not YAML: line 2: "),
    ],
)
def test_a_file_that_yaml_would_read_as_less_than_it_says(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_config(path, StudySettings)
    assert said in str(caught.value)


@pytest.mark.parametrize("key", ["limit", "seed", "shot_seed", "alpha", "hours"])
def test_yes_is_no_number(tmp_path: Path, key: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"models: a\n{key}: yes\n")
    with pytest.raises(InputError, match=f"{key} is True; input should be a valid"):
        read_config(path, StudySettings)
