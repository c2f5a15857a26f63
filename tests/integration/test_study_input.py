"""``study`` on models, data and tasks that are not what they should be: a row with a reason, or a gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catchment.commands.study.driver import drive
from catchment.commands.study.plan import plan
from catchment.commands.study.record import Study
from catchment.commands.study.standing import Site
from catchment.errors import GateError
from catchment.measuring import Progress
from tests import freeze
from tests.unit.commands.study.grids import settings, write_grid

torch.set_num_threads(1)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tiny models, one store for all tests, and models that are broken in one way each."""
    root = tmp_path_factory.mktemp("input")
    freeze.write_inputs(root)
    changed(root, "lacking", lambda weights: weights.pop("model.layers.0.mlp.down_proj.weight"))
    changed(root, "nan", lambda weights: weights["model.norm.weight"].fill_(torch.nan))
    changed(root, "mute", lambda weights: weights["lm_head.weight"].zero_())
    changed(root, "deaf", lambda weights: weights["model.norm.weight"].zero_())
    items = [{"prompt": f"is {k} {k % 7}?", "choices": ["no", "yes"], "gold": int(k % 5 < 2)} for k in range(60)]
    (root / "yes.jsonl").write_text("\n".join(map(json.dumps, [{"task": {"name": "yes"}}, *items])))
    with freeze.place(root):
        yield root


def changed(root: Path, name: str, change: Callable[[Weights], object]) -> None:
    shutil.copytree(root / "base", root / name)
    (path,) = (root / name).glob("*.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def measured(folder: Path, **changes: Any) -> Study:
    """A study of one seed and format, run to its end."""
    path = write_grid(folder, **{"seeds": [0], "formats": 1, "tunings": [], **changes})
    return drive(settings(path), Progress())


def training(**options: Any) -> list[dict[str, Any]]:
    return [{"name": "t", "data": "sums.jsonl", "max_steps": 2, "max_length": 64, **options}]


def test_a_model_that_cannot_be_loaded_fails_with_its_reason_and_the_others_go_on(folder: Path) -> None:
    study = measured(folder, models=["nan", "base"], tunings=[*training(), {"model": "lacking"}])
    assert (study.counts["done"], study.counts["failed"]) == (2, 4)
    reasons = {gap.what: gap.reason for gap in study.gaps}
    assert "hold NaN" in reasons["nan + base"]
    assert "hold NaN" in reasons["training nan + t"]
    assert "newly initialised" in reasons["base + lacking"]


def test_a_training_that_fails_is_a_failed_row_not_a_missing_one(folder: Path) -> None:
    tunings = [
        *training(name="fast", learning_rate=1e30, max_steps=4),
        *training(name="short", max_length=4),
    ]
    gaps = {gap.what: gap for gap in measured(folder, tunings=tunings).gaps}
    for name, said in (("fast", "the loss is nan"), ("short", "no token is left to learn")):
        assert gaps[f"training base + {name}"].status == "failed"
        assert said in gaps[f"training base + {name}"].reason


def test_completions_that_are_cut_raise_the_gate(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "sums.jsonl").read_text().splitlines()]
    long = [{**row, "completion": 20 * row["completion"]} for row in rows]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, long)))
    study = measured(folder, tunings=training(name="long", data="long.jsonl", max_length=32))
    (flag,) = [flag for flag in study.flags if flag.gate == "truncated completions"]
    assert "48 of 48 rows of 'long.jsonl'" in flag.sentence


def test_rows_that_hold_the_test_items_raise_the_gate(folder: Path) -> None:
    items = [json.loads(line) for line in (folder / "echo.jsonl").read_text().splitlines()][1:]
    leak = [{"prompt": i["prompt"], "completion": " " + i["choices"][i["gold"]]} for i in items]
    (folder / "leak.jsonl").write_text("\n".join(map(json.dumps, leak)))
    study = measured(folder, tunings=training(name="leak", data="leak.jsonl"))
    (flag,) = [flag for flag in study.flags if flag.gate == "near-duplicates between train and test"]
    assert flag.sentence.startswith("24 of 24 items stand in the rows to train on")


def test_models_with_one_output_are_constant_and_no_verdict_is_drawn_of_them(folder: Path) -> None:
    """Both have uniform probabilities, of different weights; the third is a model of its own."""
    tunings = [{"model": "mute"}, {"model": "deaf"}, {"model": "tuned"}]
    study = measured(folder, tasks=["yes.jsonl", "echo.jsonl"], tunings=tunings, limit=60)
    gates = {flag.gate: flag for flag in study.flags}
    assert gates["identical outputs"].refused
    assert "base + mute" in gates["constant predictor"].sentence or "more" in gates["constant predictor"].sentence
    verdicts = {one.tuning: one for one in study.verdicts}
    assert [verdicts[name].tasks for name in ("mute", "deaf")] == [(), ()]
    assert verdicts["mute"].sentence == "a gate refused it"
    assert len(verdicts["tuned"].tasks) == 2
    assert not any(name in study.choice for name in ("mute", "deaf"))


def test_a_tuned_model_of_the_bytes_of_its_base_is_an_alias(folder: Path) -> None:
    study = measured(folder, tunings=[{"model": "{model}", "name": "self"}])
    assert study.aliases == (("base", "base + self"),)


@pytest.mark.parametrize("far", ["base", "tuned"])
def test_a_model_that_has_to_be_fetched_is_measured_in_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, far: str
) -> None:
    """A base, and a tuned model, that are not here until they are loaded for the first time."""
    there: set[str] = set()
    fetched = Site.fetched
    monkeypatch.setattr(Site, "is_far", staticmethod(lambda place: Path(place.spec).name == far and far not in there))
    monkeypatch.setattr(
        Site, "fetched", lambda site, place, card: (there.add(Path(place.spec).name), fetched(site, place, card))
    )
    path = write_grid(folder, formats=1, models=["base"], tunings=[{"model": "tuned"}])
    study = drive(settings(path, store=tmp_path), Progress())
    assert (there, study.counts["done"], study.headline) == ({far}, 2, "complete")


def test_a_tuned_model_that_cannot_be_fetched_is_a_failed_row(folder: Path) -> None:
    study = measured(folder, tunings=[{"model": "nobody/nothing"}])
    (gap,) = study.gaps
    assert (gap.status, gap.cells) == ("failed", 1)
    assert "nobody/nothing" in gap.reason


def test_prompts_beyond_the_context_are_refused_by_the_plan_as_by_the_run(folder: Path) -> None:
    items = [{"prompt": f"{k} " * (400 if k == 3 else 1), "choices": ["a", "b"], "gold": k % 2} for k in range(20)]
    (folder / "long-task.jsonl").write_text("\n".join(map(json.dumps, items)))
    asked = settings(write_grid(folder, tasks=["long-task.jsonl"], tunings=[], formats=1))
    for action in (plan, drive):
        with pytest.raises(GateError, match=r"1 of 20 prompts are longer than the model's context"):
            action(asked, Progress())
