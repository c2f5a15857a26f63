from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from catchment.errors import CatchmentError, InputError, ModelError, StoreError
from catchment.models import Increment, make_increment, named_weights, weights_hash
from catchment.records import ModelCard
from tests.unit.models.conftest import build
from tests.unit.models.test_weights import lora


def bits(model: nn.Module) -> dict[str, bytes]:
    return {
        n: t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, t in named_weights(model).items()
    }


def sparse_move(base: Any, count: int = 50, seed: int = 3) -> Any:
    """Change ``count`` entries of every tensor; some to NaN, infinity and minus zero, which have their own bits."""
    tuned = copy.deepcopy(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in named_weights(tuned).values():
            where = torch.randperm(p.numel())[: min(count, p.numel())]
            p.view(-1)[where] += 1
            p.view(-1)[where[0]] = float("nan")
            p.view(-1)[where[1]] = -0.0
            p.view(-1)[where[2]] = float("inf")
    return tuned


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Any, Increment]:
    base = build("Llama tied")
    tuned = sparse_move(base)
    return base, tuned, make_increment(base, tuned, tmp_path / "move.safetensors", recipe={"seed": 3, "note": "é"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["Llama", "Llama tied", "GPT-2", "BERT", "T5"])
def test_round_trip_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = build(name, dtype=dtype)
    tuned = sparse_move(base)
    before, after = bits(base), bits(tuned)
    increment = make_increment(base, tuned, tmp_path / "move.safetensors")
    again = Increment.read(tmp_path / "move.safetensors")
    assert again.k == increment.k == sum(a != b for n in before for a, b in _entries(before[n], after[n], dtype))
    again.apply(base)
    assert bits(base) == after
    again.revert(base)
    assert bits(base) == before


def _entries(a: bytes, b: bytes, dtype: torch.dtype) -> list[tuple[bytes, bytes]]:
    size = dtype.itemsize
    return [(a[i : i + size], b[i : i + size]) for i in range(0, len(a), size)]


def test_tied_embeddings_once(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    assert "lm_head.weight" not in {piece.name for piece in increment.pieces}
    with increment.applied(base):
        assert base.lm_head.weight is base.model.embed_tokens.weight


def test_mixed_dtypes(tmp_path: Path) -> None:
    base = build("Llama", dtype=torch.bfloat16)
    base.model.norm.float()
    base.model.layers[0].input_layernorm.float()
    tuned = sparse_move(base, count=5)
    after = bits(tuned)
    make_increment(base, tuned, tmp_path / "move.safetensors").apply(base)
    assert bits(base) == after


@settings(deadline=None, max_examples=40)
@given(st.sets(st.integers(0, 599), min_size=1, max_size=60))
def test_any_support(tmp_path_factory: pytest.TempPathFactory, support: set[int]) -> None:
    base = nn.Linear(20, 30, bias=False)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.weight.view(-1)[list(support)] += 1
    path = tmp_path_factory.mktemp("move") / "move.safetensors"
    increment = make_increment(base, tuned, path)
    assert increment.indices.tolist() == sorted(support)
    with increment.applied(base):
        assert torch.equal(base.weight, tuned.weight)


def test_what_is_inside(pair: tuple[Any, Any, Increment], tmp_path: Path) -> None:
    base, _, increment = pair
    assert increment.recipe == {"seed": 3, "note": "é"}
    assert increment.base_hash == weights_hash(base)
    assert increment.size_on_disk == os.path.getsize(tmp_path / "move.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["move.safetensors"]
    with safe_open(tmp_path / "move.safetensors", "pt") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == ["gaps", "values.float32"]
        assert file.get_slice("values.float32").get_shape() == [increment.k]
    assert metadata["format"] == "catchment-increment"
    assert metadata["version"] == "1"
    name, shape, dtype, count = json.loads(metadata["tensors"])[0]
    assert (name, shape, dtype, count) == ("model.embed_tokens.weight", [40, 16], "float32", 50)


def test_reverted_after_an_error(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    before = bits(base)
    with pytest.raises(RuntimeError, match="inside"), increment.applied(base):
        raise RuntimeError("inside")
    assert bits(base) == before


def test_states(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    with pytest.raises(ModelError, match="not applied to this model"):
        increment.revert(base)
    increment.apply(base)
    with pytest.raises(ModelError, match="already applied"):
        increment.apply(base)
    with pytest.raises(ModelError, match="not applied to this model"):
        increment.revert(copy.deepcopy(base))


def test_another_base_is_refused(pair: tuple[Any, Any, Increment]) -> None:
    base, tuned, increment = pair
    increment.verify(weights_hash(base))
    with pytest.raises(ModelError, match=rf"{increment.base_hash[:12]}.*{weights_hash(tuned)[:12]}.*float32"):
        increment.verify(weights_hash(tuned))
    card = ModelCard("me", "folder", "X", 1, increment.base_hash, "", "", "", "float32", "cpu", "sdpa")
    increment.verify(card)


@pytest.mark.parametrize(("name", "dtype"), [("Llama", torch.bfloat16), ("GPT-2", torch.float32)])
def test_a_model_that_does_not_fit_is_left_alone(
    pair: tuple[Any, Any, Increment], name: str, dtype: torch.dtype
) -> None:
    other = build(name, seed=9, dtype=dtype)
    before = bits(other)
    with pytest.raises(ModelError, match=r"move\.safetensors moves '"):
        pair[2].apply(other)
    assert bits(other) == before


def test_the_last_tensor_is_checked_before_the_first_write(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    base.model.norm.weight = nn.Parameter(torch.ones(7))
    before = bits(base)
    with pytest.raises(ModelError, match=r"'model.norm.weight' of shape \(16,\).*\(7,\)"):
        increment.apply(base)
    assert bits(base) == before


@pytest.mark.parametrize("where", [4, 60, 700, -300, -3])
def test_one_flipped_bit_is_found(pair: tuple[Any, Any, Increment], where: int) -> None:
    path = pair[2].path
    data = bytearray(path.read_bytes())
    data[where] ^= 0x04
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"move\.safetensors"):
        Increment.read(path)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_truncated(pair: tuple[Any, Any, Increment], keep: float) -> None:
    path = pair[2].path
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ModelError, match=r"move\.safetensors .*(download it again, or make it again)"):
        Increment.read(path)


def test_other_files(tmp_path: Path, pair: tuple[Any, Any, Increment]) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        Increment.read(tmp_path / "nowhere.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match="not an increment"):
        Increment.read(tmp_path / "plain.safetensors")
    save_file(load_file(pair[2].path), tmp_path / "new.safetensors", {"format": "catchment-increment", "version": "2"})
    with pytest.raises(ModelError, match="format version 2"):
        Increment.read(tmp_path / "new.safetensors")
    save_file(load_file(pair[2].path), tmp_path / "bare.safetensors", {"format": "catchment-increment", "version": "1"})
    with pytest.raises(ModelError, match="damaged"):
        Increment.read(tmp_path / "bare.safetensors")


def test_making_refuses(tmp_path: Path) -> None:
    base = build("Llama")
    path = tmp_path / "move.safetensors"
    with pytest.raises(ModelError, match="same weights"):
        make_increment(base, copy.deepcopy(base), path)
    with pytest.raises(ModelError, match=r"'lm_head.weight' is not in the tuned model"):
        make_increment(base, build("Llama tied"), path)
    with pytest.raises(ModelError, match=r"torch\.float32 in the base and torch\.bfloat16"):
        make_increment(base, build("Llama", dtype=torch.bfloat16), path)
    with pytest.raises(ModelError, match="merge the adapter"):
        make_increment(lora(build("Llama")), base, path)
    with pytest.raises(InputError, match="not plain JSON"):
        make_increment(base, build("Llama", 1), path, recipe={"f": len})
    norm = nn.BatchNorm1d(3)
    moved = copy.deepcopy(norm)
    moved.running_mean += 1  # type: ignore[operator]
    moved.weight.data += 1
    with pytest.raises(ModelError, match="'running_mean' differs"):
        make_increment(norm, moved, path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="cannot write"):
        make_increment(base, build("Llama", 1), tmp_path / "missing" / "move.safetensors")


def test_an_adapter_becomes_an_increment(tmp_path: Path) -> None:
    base = build("Llama")
    tuned = lora(copy.deepcopy(base))
    make_increment(base, tuned, tmp_path / "move.safetensors").apply(base)
    assert weights_hash(base) == weights_hash(tuned.merge_and_unload())


def test_size(tmp_path: Path) -> None:
    """A uniform support of 1 in 900 costs less than 2 bytes of index per entry."""
    base = nn.Linear(3000, 1500, bias=False)
    tuned = copy.deepcopy(base)
    k = base.weight.numel() // 900
    with torch.no_grad():
        tuned.weight.view(-1)[torch.randperm(base.weight.numel())[:k]] += 1
    increment = make_increment(base, tuned, tmp_path / "move.safetensors")
    assert increment.k == k
    assert increment.size_on_disk < 6 * k + 1000


def test_every_error_is_ours() -> None:
    assert issubclass(ModelError, CatchmentError)
