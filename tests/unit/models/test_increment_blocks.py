"""What a block inside ``increment.applied`` may do to the model: afterwards it is the base, bit for bit, or an error
names the tensors."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.errors import ModelError
from catchment.models import Increment, make_increment, swap
from tests.blocks import ADDING, REPLACED, UP, WRITTEN, Before, build, up


def increment_of(model: Any, folder: Path, factor: float = 1.0) -> Increment:
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        up(tuned).weight.view(-1)[::7] += factor
        tuned.model.norm.weight.view(-1)[[3, 5]] -= factor
    return make_increment(model, tuned, folder / f"{factor}.safetensors")


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("block", sorted(REPLACED))
def test_what_was_replaced_is_put_back(block: str, tie: bool, tmp_path: Path) -> None:
    model = build(tie)
    increment, before = increment_of(model, tmp_path), Before(model)

    def inside() -> None:
        with increment.applied(model):
            assert not torch.equal(up(model).weight, before.values[UP])
            REPLACED[block](model)

    if block == "share_memory":  # and written to, where nothing is kept of it
        with pytest.raises(ModelError, match=re.escape(UP)):
            inside()
    else:
        inside()
        before.check()
    assert not increment.is_applied(model)


@pytest.mark.parametrize("block", sorted(WRITTEN))
def test_what_was_written_to_is_named(block: str, tmp_path: Path) -> None:
    model = build()
    increment, before = increment_of(model, tmp_path), Before(model)
    with pytest.raises(ModelError, match="not what they were before the block"), increment.applied(model):
        WRITTEN[block](model)
    assert not increment.is_applied(model)
    assert torch.equal(up(model).weight.view(-1)[::7], before.values[UP].view(-1)[::7])
    assert all(p is before.objects[name] for name, p in model.named_parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("block", sorted(ADDING))
def test_what_was_added_is_taken_out_and_named(block: str, raises: bool, tmp_path: Path) -> None:
    model, (change, names) = build(), ADDING[block]
    increment, before = increment_of(model, tmp_path), Before(model)

    def inside() -> None:
        with increment.applied(model):
            change(model)
            if raises:
                raise KeyError("the block's own")

    with pytest.raises(KeyError if raises else ModelError, match="own" if raises else names) as told:
        inside()
    assert not raises or any(re.search(names, note) for note in told.value.__notes__)
    before.check()


def test_another_increment_is_taken_out_too(tmp_path: Path) -> None:
    model = build()
    one, two, before = increment_of(model, tmp_path), increment_of(model, tmp_path, 2.0), Before(model)
    with one.applied(model):
        swap(model, one, two)
    before.check()
    with one.applied(model):
        one.revert(model)
    before.check()
    with one.applied(model), pytest.raises(ModelError, match="is applied to this model"):
        two.apply(model)
    before.check()
