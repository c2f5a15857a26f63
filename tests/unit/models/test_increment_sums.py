"""Sums and overlaps of increments against dense float64 or float32 arithmetic."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError
from catchment.models import Increment, add_increments, named_weights, overlap, weights_hash, write_increment
from tests.unit.models.conftest import build
from tests.unit.models.test_increments import FreshMemory, bits

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight")


def move(base: Any, path: Path, seed: int, names: Sequence[str] = NAMES, share: float = 0.3) -> Increment:
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for name in names:
        flat = named_weights(base)[name].detach().view(-1)
        index = torch.randperm(flat.numel(), generator=generator)[: int(share * flat.numel())].sort().values
        noise = 0.1 * torch.randn(index.numel(), generator=generator)
        entries.append((name, named_weights(base)[name].shape, index, (flat[index].float() + noise).to(flat.dtype)))
    recipe = {"seed": seed}
    return write_increment(path / f"{seed}.safetensors", entries, base_hash=weights_hash(base), recipe=recipe)


def dense(base: Any, increment: Increment) -> dict[str, Tensor]:
    """All weights after the move, each tensor whole."""
    model = copy.deepcopy(base)
    increment.apply(model)
    tensors = {name: t.detach().clone() for name, t in named_weights(model).items()}
    increment.revert(model)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_weighted_sum(dtype: torch.dtype, tmp_path: Path) -> None:
    base = build("Llama", dtype=dtype)
    before = bits(base)
    parts = [move(base, tmp_path, 1), move(base, tmp_path, 2, NAMES[:2]), move(base, tmp_path, 3, NAMES[1:])]
    factors = [0.5, -1.25, 2.0]
    total = add_increments(parts, base, tmp_path / "sum.safetensors", factors)
    assert bits(base) == before
    tuned = [dense(base, part) for part in parts]
    for name, tensor in dense(base, total).items():
        start = named_weights(base)[name].detach().float()
        shift = torch.zeros_like(start)
        for factor, one in zip(factors, tuned, strict=True):
            shift += factor * (one[name].float() - start)
        assert torch.equal(tensor, (start + shift).to(dtype)), name
    for piece in total.pieces:
        union = set(itertools.chain(*(part.support().get(piece.name, torch.tensor([])).tolist() for part in parts)))
        assert total.index(piece).tolist() == sorted(union)
    told = total.recipe["parts"]
    assert [part["weight"] for part in told] == factors
    assert [(part["file"], part["k"], part["recipe"]) for part in told] == [
        (f"{seed}.safetensors", part.k, {"seed": seed}) for seed, part in enumerate(parts, 1)
    ]
    assert total.base_hash == weights_hash(base)


def test_weights_are_one_unless_given(tmp_path: Path) -> None:
    base = build("Llama")
    parts = [move(base, tmp_path, 1), move(base, tmp_path, 2)]
    tuned = [dense(base, part) for part in parts]
    for name, tensor in dense(base, add_increments(parts, base, tmp_path / "sum.safetensors")).items():
        start = named_weights(base)[name].detach()
        assert torch.allclose(tensor, tuned[0][name] + tuned[1][name] - start, rtol=0, atol=1e-6), name


def test_disjoint_supports_add_up_bit_for_bit(tmp_path: Path) -> None:
    base = build("Llama")
    one, two = move(base, tmp_path, 1, NAMES[:1]), move(base, tmp_path, 2, NAMES[1:])
    total = add_increments([one, two], base, tmp_path / "sum.safetensors")
    with one.applied(base):
        twin = copy.deepcopy(base)  # which carries the first for good
    two.apply(twin)
    both = bits(twin)
    with total.applied(base):
        assert bits(base) == both


def test_one_increment_alone_is_itself(tmp_path: Path) -> None:
    """Also where ``base + (value - base)`` is not the value: 1e8 swallows the small one."""
    base = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        base.weight.fill_(1e8)
    given = ("weight", (3, 4), [2, 7], torch.tensor([1e-3, 5.0]))
    one = write_increment(tmp_path / "one.safetensors", [given], base_hash=weights_hash(base))
    total = add_increments([one], base, tmp_path / "sum.safetensors")
    assert total.values["weight"].tolist() == one.values["weight"].tolist()


def test_overlap_against_dense_vectors(tmp_path: Path) -> None:
    base = build("Llama", dtype=torch.bfloat16)
    parts = [move(base, tmp_path, 1), move(base, tmp_path, 2, share=0.6), move(base, tmp_path, 3, NAMES[:1])]
    found = overlap(parts, base)
    assert found.k == tuple(part.k for part in parts)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    weights = named_weights(base)
    moves = [
        torch.cat([(dense(base, p)[n].double() - weights[n].detach().double()).view(-1) for n in weights])
        for p in parts
    ]
    masks = []
    for part in parts:
        mask = {n: torch.zeros(t.numel(), dtype=torch.bool) for n, t in weights.items()}
        for name, index in part.support().items():
            mask[name][index] = True
        masks.append(mask)
    for pair in found.pairs:
        a, b = (torch.cat(list(masks[i].values())) for i in (pair.first, pair.second))
        move_a, move_b = moves[pair.first], moves[pair.second]
        assert pair.shared == int((a & b).sum()) > 0
        assert pair.jaccard == pytest.approx(int((a & b).sum()) / int((a | b).sum()))
        same = (move_a.sign() == move_b.sign()) & (move_a != 0) & a & b
        assert pair.same_sign == pytest.approx(int(same.sum()) / pair.shared)
        assert pair.cosine == pytest.approx(float(torch.cosine_similarity(move_a, move_b, dim=0)), abs=1e-12)
        by_tensor = zip(masks[pair.first].values(), masks[pair.second].values(), strict=True)
        assert pair.expected == pytest.approx(sum(float(x.sum() * y.sum()) / x.numel() for x, y in by_tensor))
    assert f"0 and 1: {found.pairs[0].shared:,} shared" in str(found)


def test_expected_is_the_mean_over_random_supports(tmp_path: Path) -> None:
    base = nn.Linear(20, 10, bias=False)
    generator = torch.Generator().manual_seed(0)
    index, draws, counts = torch.arange(60), 300, []
    base_hash = weights_hash(base)

    def write(chosen: Tensor) -> Increment:
        entries = [("weight", (10, 20), chosen, torch.ones(chosen.numel()))]
        return write_increment(tmp_path / "m.safetensors", entries, base_hash=base_hash)

    fixed = write(index)
    for _ in range(draws):
        other = write(torch.randperm(200, generator=generator)[:50].sort().values)
        pair = overlap([fixed, other], base, base_hash=base_hash).pairs[0]
        counts.append(float(pair.shared))
    mean, error = torch.tensor(counts).mean(), torch.tensor(counts).std() / draws**0.5
    assert pair.expected == pytest.approx(15.0)
    assert abs(float(mean) - pair.expected) < 4 * float(error)


def test_overlap_with_itself_with_its_opposite_and_with_nothing(tmp_path: Path) -> None:
    base = nn.Linear(4, 3, bias=False)
    start, base_hash = base.weight.detach().view(-1), weights_hash(base)

    def write(name: str, index: list[int], values: Tensor) -> Increment:
        return write_increment(tmp_path / name, [("weight", (3, 4), index, values)], base_hash=base_hash)

    at = [1, 5, 9]
    there, back = write("a", at, start[at] + 1), write("b", at, start[at] - 1)
    elsewhere, still = write("c", [0], start[[0]] + 1), write("d", at, start[at])
    pairs = {(p.first, p.second): p for p in overlap([there, there, back, elsewhere, still], base).pairs}
    assert (pairs[0, 1].jaccard, pairs[0, 1].same_sign) == (1.0, 1.0)
    assert pairs[0, 1].cosine == pytest.approx(1)
    assert pairs[0, 2].same_sign == 0.0
    assert pairs[0, 2].cosine == pytest.approx(-1)
    assert (pairs[0, 3].shared, pairs[0, 3].same_sign, pairs[0, 3].cosine) == (0, None, 0.0)
    assert (pairs[0, 4].same_sign, pairs[0, 4].cosine) == (0.0, None)


def test_nothing_is_made_dense(tmp_path: Path) -> None:
    base = nn.Linear(500, 400, bias=False)
    base_hash = weights_hash(base)
    parts = [move(base, tmp_path, seed, ["weight"], share=0.001) for seed in (1, 2)]
    with FreshMemory() as memory:
        add_increments(parts, base, tmp_path / "sum.safetensors", base_hash=base_hash)
        overlap(parts, base, base_hash=base_hash)
    assert memory.made < 100 * sum(part.k for part in parts) < base.weight.numel()


def test_refusals(tmp_path: Path) -> None:
    base = build("Llama")
    one, two = move(base, tmp_path, 1), move(base, tmp_path, 2)
    path = tmp_path / "sum.safetensors"
    for wrong in ([1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(InputError, match="one finite number for each"):
            add_increments([one, two], base, path, wrong)
    with pytest.raises(InputError, match="no increments"):
        add_increments([], base, path)
    with pytest.raises(InputError, match="at least two increments, not 1"):
        overlap([one], base)
    (tmp_path / "other").mkdir()
    stranger = move(build("Llama", seed=7), tmp_path / "other", 3)
    with pytest.raises(ModelError, match=r"3\.safetensors was made for .*only increments of one base"):
        add_increments([one, stranger], base, path)
    with pytest.raises(ModelError, match="give its own base"):
        overlap([one, two], build("Llama", seed=7))
    with pytest.raises(ModelError, match=r"torch\.float32, but the model has .*bfloat16"):
        overlap([one, two], build("Llama", dtype=torch.bfloat16))
    given = ("model.norm.weight", (4, 4), [1], torch.ones(1))
    bent = write_increment(tmp_path / "bent.safetensors", [given], base_hash=one.base_hash)
    half = ("model.norm.weight", (16,), [1], torch.ones(1, dtype=torch.float16))
    halved = write_increment(tmp_path / "half.safetensors", [half], base_hash=one.base_hash)
    for wrong_part in (bent, halved):
        with pytest.raises(ModelError, match=r"moves 'model\.norm\.weight' of shape .*but the model has"):
            add_increments([one, wrong_part], base, path)
    with one.applied(base), pytest.raises(ModelError, match=r"applied to this model.*revert it first"):
        add_increments([one, two], base, path)
    assert not path.exists()
