"""Tensors that a model does without reach the record's warnings, on every run; incomplete models are not measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import catchment
from catchment import models
from catchment.capabilities import evaluate
from catchment.errors import GateError, ModelError
from tests import tiny
from tests.integration.test_compare import folder, home, make_task
from tests.integration.test_scan import FEW, solved
from tests.integration.test_scan import QUICK as SCAN
from tests.integration.test_tune import CLASSES, QUICK, SUMS, lines

__all__ = ["folder", "home"]
torch.set_num_threads(1)
Weights = dict[str, Tensor]


def changed(source: Path, target: Path, change: Callable[[Weights], Weights]) -> str:
    shutil.copytree(source, target)
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return str(target)


def with_value_head(weights: Weights) -> Weights:
    return {**weights, "v_head.summary.weight": torch.ones(1, 32)}


def without_a_matrix(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name != "model.layers.1.mlp.up_proj.weight"}


def test_a_comparison_warns_on_every_run(folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder / "tuned", tmp_path / "tuned", with_value_head)
    for _ in range(2):  # the second measures nothing, and loads nothing
        record = catchment.compare(str(folder / "base"), tuned, tasks=[make_task()], text="none", room=False)
        told = [text for text in record.warnings if "v_head.summary.weight" in text]
        assert len(told) == 1
        assert told[0].startswith(f"{tuned}: 1 tensor of its files is not used")


def test_a_comparison_without_such_tensors_does_not_warn(folder: Path) -> None:
    record = catchment.compare(
        str(folder / "base"), str(folder / "tuned"), tasks=[make_task()], text="none", room=False
    )
    assert not any("not used" in text for text in record.warnings)


def test_a_tune_and_what_it_measures_warn(folder: Path, tmp_path: Path) -> None:
    base = changed(folder / "base", tmp_path / "base", with_value_head)
    data = lines(tmp_path / "sums.jsonl", SUMS[:8])
    record = catchment.tune(base, data=str(data), out=str(tmp_path / "out"), method="lora", **QUICK)
    assert sum("v_head.summary.weight" in text for text in record.warnings) == 1
    again = models.load(f"{base}+{tmp_path / 'out' / 'plain'}")
    assert "v_head.summary.weight" in again.card.notes[0]


def test_a_scan_warns(folder: Path, tmp_path: Path) -> None:
    model = changed(folder / "base", tmp_path / "model", with_value_head)
    task = solved(models.load(model).model, make_task(n=24))
    record = catchment.scan(model, tasks=[task], **{**SCAN, **FEW, "plane": 0, "budget": "1s"})
    assert sum("v_head.summary.weight" in text for text in record.warnings) == 1


def test_a_model_with_random_weights_is_not_measured(folder: Path, tmp_path: Path) -> None:
    incomplete = changed(folder / "tuned", tmp_path / "incomplete", without_a_matrix)
    match = "newly initialised at random .first: 'model.layers.1.mlp.up_proj.weight'"
    with pytest.raises(GateError, match=match):
        catchment.compare(str(folder / "base"), incomplete, tasks=[make_task()], text="none")
    with pytest.raises(GateError, match=match):
        evaluate(models.load(incomplete), make_task())


@pytest.mark.parametrize("rows", [SUMS, CLASSES], ids=["language", "classes"])
def test_a_tune_does_not_start_from_random_weights(rows: list[dict[str, object]], folder: Path, tmp_path: Path) -> None:
    base = changed(folder / "base", tmp_path / "base", without_a_matrix)
    data = lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(GateError, match=r"1 weights are not in its files .*'model\.layers\.1\.mlp\.up_proj\.weight'"):
        catchment.tune(base, data=str(data), out=str(tmp_path / "out"), method="lora", **QUICK)


def test_a_new_classifier_on_a_language_model_is_trained_and_told(folder: Path, tmp_path: Path) -> None:
    data = lines(tmp_path / "classes.jsonl", CLASSES)
    out = tmp_path / "out"
    record = catchment.tune(str(folder / "base"), data=str(data), out=str(out), method="lora", **QUICK)
    assert any("lm_head" in text for text in record.warnings) != bool(tiny.tiny_llama().config.tie_word_embeddings)
    tuned = models.load(f"{folder / 'base'}+{out / 'plain'}", head="sequence-classification")
    assert tuned.newly_initialised == ()
    trained = load_file(out / "plain" / "adapter_model.safetensors")["base_model.model.score.weight"]
    head = tuned.model.base_model.model.score.modules_to_save["default"].weight
    assert torch.equal(head, trained)


def test_a_third_layer_is_refused_before_anything_is_measured(folder: Path, tmp_path: Path) -> None:
    def deeper(weights: Weights) -> Weights:
        more = {k.replace("layers.1.", "layers.2."): v.clone() for k, v in weights.items() if "layers.1." in k}
        return {**weights, **more}

    tuned = changed(folder / "tuned", tmp_path / "tuned", deeper)
    with pytest.raises(ModelError, match="hold layer 2"):
        catchment.compare(str(folder / "base"), tuned, tasks=[make_task()], text="none")
