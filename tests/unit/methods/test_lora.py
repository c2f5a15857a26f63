"""LoRA under the protocol; the arithmetic of the adapter itself is PEFT's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from catchment.errors import InputError, ModelError, StoreError
from catchment.methods.dense import Full
from catchment.methods.lora import LoRA, LoRATuning
from catchment.methods.targets import target_weights
from catchment.models import effective_weights, load, named_weights
from tests.tiny import CAUSAL, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in effective_weights(model).items()}


def moved(tuning: LoRATuning, seed: int = 3) -> LoRATuning:
    """With a ``B`` that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in tuning.model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return tuning


@pytest.mark.parametrize("kind", list(CAUSAL))
def test_all_linear_means_the_same_weights_as_for_sparse_methods(kind: str) -> None:
    if kind == "mamba":
        pytest.skip("a Mamba block has neither attention nor FFN by name")
    wanted = set(target_weights(CAUSAL[kind](), "all-linear"))
    tuning = moved(LoRA(r=2).attach(CAUSAL[kind]()))
    base = CAUSAL[kind]()
    changed = {n for n, v in weights(tuning.model).items() if not torch.equal(v, named_weights(base)[n])}
    assert changed == wanted
    assert all(p.requires_grad == ("lora_" in name) for name, p in tuning.model.named_parameters())


def test_move_is_alpha_over_r_times_b_a_and_scales() -> None:
    tuning = moved(LoRA(r=4, lora_alpha=6, target_modules=("q_proj",)).attach(tiny_llama()))
    name, base = "model.layers.1.self_attn.q_proj.weight", tiny_llama()
    layer = tuning.model.base_model.model.model.layers[1].self_attn.q_proj
    product = 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    for factor, total in ((1.0, 1.0), (0.5, 0.5), (3.0, 1.5)):
        tuning.scale(factor)
        move = weights(tuning.model)[name] - named_weights(base)[name]
        torch.testing.assert_close(move, total * product, rtol=1e-4, atol=1e-6)


def test_seed_decides_the_start_and_global_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    a, b, c = (LoRA().attach(tiny_llama(), seed=seed).parameters()[0] for seed in (1, 1, 2))
    torch.manual_seed(9)
    d = LoRA().attach(tiny_llama(), seed=1).parameters()[0]  # tiny_llama seeds the global state, not the adapter
    assert torch.equal(a, b)
    assert torch.equal(a, d)
    assert not torch.equal(a, c)
    model = tiny_llama()
    torch.set_rng_state(state)
    LoRA().attach(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_saves_an_adapter_that_loads_on_its_base(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    tuning = moved(LoRA(target_modules=("q_proj", "v_proj")).attach(tiny_llama()))
    path = tuning.save_pretrained(tmp_path / "adapter")
    assert sum(file.stat().st_size for file in path.glob("*.safetensors")) < 40_000
    loaded = load(f"{tmp_path / 'base'}+{path}", tokenizer=tiny_tokenizer()).model
    ids = torch.arange(3, 11)[None]
    assert torch.equal(loaded(input_ids=ids).logits, tuning.model.eval()(input_ids=ids).logits)


def test_a_head_trains_beside_the_adapter(tmp_path: Path) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        return tf.BertForSequenceClassification(
            tf.BertConfig(
                vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
            )
        ).eval()

    base = weights(make())
    model = make()
    tuning = LoRA(modules_to_save=("classifier",)).attach(model)
    optimizer = tuning.optimizer(lr=0.1, weight_decay=0.1)
    out = tuning.model(input_ids=torch.arange(3, 11)[None], labels=torch.tensor([1])).loss
    out.backward()
    assert float(tuning.clip_grad_norm_(1e9)) > 0
    optimizer.step()
    tuned = weights(tuning.model)
    assert not torch.equal(tuned["classifier.weight"], base["classifier.weight"])
    tuning.save_pretrained(tmp_path)
    again = LoRA(modules_to_save=("classifier",)).attach(make(), seed=5)
    again.load_pretrained(tmp_path)
    assert all(torch.equal(value, tuned[name]) for name, value in weights(again.model).items())
    again.scale(0.5)
    middle = (base["classifier.weight"] + tuned["classifier.weight"]) / 2
    torch.testing.assert_close(weights(again.model)["classifier.weight"], middle)
    tuning.zero_grad()
    assert all(p.grad is None for p in tuning.parameters())
    removed = tuning.remove()
    assert removed is model
    assert all(torch.equal(value, base[name]) for name, value in weights(removed).items())
    merged = again.merge()
    assert isinstance(merged, tf.BertForSequenceClassification)
    torch.testing.assert_close(weights(merged)["classifier.weight"], middle)
    assert LoRA().attach(removed).parameters()  # a base that was given back can be tuned again


def test_one_module_to_save_is_given_by_its_name() -> None:
    one, several = LoRA(modules_to_save="lm_head"), LoRA(modules_to_save=["lm_head"])  # type: ignore[arg-type]
    assert one == several == LoRA(modules_to_save=("lm_head",))
    tuning = one.attach(tiny_llama())
    assert list(tuning._wrappers()) == ["lm_head"]


def test_refuses() -> None:
    with pytest.raises(InputError, match="r 0: expected a rank"):
        LoRA(r=0)
    with pytest.raises(InputError, match=r"lora_dropout 2"):
        LoRA(lora_dropout=2)
    for r in (2.5, float("inf"), True, "8"):
        with pytest.raises(InputError, match=rf"r {r!r}: expected a rank, a whole number"):
            LoRA(r=r)  # type: ignore[arg-type]
    for option in ("modules_to_save", "target_modules"):
        with pytest.raises(InputError, match=rf"{option} 5: expected a name or a list of names"):
            LoRA(**{option: 5})
        with pytest.raises(InputError, match=rf"{option} \[5\]: 5 is no name"):
            LoRA(**{option: [5]})
    model = tiny_llama()
    base, flags = weights(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(InputError, match=r"target_modules .*nothing_like"):
        LoRA(target_modules=("nothing_like",)).attach(model)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
    LoRA().attach(model)
    with pytest.raises(InputError, match="adapter already"):
        LoRA().attach(copy.deepcopy(model))


def standing(model: Any) -> list[Any]:
    """All that an attempt could leave behind in a model."""
    modules = [(name, id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()]
    return [modules, [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target_modules": ("q_proj", "input_layernorm")}, r"'model\.layers\.0\.input_layernorm', a LlamaRMSNorm"),
        ({"target_modules": ("q_proj", "mlp")}, r"names 'model\.layers\.0\.mlp', a LlamaMLP"),
        ({"target_modules": "q_proj"}, r"'q_proj': .*not found.*for an ending give a list: \['q_proj'\]"),
        ({"target_modules": "*.q_proj"}, r"nothing to repeat.*give a list: \['q_proj'\]"),
        ({"target_modules": ("nothing_like",), "modules_to_save": ("lm_head",)}, "nothing_like"),
    ],
)
def test_a_refused_target_leaves_no_trace(settings: dict[str, Any], match: str) -> None:
    model = tiny_llama()
    model.model.norm.weight.requires_grad_(False)
    before = standing(model)
    with pytest.raises(InputError, match=match):
        LoRA(**settings).attach(model)
    assert standing(model) == before
    LoRA().attach(model)


def test_an_interruption_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import LoraModel

    model, count = tiny_llama(), 0
    before, replace = standing(model), LoraModel._create_and_replace

    def interrupted(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        replace(*args, **kwargs)

    monkeypatch.setattr(LoraModel, "_create_and_replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LoRA().attach(model)
    assert standing(model) == before


@pytest.mark.parametrize("end", ["merge", "remove"])
def test_a_model_is_tuned_once_at_a_time(end: str) -> None:
    model = tiny_llama()
    tuning = LoRA().attach(model)
    for given in (model, tuning.model):  # also the wrapper that PEFT makes
        for method in (LoRA(), Full()):
            with pytest.raises(InputError, match=r"being tuned already; call remove\(\) or merge\(\)"):
                method.attach(given)
    full = Full().attach(getattr(tuning, end)())
    with pytest.raises(InputError, match="being tuned already"):
        LoRA().attach(model)
    assert full.remove() is model
    LoRA().attach(model)


def test_saving_onto_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file"):
        LoRA().attach(tiny_llama()).save_pretrained(tmp_path / "file")


def test_loading_another_adapter_is_refused(tmp_path: Path) -> None:
    tuning = LoRA(r=2).attach(tiny_llama())
    with pytest.raises(ModelError, match="no adapter_model"):
        tuning.load_pretrained(tmp_path)
    LoRA(r=4).attach(tiny_llama()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"another adapter: it was saved with r=4, and this tuning has r=2;"):
        tuning.load_pretrained(tmp_path)
    LoRA(r=2, target_modules=("q_proj",)).attach(tiny_llama()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="another adapter: expected r=2 and the same targets"):
        tuning.load_pretrained(tmp_path)


def test_loading_an_adapter_of_another_scale_is_refused(tmp_path: Path) -> None:
    """Its tensors fit, but they would mean another move."""
    moved(LoRA(lora_alpha=32, use_rslora=True).attach(tiny_llama())).save_pretrained(tmp_path)
    tuning = LoRA(lora_alpha=16).attach(tiny_llama())
    before = weights(tuning.model)
    told = r"saved with lora_alpha=32, use_rslora=True, and this tuning has lora_alpha=16, use_rslora=None"
    with pytest.raises(ModelError, match=told):
        tuning.load_pretrained(tmp_path)
    LoRA(lora_alpha=32, use_rslora=True).attach(tiny_llama()).load_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": {"q_proj": 64}}))
    with pytest.raises(ModelError, match=r"alpha_pattern=\{'q_proj': 64\}"):
        LoRA(lora_alpha=32, use_rslora=True).attach(tiny_llama()).load_pretrained(tmp_path)
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
            tuning.load_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match=r"cannot read .*adapter_config\.json"):
        tuning.load_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(tuning.model).items())


@pytest.mark.parametrize("keep", [0, 4, 100, -100, -1])
def test_a_truncated_adapter_is_refused(keep: int, tmp_path: Path) -> None:
    tuning = LoRA().attach(tiny_llama())
    path = tuning.save_pretrained(tmp_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors .*(cut short|damaged)"):
        tuning.load_pretrained(tmp_path)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    """Every byte is there, but a dtype is none that safetensors knows."""
    tuning = LoRA().attach(tiny_llama())
    path = tuning.save_pretrained(tmp_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"X32"', 1))
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors' is damaged"):
        tuning.load_pretrained(tmp_path)


@pytest.mark.parametrize("training", [False, True])
def test_adapters_are_in_the_mode_of_their_model(training: bool) -> None:
    """In a model that evaluates, dropout of the adapter is off as well."""
    tuning = LoRA(lora_dropout=0.5).attach(tiny_llama().train(training))
    assert {module.training for module in tuning.model.modules()} == {training}
