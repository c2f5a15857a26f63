"""Subspaces: what they hold, their size, their hash, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from catchment.errors import InputError, ModelError
from catchment.landscape import Subspace, gaussian
from catchment.models import named_weights
from tests.tiny import tiny_llama


def test_all_counts_tied_weights_once_and_no_buffers() -> None:
    tied, untied = (tiny_llama(tie_word_embeddings=tie) for tie in (True, False))
    assert Subspace.all(untied).size - Subspace.all(tied).size == 320 * 32
    assert Subspace.all(tied).size == sum(p.numel() for p in tied.parameters())
    assert not any("inv_freq" in name for name in Subspace.all(tied).shapes)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_under_an_adapter_all_means_the_adapter() -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], r=2))
    names = list(Subspace.all(model).shapes)
    assert names
    assert all("lora_" in name for name in names)
    base = Subspace.glob(model, "model.layers.*.q_proj.weight")
    assert set(base.shapes) <= set(named_weights(model, "base"))


def test_card_norm_is_the_norm_of_the_weights_there() -> None:
    model = tiny_llama()
    weight = model.model.layers[0].mlp.up_proj.weight.detach().double()
    card = Subspace.glob(model, "model.layers.0.mlp.up_proj.weight").card(model)
    assert card.norm == pytest.approx(float(weight.norm()), rel=1e-12)
    assert card.rms == pytest.approx(float(weight.norm()) / math.sqrt(weight.numel()), rel=1e-12)
    picked = torch.tensor([5, 0, 17])
    sparse = Subspace.sparse(model, {"model.layers.0.mlp.up_proj.weight": picked}).card(model)
    assert sparse.size == 3
    assert sparse.norm == pytest.approx(float(weight.reshape(-1)[picked].norm()), rel=1e-12)


def test_frame_moves_lie_in_its_columns_and_keep_the_norm() -> None:
    model = tiny_llama()
    frame = Subspace.frame(model, 3, seed=1, patterns=["*.up_proj.weight"])
    name = next(iter(frame.shapes))
    rows, columns = frame.shapes[name]
    assert frame.coordinates(name) == 3 * columns
    basis = frame.basis(name).double()
    assert torch.allclose(basis.T @ basis, torch.eye(3, dtype=torch.float64), atol=1e-6)
    delta = gaussian(frame, 0).delta(name).reshape(rows, columns).double()
    assert torch.allclose(basis @ (basis.T @ delta), delta, atol=1e-5)
    assert torch.linalg.matrix_rank(delta, rtol=1e-4) == 3


def test_hash_tells_subspaces_apart() -> None:
    model = tiny_llama()
    name = "model.layers.0.mlp.up_proj.weight"
    made = [
        Subspace.all(model),
        Subspace.glob(model, name),
        Subspace.sparse(model, {name: torch.tensor([1, 2])}),
        Subspace.sparse(model, {name: torch.tensor([1, 3])}),
        Subspace.frame(model, 2, seed=0),
        Subspace.frame(model, 2, seed=1),
    ]
    assert len({s.hash for s in made}) == len(made)
    assert Subspace.sparse(model, {name: torch.tensor([2, 1])}).hash == made[2].hash


@pytest.mark.parametrize(
    ("text", "said"),
    [("mlp.upp", "mlp.upp"), ("frame:x", "frame:x"), ("frame:0", "0"), ("frame:100000", "100000")],
)
def test_text_that_means_nothing_is_one_clear_error(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Subspace.parse(tiny_llama(), text)


@pytest.mark.parametrize("indices", [[], [-1], [32 * 48], [3, 3]])
def test_bad_supports_are_refused(indices: list[int]) -> None:
    with pytest.raises(InputError, match="expected"):
        Subspace.sparse(tiny_llama(), {"model.layers.0.mlp.up_proj.weight": torch.tensor(indices, dtype=torch.int64)})


def test_packed_and_offloaded_weights_are_refused() -> None:
    model = tiny_llama()
    subspace = Subspace.all(model)
    packed = torch.nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False)
    model.model.layers[0].mlp.up_proj.weight = packed
    with pytest.raises(ModelError, match="packed as"):
        subspace.weights(model)
    model = tiny_llama().to("meta")
    with pytest.raises(ModelError, match="offloaded"):
        subspace.weights(model)


def test_a_subspace_of_another_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match="the subspace moves"):
        Subspace.all(tiny_llama()).weights(tiny_llama(hidden_size=64))
