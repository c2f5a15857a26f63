"""Adapters whose file and base do not belong together: nothing is dropped, nothing stays untrained in silence."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from catchment.errors import ModelError
from catchment.models import load, weights_hash
from catchment.models.compat import quiet_peft
from tests.unit.models.conftest import build, word_tokenizer

Weights = dict[str, Tensor]
FRONT = "base_model.model."
LAYER = f"{FRONT}model.layers"


def trained(model: Any, config: Any, folder: Path, **how: Any) -> Any:
    """An adapter that moves something, saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():  # PEFT says that it saves targeted embeddings
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder, **how)
    return adapted


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})


def rewritten(folder: Path, change: Callable[[Weights], Weights], form: str) -> None:
    path = folder / "adapter_model.safetensors"
    weights = change(load_file(path))
    path.unlink()
    if form == "bin":
        torch.save(weights, folder / "adapter_model.bin")
    else:
        save_file(weights, path)


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def also(name: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.ones(shape)}


def reconfigured(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("options", "change", "match"),
    [
        ({}, without("layers.1."), rf"lacks 4 tensors \(first: '{LAYER}\.1\.self_attn\.q_proj\.lora_A\.weight'\)"),
        ({}, without("lora_B"), rf"lacks 4 tensors \(first: '{LAYER}\.0\.self_attn\.q_proj\.lora_B\.weight'\)"),
        ({}, also(f"{LAYER}.2.self_attn.q_proj.lora_A.weight", 2, 16), "base has 2 layers, and this is of layer 2"),
        ({}, also(f"{LAYER}.0.mlp.up_proj.lora_A.weight", 2, 16), "holds 1 tensors that find no place"),
        ({}, also(f"{LAYER}.0.self_attn.q_proj.bias", 16), r"first: .*q_proj\.bias'"),
        ({}, also(f"{LAYER}.0.self_attn.q_proj.weight", 16, 16), r"first: .*q_proj\.weight'"),
        ({}, also("junk", 1), "begin with 'base_model"),
        ({}, lambda weights: {k.removeprefix(FRONT): v for k, v in weights.items()}, "begin with 'base_model"),
        ({"use_dora": True}, without("magnitude"), r"lacks 4 tensors .*lora_magnitude_vector'"),
        ({"modules_to_save": ["lm_head"]}, without("lm_head"), r"lacks 'base_model\.model\.lm_head\.weight'"),
        ({"trainable_token_indices": [4, 5]}, without("trainable_tokens"), r"lacks '.*trainable_tokens_delta'"),
        ({"bias": "all", "target_modules": ["q_proj"]}, lambda weights: weights, None),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_their_config(
    options: dict[str, Any],
    change: Callable[[Weights], Weights],
    match: str | None,
    form: str,
    saved: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base, folder = saved(), tmp_path / "adapter"
    trained(build("Llama"), lora(**options), folder)
    rewritten(folder, change, form)
    if match is None:
        assert load(f"{base}+{folder}", device="cpu").newly_initialised == ()
        return
    with pytest.raises(ModelError, match=match):
        load(f"{base}+{folder}", device="cpu")


@pytest.mark.parametrize(
    ("options", "changes", "match"),
    [
        ({"use_dora": True}, {"use_dora": False}, r"lora_magnitude_vector.*use_dora: False"),
        ({"modules_to_save": ["norm"]}, {"modules_to_save": None, "target_modules": ["q_proj"]}, "v_proj"),
        ({"trainable_token_indices": [4, 5]}, {"trainable_token_indices": None}, "trainable_tokens_delta"),
        ({}, {"layers_to_transform": [0]}, r"hold.* 4 tensors .*layers\.1\."),
        ({}, {"target_modules": ["v_proj"]}, r"q_proj\.lora_A"),
        ({}, {"target_modules": ["q_proj", "v_proj", "up_proj"]}, r"lacks 4 tensors .*mlp\.up_proj"),
        ({}, {"target_modules": ["c_attn"]}, "c_attn"),
        ({}, {"r": 3}, r"size mismatch for base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_A"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_their_file(
    options: dict[str, Any], changes: dict[str, Any], match: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    base, folder = saved(), tmp_path / "adapter"
    trained(build("Llama"), lora(**options), folder)
    reconfigured(folder, **changes)
    with pytest.raises(ModelError, match=match):
        load(f"{base}+{folder}", device="cpu")


@pytest.mark.parametrize(
    ("name", "match"),
    [("GPT-2", "q_proj"), ("BERT classifier", "q_proj")],
)
def test_an_adapter_of_another_architecture(name: str, match: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    trained(build("Llama"), lora(), tmp_path / "adapter")
    with pytest.raises(ModelError, match=match):
        load(f"{saved(name)}+{tmp_path / 'adapter'}", device="cpu", head="auto")


def deeper(layers: int) -> Any:
    config = build("Llama").config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return type(build("Llama"))(config).eval()


def test_an_adapter_of_a_base_with_other_layers(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved()
    trained(deeper(4), lora(), tmp_path / "four")
    with pytest.raises(
        ModelError, match=r"8 tensors .*layers\.2\.self_attn.*base has 2 layers, and this is of layer 2"
    ):
        load(f"{base}+{tmp_path / 'four'}", device="cpu")
    trained(deeper(1), lora(), tmp_path / "one")
    with pytest.raises(ModelError, match=r"lacks 4 tensors .*layers\.1\..* or give the base"):
        load(f"{base}+{tmp_path / 'one'}", device="cpu")


KINDS: dict[str, Any] = {
    "LoRA": lora(),
    "DoRA": lora(use_dora=True),
    "biases": lora(bias="all"),
    "norms whole": lora(modules_to_save=["norm"]),
    "tokens": lora(trainable_token_indices=[4, 5]),
    "embeddings": lora(target_modules=["embed_tokens", "lm_head"]),
    "IA3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj"], feedforward_modules=[]),
    "LoHa": peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_adapters_compute_what_was_trained(
    kind: str, form: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    base, folder = saved(), tmp_path / "adapter"
    oracle = trained(build("Llama"), KINDS[kind], folder)
    rewritten(folder, lambda weights: weights, form)
    loaded = load(f"{base}+{folder}", device="cpu")
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        logits = loaded.model(ids).logits
        assert torch.allclose(logits, oracle(ids).logits, atol=1e-6)
        assert not torch.allclose(logits[:, -3:], build("Llama")(ids).logits, atol=1e-4)
    assert (loaded.newly_initialised, loaded.card.notes) == ((), ())


def test_embeddings_saved_with_the_adapter_are_used(saved: Callable[..., Path], tmp_path: Path) -> None:
    base, folder = saved(), tmp_path / "adapter"
    moved = build("Llama")
    with torch.no_grad():
        moved.model.embed_tokens.weight.add_(1.0)
    oracle = trained(moved, lora(), folder, save_embedding_layers=True)
    loaded = load(f"{base}+{folder}", device="cpu")
    assert loaded.card.weights_hash == weights_hash(oracle)


def test_a_head_that_comes_with_the_adapter_is_not_random(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved()  # a language model: it has no classifier's head
    oracle = trained(build("Llama classifier"), lora(task_type="SEQ_CLS"), tmp_path / "adapter")
    loaded = load(f"{base}+{tmp_path / 'adapter'}", device="cpu", head="sequence-classification")
    ids = torch.tensor([[3, 4, 5]])
    backbone, head = oracle.get_base_model().model, oracle.get_base_model().score
    assert loaded.newly_initialised == ()
    assert loaded.unused == ("lm_head.weight",)
    mine = loaded.model.get_base_model()
    with torch.no_grad():
        backbone.load_state_dict(mine.model.state_dict())  # the same base under both
        assert torch.allclose(mine.score(backbone(ids)[0]), head(backbone(ids)[0]), atol=1e-6)


def test_a_classifiers_adapter_on_a_language_model(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved()
    trained(build("Llama classifier"), lora(task_type="SEQ_CLS"), tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"score\.weight.*load it with head 'sequence-classification'"):
        load(f"{base}+{tmp_path / 'adapter'}", device="cpu")


def test_notes_of_the_base_are_the_adapters_too(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved()
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "v_head.summary.bias": torch.ones(1)}, base / "model.safetensors", {"format": "pt"})
    trained(build("Llama"), lora(), tmp_path / "adapter")
    loaded = load(f"{base}+{tmp_path / 'adapter'}", device="cpu", tokenizer=word_tokenizer())
    assert loaded.unused == ("v_head.summary.bias",)
    assert "a value head" in loaded.card.notes[0]


@pytest.mark.parametrize("targets", [["q_proj"], ["up_proj"]])
@pytest.mark.parametrize("written", ["as a sum", "by its config"])
def test_an_adapter_on_another_adapter(
    targets: list[str], written: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT overwrites the first one where both have the name ``default``, while it trains and while it loads."""
    base, first, second = saved("Llama"), tmp_path / "first", tmp_path / "second"
    trained(build("Llama"), lora(target_modules=["q_proj"]), first)
    with quiet_peft():
        below = peft.PeftModel.from_pretrained(build("Llama"), first)
    trained(below, lora(target_modules=targets), second)
    reconfigured(first, base_model_name_or_path=str(base))
    reconfigured(second, base_model_name_or_path=str(first))
    spec = f"{base}+{first}+{second}" if written == "as a sum" else str(second)
    with pytest.raises(ModelError, match=r"puts the adapter 'second' on another one, 'first'.*merge the first"):
        load(spec, device="cpu")
