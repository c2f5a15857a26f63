"""The way to another model with its small changes left out, against a dense one written out."""

from __future__ import annotations

import copy
import importlib
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from catchment.errors import InputError
from catchment.landscape import Mover, Subspace, displaced, towards, truncated
from tests.tiny import tiny_llama

SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def pair(dtype: torch.dtype, density: float) -> tuple[Any, Any]:
    """A tiny model and one of which a share of the entries moved, in steps of 1/64, so that many changes tie."""
    model = tiny_llama().to(dtype)
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in tuned.parameters():
            step = torch.randint(-40, 41, weight.shape, generator=generator) / 64
            weight += (step * (torch.rand(weight.shape, generator=generator) < density)).to(dtype)
    return model, tuned


def changes(model: Any, tuned: Any) -> dict[str, Tensor]:
    """end - start in float32 or wider, of every tensor."""
    end = dict(tuned.named_parameters())
    wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    return {name: end[name].detach().to(wide) - weight.detach().to(wide) for name, weight in model.named_parameters()}


def dense_cut(move: dict[str, Tensor], share: float) -> float:
    sizes = torch.cat([m.abs().float().flatten() for m in move.values()])
    order = sizes[sizes > 0].sort(descending=True).values
    return float(order[min(int(share * len(order)), len(order) - 1)])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("density", [0.05, 0.9], ids=["sparse", "whole tensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_ends_where_a_dense_truncation_does(dtype: torch.dtype, density: float, share: float) -> None:
    """Bit for bit: the entries that moved furthest are the tuned model's, all others the base's."""
    model, tuned = pair(dtype, density)
    move, end = changes(model, tuned), dict(tuned.named_parameters())
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    way = truncated(towards(model, tuned), share)
    assert way.subspace.kind == ("sparse" if density < 0.2 else "glob")
    assert way.cut == dense_cut(move, share)
    with displaced(model, way, way.alpha):
        for name, weight in model.named_parameters():
            kept = move[name].abs().float() >= way.cut
            assert torch.equal(weight, torch.where(kept, end[name], start[name])), name
    assert all(torch.equal(weight, start[name]) for name, weight in model.named_parameters())
    kept_share = sum(int((m.abs().float() >= way.cut).sum()) for m in move.values()) / sum(
        int((m != 0).sum()) for m in move.values()
    )
    assert share - 0.01 <= kept_share <= share + 0.05  # more where the smallest of them ties


@pytest.mark.parametrize("density", [0.05, 0.9])
def test_its_delta_is_the_change_scaled_to_rms_one(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("catchment.landscape.truncated"), "PIECE", 100)
    model, tuned = pair(torch.float32, density)
    move, whole = changes(model, tuned), towards(model, tuned)
    way = truncated(whole, 0.25)
    squares = 0.0
    for name in way.subspace.shapes:
        change = move[name].reshape(-1)
        change = change[way.subspace.support[name].long()] if way.subspace.kind == "sparse" else change
        expected = torch.where(change.abs() >= way.cut, change, 0.0) / way.alpha
        assert torch.equal(way.delta(name), expected)
        assert torch.equal(torch.cat([way.delta(name, 0, 7), way.delta(name, 7)]), expected)
        squares += float(expected.double().square().sum())
    assert squares == pytest.approx(way.subspace.size, rel=1e-5)
    with Mover(model, way.subspace) as mover, mover.at((way, way.alpha)):
        assert mover.realised(way, way.alpha) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


def test_half_way_it_is_half_the_kept_change() -> None:
    model, tuned = pair(torch.float32, 0.9)
    move, start = changes(model, tuned), {n: w.detach().clone() for n, w in model.named_parameters()}
    way = truncated(towards(model, tuned), 0.1)
    with displaced(model, way, way.alpha / 2):
        for name, weight in model.named_parameters():
            kept = torch.where(move[name].abs() >= way.cut, move[name], 0.0)
            assert torch.allclose(weight, start[name] + kept / 2, atol=1e-6)


def test_its_address_says_where_to_and_how_much() -> None:
    """Equal for equal models and shares, and of no other point; the start is in the address of the cell."""
    model, tuned = pair(torch.float32, 0.9)
    way = towards(model, tuned, identity="sha256:tuned")
    first, again = truncated(way, 0.25), truncated(towards(*pair(torch.float32, 0.9), identity="sha256:tuned"), 0.25)
    assert first.address == again.address == {"kind": "truncated", "to": "sha256:tuned", "share": 0.25}
    assert first.family == again.family
    assert json.loads(json.dumps(first.family)) == first.family
    others = [truncated(way, 0.5), truncated(towards(model, tuned, identity="other"), 0.25), way]
    assert all(first.address != other.address and first.family != other.family for other in others)


def test_what_cannot_be_truncated() -> None:
    model, tuned = pair(torch.float32, 0.9)
    way = towards(model, tuned, Subspace.all(model))
    for share in (-0.1, 1.5):
        with pytest.raises(InputError, match=f"share {share}; expected a number from 0 to 1"):
            truncated(way, share)
