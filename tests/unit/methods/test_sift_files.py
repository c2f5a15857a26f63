"""SIFT on disk: the increment, the state that resumes a run, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment import models
from catchment.errors import ModelError
from catchment.methods import Sift
from catchment.methods.sift.layout import Flat, Target
from tests.tiny import tiny_llama
from tests.unit.methods.test_sift import batches, loss, tune

SETTINGS: list[dict[str, Any]] = [
    {},
    {"scope": "global"},
    {"selection_batches": 4},
    {"selection_batches": 4, "scope": "global"},
    {"rule": "random"},
    {"decay": "base"},
    {"modules_to_save": ["lm_head"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merged", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    settings: dict[str, Any], stop: int, dtype: torch.dtype, merged: bool, tmp_path: Path
) -> None:
    """Whether the fresh model holds the base's weights or those of the checkpoint, even in the middle of the choice."""
    data = list(batches(6))

    def begin() -> tuple[Any, Sift, Any]:
        model = tiny_llama().to(dtype)
        sift = Sift(model, sparsity=0.02, **settings)
        return model, sift, sift.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)

    def go(model: Any, optimizer: Any, part: list[Any]) -> None:
        for batch in part:
            loss(model, batch).backward()
            optimizer.step()

    whole, _, optimizer = begin()
    go(whole, optimizer, data)
    first, _, optimizer = begin()
    go(first, optimizer, data[:stop])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second, sift, optimizer = begin()
    if merged:
        second.load_state_dict(first.state_dict())
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    go(second, optimizer, data[stop:])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    sift.remove()
    fresh = tiny_llama().to(dtype)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_increment_is_the_tuned_model(dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_llama().to(dtype)
    model = copy.deepcopy(base)
    sift = Sift(model, sparsity=0.02, modules_to_save=["norm"])
    tune(model, sift, batches(3))
    folder = sift.save_pretrained(tmp_path / "out", recipe={"data": "abc"})
    increment = models.Increment.read(folder / "increment.safetensors")
    assert increment.k == sift.k
    assert increment.base_hash == models.weights_hash(base)
    assert increment.recipe["method"] == "sift"
    assert increment.recipe["rule"] == "gradient"
    assert increment.recipe["data"] == "abc"
    with increment.applied(base):
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), model.parameters(), strict=True))
    assert models.weights_hash(base) == increment.base_hash


def test_an_increment_is_taken_up_again(tmp_path: Path) -> None:
    model = tiny_llama()
    sift = Sift(model, sparsity=0.02)
    tune(model, sift, batches(3))
    sift.save_pretrained(tmp_path)
    other = tiny_llama()
    again = Sift(other, sparsity=0.02)
    again.load_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert {n: i.tolist() for n, i in again.support().items()} == {n: i.tolist() for n, i in sift.support().items()}
    tune(other, again, batches(1))
    again.remove()
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), tiny_llama().parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"rule": "random"}, {"rule": "gradient"}, {"scope": "global"}], ids=str)
def test_an_increment_replaces_what_was_chosen_before(settings: dict[str, Any], tmp_path: Path) -> None:
    """Also where it has fewer tensors than the tuning that takes it up."""
    model = tiny_llama()
    few = Sift(model, sparsity=0.02, target_modules=["q_proj", "v_proj"])
    tune(model, few, batches(3))
    few.save_pretrained(tmp_path)
    other = tiny_llama()
    again = Sift(other, sparsity=0.02, **settings)
    tune(other, again, batches(1))
    again.load_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert again.support().keys() == few.support().keys()
    assert again.state_dict()["index"].numel() == again.k == few.k
    tune(other, again, batches(1))
    again.remove()
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), tiny_llama().parameters(), strict=True))


def test_entries_lie_where_their_weights_lie() -> None:
    """Indices come from files and from the CPU's generator."""
    with torch.device("meta"):
        layer = torch.nn.Linear(8, 8, bias=False)
    target = Target("weight", layer.weight, budget=3)
    flat = Flat([target])
    flat.settle(target, torch.tensor([1, 5, 60]))
    assert target.index is not None
    assert target.index.device == layer.weight.device


def test_nothing_chosen_is_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="first gradients"):
        Sift(tiny_llama()).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_and_other_targets_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    sift = Sift(model, sparsity=0.02)
    tune(model, sift, batches(1))
    sift.save_pretrained(tmp_path)
    state = sift.state_dict()
    other = tiny_llama(hidden_size=64)
    with pytest.raises(ModelError, match="base with weights"):
        Sift(other).load_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no target"):
        Sift(tiny_llama(), target_modules=["q_proj"]).load_pretrained(tmp_path)
    with pytest.raises(ModelError, match="targets"):
        Sift(tiny_llama(), target_modules=["q_proj"]).load_state_dict(state)
    with pytest.raises(ModelError, match="bfloat16"):
        Sift(tiny_llama().bfloat16()).load_state_dict(state)
    optimizer = Sift(tiny_llama()).optimizer(torch.optim.AdamW)
    with pytest.raises(ModelError, match="'sift' part"):
        optimizer.load_state_dict(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).state_dict())
