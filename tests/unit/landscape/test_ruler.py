"""The ruler of subspaces of real architectures, beside plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as tf
from peft import IA3Config, LoraConfig, get_peft_model
from torch import Tensor

from catchment.landscape import Subspace, displaced, gaussian
from catchment.models import named_weights
from tests.tiny import CAUSAL, tiny_gemma2, tiny_llama

quiet = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
EMBEDDING = "model.embed_tokens.weight"


def plain(tensors: Sequence[Tensor]) -> float:
    return float(torch.cat([t.detach().double().reshape(-1) for t in tensors]).square().mean().sqrt())


def matrices(model: Any, besides: str = "") -> list[Tensor]:
    return [w for n, w in named_weights(model).items() if w.ndim >= 2 and n != besides]


@torch.no_grad()
def times(model: Any, factor: float, ends: str) -> Any:
    """Multiply the weights whose names end so."""
    hit = [w.mul_(factor) for n, w in model.named_parameters() if n.endswith(ends)]
    assert hit
    return model


@pytest.mark.parametrize("family", [f for f in CAUSAL if f != "mamba"])
def test_it_is_the_plain_rms_over_the_matrices_of_ordinary_models(family: str) -> None:
    model = CAUSAL[family]()
    card = Subspace.all(model).card(model)
    assert card.ruler is not None
    assert card.ruler.rms == pytest.approx(plain(matrices(model)), rel=1e-12)
    assert card.rms == pytest.approx(plain(list(named_weights(model).values())), rel=1e-12)
    assert card.ruler.share == pytest.approx(sum(w.numel() for w in matrices(model)) / card.size)
    assert (card.ruler.of, card.ruler.left_out, card.ruler.dtype) == ("matrices", (), "float32")


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (tiny_llama, "norm.weight"),
        (tiny_gemma2, "norm.weight"),  # gains of 1 + w, with w around 0
        (CAUSAL["qwen2"], "_proj.bias"),
        (CAUSAL["gpt2"], ".bias"),
        (CAUSAL["opt"], "layer_norm.weight"),
    ],
    ids=["llama norms", "zero-centred norms", "qwen biases", "gpt2 biases", "opt norms"],
)
def test_norms_and_biases_of_any_size_do_not_move_it(make: Any, ends: str) -> None:
    before = Subspace.all(make()).ruler(make())
    model = times(make(), 300, ends)
    after = Subspace.all(model).ruler(model)
    assert after == before
    assert Subspace.all(model).card(model).rms > 3 * after.rms, "while the RMS over all weights is moved"


def test_an_embedding_of_300_times_is_left_out_by_name() -> None:
    model = times(tiny_llama(), 300, "embed_tokens.weight")
    ruler = Subspace.all(model).ruler(model)
    assert ruler.left_out == (EMBEDDING,)
    assert ruler.rms == pytest.approx(plain(matrices(model, EMBEDDING)), rel=1e-12)
    tied = times(tiny_llama(tie_word_embeddings=True), 300, "embed_tokens.weight")
    assert Subspace.all(tied).ruler(tied).left_out == (EMBEDDING,)


def test_matrices_of_zeros_lower_it_by_their_share() -> None:
    model = times(tiny_llama(), 0, "down_proj.weight")
    ruler = Subspace.all(model).ruler(model)
    assert ruler.rms == pytest.approx(plain(matrices(model)), rel=1e-12)
    assert ruler.left_out == ()


def test_parts_of_matrices_count_in_a_sparse_support() -> None:
    model = times(tiny_llama(), 300, "norm.weight")
    weights = named_weights(model)
    drawn = torch.Generator().manual_seed(0)
    support = {n: torch.randperm(w.numel(), generator=drawn)[: max(4, w.numel() // 20)] for n, w in weights.items()}
    subspace = Subspace.sparse(model, support)
    ruler = subspace.ruler(model)
    parts = [weights[n].reshape(-1)[i] for n, i in support.items() if weights[n].ndim == 2]
    assert ruler.rms == pytest.approx(plain(parts), rel=1e-12)
    assert ruler.share == pytest.approx(sum(p.numel() for p in parts) / subspace.size)
    assert ruler.of == "matrices"


def test_globs_and_frames() -> None:
    model = times(tiny_llama(), 300, "norm.weight")
    block = Subspace.glob(model, "model.layers.0.*")
    inside = [w for n, w in named_weights(model).items() if n.startswith("model.layers.0.") and w.ndim == 2]
    assert block.ruler(model).rms == pytest.approx(plain(inside), rel=1e-12)
    frame = Subspace.frame(model, 4)
    assert frame.ruler(model).rms == pytest.approx(plain([named_weights(model)[n] for n in frame.shapes]), rel=1e-12)
    norms = Subspace.glob(model, "*norm.weight").ruler(model)
    assert norms.of == "vectors"
    assert norms.rms == pytest.approx(plain([w for n, w in named_weights(model).items() if "norm" in n]), rel=1e-12)


def test_moves_of_a_frame_are_spread_over_whole_matrices() -> None:
    """So the number format ends sooner, counted per dimension."""
    model = tiny_llama()
    frame = Subspace.frame(model, 4, patterns=["*.up_proj.weight"])
    direction = gaussian(frame, 0)
    per_weight = plain([direction.delta(name) for name in frame.shapes])
    assert frame.spread == pytest.approx(math.sqrt(48 / 4))
    assert per_weight * frame.spread == pytest.approx(1, abs=0.1)
    assert Subspace.all(model).spread == 1.0


def test_kernels_and_fused_experts_are_matrices() -> None:
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    image = tf.ViTForImageClassification(tf.ViTConfig(**config, image_size=16, patch_size=4))
    experts = tf.MixtralForCausalLM(
        tf.MixtralConfig(**config, num_key_value_heads=2, vocab_size=64, num_local_experts=4)
    )
    for model, dims in ((image, 4), (experts, 3)):
        used = [w for w in named_weights(model).values() if sum(n > 1 for n in w.shape) > 1]
        assert dims in {w.ndim for w in used}
        assert Subspace.all(model).ruler(model).rms == pytest.approx(plain(used), rel=1e-12)


def test_the_matrices_of_a_state_space_that_are_of_another_kind_are_named() -> None:
    model = CAUSAL["mamba"]()
    times(model, 100, "A_log")
    ruler = Subspace.all(model).ruler(model)
    assert {name.rpartition(".")[2] for name in ruler.left_out} == {"A_log"}


@quiet
def test_adapters_before_and_after_their_first_step() -> None:
    """Half of LoRA's matrices begin at zero; that is no reason to leave the others out, nor to jump."""
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    first = Subspace.all(model).ruler(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(1e-6)
    second = Subspace.all(model).ruler(model)
    assert first.left_out == second.left_out == ()
    assert first.rms == pytest.approx(second.rms, rel=1e-6)
    assert first.rms == pytest.approx(plain([p for n, p in model.named_parameters() if "lora_" in n]), rel=1e-6)


@quiet
def test_gains_stored_as_columns_are_vectors() -> None:
    model = get_peft_model(tiny_llama(), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    assert Subspace.all(model).ruler(model).of == "vectors"


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24)])
def test_the_step_is_where_moves_begin_to_vanish(dtype: torch.dtype, bits: int) -> None:
    """At a weight of the ruler's size: below the step rounding takes the move away, above twice the step it stays."""
    model = tiny_llama().to(dtype)
    ruler = Subspace.all(model).ruler(model)
    assert ruler.dtype == str(dtype).removeprefix("torch.")
    assert ruler.step == pytest.approx(ruler.rms * 2.0 ** -(bits + 1))
    for scale in (ruler.rms, 1.3 * ruler.rms, 1.9 * ruler.rms):
        weight = torch.tensor(scale, dtype=torch.float64).to(dtype)
        step = ruler.step * float(weight) / ruler.rms
        assert (weight.double() + 0.98 * step).to(dtype) == weight
        assert (weight.double() + 2.05 * step).to(dtype) != weight


def test_in_bfloat16_less_than_the_step_moves_hardly_anything() -> None:
    model = tiny_llama().to(torch.bfloat16)
    subspace = Subspace.all(model)
    ruler = subspace.ruler(model)
    name = "model.layers.0.mlp.up_proj.weight"
    before = named_weights(model)[name].detach().double().clone()
    moved = []
    for scale in (ruler.step / 8, 16 * ruler.step):
        with displaced(model, gaussian(subspace, 0), scale):
            moved.append(float((named_weights(model)[name].double() != before).double().mean()))
    assert moved[0] < 0.2
    assert moved[1] > 0.8
    assert math.isfinite(ruler.rms)
