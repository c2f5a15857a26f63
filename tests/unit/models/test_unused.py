"""Tensors that a checkpoint holds and the model does not use: every format, refused or told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from catchment.errors import ModelError
from catchment.models import card_of, load, weights_hash
from catchment.models.unused import check_unused
from tests.unit.models.conftest import build, word_tokenizer

Weights = dict[str, Tensor]
FORMATS = ("safetensors", "safetensors shards", "bin", "bin shards")


def rewritten(folder: Path, change: Callable[[Weights], Weights], form: str = "safetensors") -> str:
    """Change the weights of a saved model and write them in another format."""
    path = folder / "model.safetensors"
    weights = change(load_file(path))
    path.unlink()
    suffix = "safetensors" if form.startswith("safetensors") else "bin"
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = list(weights)
    parts = [names[0::2], names[1::2]] if form.endswith("shards") else [names]
    where: dict[str, str] = {}
    for i, part in enumerate(parts, start=1):
        file = f"{stem}-{i:05}-of-{len(parts):05}.{suffix}" if len(parts) > 1 else f"{stem}.{suffix}"
        held = {name: weights[name].contiguous() for name in part}
        if suffix == "bin":
            torch.save(held, folder / file)
        else:
            save_file(held, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    if len(parts) > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return str(folder)


def with_layer(weights: Weights) -> Weights:
    """One layer more than the config's two."""
    more = {k: v.clone() for k, v in weights.items() if ".1." in k}
    return {**weights, **{k.replace(".1.", ".2."): v for k, v in more.items()}}


def with_biases(weights: Weights) -> Weights:
    queries = {k: v for k, v in weights.items() if "q_proj" in k}
    return {**weights, **{k.replace("weight", "bias"): torch.full((len(v),), 3.0) for k, v in queries.items()}}


def also(**tensors: Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(old, new, 1): tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (with_biases, r"hold 2 tensors .*LlamaForCausalLM \(first: 'model\.layers\.0\.self_attn\.q_proj\.bias'\).*"
         "attention_bias: false"),
        (with_layer, r"hold 9 tensors .*\(first: 'model\.layers\.2\.input_layernorm\.weight'\).*"
         "num_hidden_layers: 2, but the files hold layer 2"),
    ],
)  # fmt: skip
def test_trained_weights_without_a_place(
    change: Callable[[Weights], Weights], match: str, form: str, saved: Callable[..., Path]
) -> None:
    spec = rewritten(saved(), change, form)
    for more in ({"device": "cpu"}, {"device_map": {"": "cpu"}}):
        with pytest.raises(ModelError, match=match):
            load(spec, **more)  # type: ignore[arg-type]
    assert card_of(spec, device="cpu") is None


@pytest.mark.parametrize(
    ("name", "head", "change", "match"),
    [
        ("GPT-2", "causal-lm", with_layer, r"\(first: 'transformer\.h\.2\.attn\.c_attn\.bias'\).*hold layer 2"),
        # transformers takes this one for a mask by its list, and does not report it
        ("GPT-2", "causal-lm", also(transformer__h__2__attn__c_attn__bias=torch.ones(48)),
         r"hold 1 tensor .*'transformer\.h\.2\.attn\.c_attn\.bias'"),
        ("GPT-NeoX", "causal-lm", also(gpt_neox__layers__0__attention__bias=torch.ones(16)),
         r"'gpt_neox\.layers\.0\.attention\.bias'.*trained biases"),
        ("BERT classifier", "auto", with_layer, r"'bert\.encoder\.layer\.2\..*hold layer 2"),
        ("BERT classifier", "auto", also(classifier__scale=torch.ones(2)), r"first: 'classifier\.scale'\)"),
        ("Llama classifier", "auto", also(score__bias=torch.ones(2)), r"'score\.bias'.*trained biases"),
        ("Llama tied", "causal-lm", also(lm_head__bias=torch.ones(40)), r"'lm_head\.bias'.*trained biases"),
        ("Llama tied", "causal-lm", with_biases, "attention_bias: false"),
        ("Llama", "causal-lm", also(model__layers__0__mlp__up_proj__weight_scale=torch.ones(24)),
         "no quantization_config"),
        ("Llama", "causal-lm", also(model__layers__0__mlp__up_proj__lora_A__weight=torch.ones(2, 16)),
         "merge the adapter"),
        ("Llama", "causal-lm", also(something=torch.ones(1)), "describes another model"),
        ("Llama", "causal-lm", renamed("", "_orig_mod."), r"prefix '_orig_mod\.'.* of a wrapper"),
        ("Llama", "causal-lm", renamed("", "module."), r"prefix 'module\.'.* of a wrapper"),
        ("Llama", "causal-lm", renamed("self_attn", "attention"), "8 of its weights are not in the files"),
    ],
)  # fmt: skip
def test_others_without_a_place(
    name: str, head: str, change: Callable[[Weights], Weights], match: str, saved: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=match):
        load(rewritten(saved(name), change), device="cpu", head=head)


MASK = torch.ones(32, 32).tril().bool()[None, None]
ROTARY = 1.0 / 10_000.0 ** (torch.arange(0, 8, 2) / 8)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("GPT-2", also(transformer__h__0__attn__bias=MASK, transformer__h__0__attn__masked_bias=torch.tensor(-1e4)),
         "2 tensors of its files are not used (first: 'transformer.h.0.attn.bias'): attention masks"),
        ("GPT-2", renamed("transformer.", ""), None),  # as the first files have it, which held masks too
        ("GPT-2", lambda weights: {**renamed("transformer.", "")(weights), "h.1.attn.bias": MASK}, "attention masks"),
        ("GPT-NeoX", also(gpt_neox__layers__1__attention__bias=MASK), "'gpt_neox.layers.1.attention.bias'): attention"),
        ("Llama", also(model__layers__0__self_attn__rotary_emb__inv_freq=ROTARY.half()), "rotary frequencies"),
        ("Llama", also(v_head__summary__weight=torch.ones(1, 16)), "1 tensor of its files is not used (first: 'v_h"),
        ("Llama", also(score__weight=torch.ones(2, 16)), "a head for another purpose"),
        ("Llama", also(vision_tower__a=torch.ones(1), multi_modal_projector__b=torch.ones(1)), "images or sound"),
        ("Llama", also(model__layers__0__self_attn__q_proj__vera_A__default=torch.ones(2, 16)), "VeRA adapter"),
        ("Llama", also(mtp__layers__0__weight=torch.ones(1)), "several tokens at once"),
        ("BERT classifier", also(bert__embeddings__position_ids=torch.arange(32)[None]), "position numbers"),
        ("BERT classifier", also(cls__predictions__bias=torch.ones(40), cls__seq_relationship__bias=torch.ones(2)),
         "2 tensors of its files are not used (first: 'cls.predictions.bias'): a head for another purpose"),
    ],
)  # fmt: skip
def test_what_is_known_not_to_be_needed(
    name: str, change: Callable[[Weights], Weights], told: str | None, form: str, saved: Callable[..., Path]
) -> None:
    spec = rewritten(saved(name), change, form)
    loaded = load(spec, device="cpu", head="auto")
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, build(name)(ids).logits, atol=1e-6)
    assert len(loaded.card.notes) == (0 if told is None else 1)
    assert told is None or told in loaded.card.notes[0]
    assert bool(loaded.unused) == (told is not None)
    assert card_of(spec, device="cpu", head="auto") == loaded.card


def test_a_language_model_as_a_classifier_leaves_its_head(saved: Callable[..., Path]) -> None:
    for name in ("Llama", "RoBERTa"):
        loaded = load(str(saved(name, folder=name)), device="cpu", head="sequence-classification")
        assert all(unused.startswith("lm_head.") for unused in loaded.unused)
        assert loaded.unused
        assert loaded.newly_initialised


def test_layers_for_several_tokens_behind_the_others(saved: Callable[..., Path]) -> None:
    def change(weights: Weights) -> Weights:
        return {**with_layer(weights), "model.layers.2.eh_proj.weight": torch.ones(16, 32)}

    loaded = load(rewritten(saved(), change), device="cpu")
    assert len(loaded.unused) == 10
    assert "several tokens at once" in loaded.card.notes[0]


@pytest.mark.parametrize("several", [True, False])
def test_a_layer_that_transformers_expects_to_be_of_another_kind(several: bool, saved: Callable[..., Path]) -> None:
    class Listed(tf.LlamaForCausalLM):  # as transformers has it for DeepSeek-V3, with layer 61
        _keys_to_ignore_on_load_unexpected = (r"model\.layers\.2.*",)

    folder = saved()
    held = with_layer(load_file(folder / "model.safetensors"))
    if several:
        held["model.layers.2.eh_proj.weight"] = torch.ones(16, 32)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    model, info = Listed.from_pretrained(folder, output_loading_info=True)
    assert info["unexpected_keys"] == set()
    if several:
        assert len(check_unused("it", model, [folder / "model.safetensors"], (), ()).names) == 10
        return
    with pytest.raises(ModelError, match=r"hold 9 tensors .*hold layer 2"):
        check_unused("it", model, [folder / "model.safetensors"], (), ())


def test_rotary_frequencies_of_another_config(saved: Callable[..., Path]) -> None:
    other = 1.0 / 500_000.0 ** (torch.arange(0, 8, 2) / 8)
    spec = rewritten(saved(), also(model__layers__0__self_attn__rotary_emb__inv_freq=other))
    with pytest.raises(ModelError, match=r"rotary_emb\.inv_freq.*rope_theta: 10000"):
        load(spec, device="cpu")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("name", "head", "embedding"),
    [
        ("Llama tied", "lm_head.weight", "model.embed_tokens.weight"),
        ("GPT-2", "lm_head.weight", "transformer.wte.weight"),
    ],
)
def test_a_head_of_its_own_under_a_config_that_ties_it(
    name: str, head: str, embedding: str, form: str, saved: Callable[..., Path]
) -> None:
    own = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
    spec = rewritten(saved(name), lambda weights: {**weights, head: own}, form)
    loaded = load(spec, device="cpu")
    assert len(loaded.card.notes) == 1
    assert f"ties {head!r} to {embedding!r}" in loaded.card.notes[0]
    plain = build(name)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        hidden = plain(ids, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(loaded.model(ids).logits, hidden @ own.T, atol=1e-5)
        loaded.model.tie_weights()  # as accelerate and PEFT do
        assert torch.allclose(loaded.model(ids).logits, hidden @ own.T, atol=1e-5)
    if form == "safetensors":
        assert loaded.card.weights_hash == weights_hash(spec)


@pytest.mark.parametrize("form", FORMATS)
def test_a_tied_head_that_is_stored_twice_is_the_same_model(form: str, saved: Callable[..., Path]) -> None:
    folder = saved("Llama tied")
    alone = load(str(folder), device="cpu").card
    spec = rewritten(folder, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()}, form)
    loaded = load(spec, device="cpu")
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert (loaded.card.weights_hash, loaded.card.config_hash) == (alone.weights_hash, alone.config_hash)
    assert loaded.card.notes == ()


@pytest.mark.parametrize("equal", [True, False])
def test_two_names_for_one_weight(equal: bool, saved: Callable[..., Path]) -> None:
    def change(weights: Weights) -> Weights:
        twin = weights["transformer.h.0.ln_1.weight"]
        return {**weights, "h.0.ln_1.weight": twin.clone() if equal else twin + 1}

    spec = rewritten(saved("GPT-2"), change)
    if equal:
        assert load(spec, device="cpu").newly_initialised == ()
        return
    with pytest.raises(ModelError, match=r"one weight under two names, .*'h\.0\.ln_1\.weight'"):
        load(spec, device="cpu")


def test_shapes_are_named(saved: Callable[..., Path]) -> None:
    spec = rewritten(saved(), also(lm_head__weight=torch.ones(42, 16)))
    with pytest.raises(
        ModelError, match=r"cannot load .*1 tensors have another shape .*'lm_head\.weight', \(42, 16\) and"
    ):
        load(spec, device="cpu")


def test_one_name_in_two_shards(saved: Callable[..., Path]) -> None:
    spec = rewritten(saved(), lambda weights: weights, "safetensors shards")
    one, two = sorted(Path(spec).glob("model-*.safetensors"))
    first, second = load_file(one), load_file(two)
    name = next(iter(first))
    save_file({**second, name: first[name].clone()}, two, {"format": "pt"})
    assert load(spec, device="cpu").card.weights_hash == weights_hash(build("Llama"))
    save_file({**second, name: first[name] + 1}, two, {"format": "pt"})
    with pytest.raises(ModelError, match="hold different tensors under one name"):
        load(spec, device="cpu")


def test_weights_beside_those_that_are_read(saved: Callable[..., Path]) -> None:
    folder = saved()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    loaded = load(str(folder), device="cpu")
    assert loaded.card.notes == ("pytorch_model.bin in its folder: not read, because model.safetensors comes first",)
    assert loaded.files == (folder / "model.safetensors",)


def test_a_whole_file_beside_old_shards_is_what_counts(saved: Callable[..., Path]) -> None:
    folder = saved()
    other = saved(seed=5, folder="other", max_shard_size="8KB")
    for file in other.glob("model*"):
        file.rename(folder / file.name)
    loaded = load(str(folder), device="cpu")
    expected = tf.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.card.weights_hash == weights_hash(build("Llama")) == weights_hash(folder) == weights_hash(expected)
    assert loaded.files == (folder / "model.safetensors",)
    assert "not read, because model.safetensors comes first" in loaded.card.notes[0]


def test_a_model_in_memory_has_nothing_unused() -> None:
    loaded = load(build("Llama"), tokenizer=word_tokenizer())
    assert (loaded.unused, loaded.card.notes) == ((), ())


@pytest.mark.parametrize("static", [True, False])
def test_scales_of_a_quantised_checkpoint_that_is_unpacked_while_it_is_read(
    static: bool, saved: Callable[..., Path]
) -> None:
    """Without a GPU for float8 transformers unpacks it and then forgets that its config said so."""
    folder, sizes = saved(), {"quant_method": "fp8", "activation_scheme": "static" if static else "dynamic"}
    plain = load_file(folder / "model.safetensors")
    packed, expected = dict(plain), dict(plain)
    for name in [name for name in plain if name.endswith("proj.weight")]:
        tensor, front = plain[name], name.removesuffix("weight")
        scale = tensor.abs().max() / 448
        packed[name] = (tensor / scale).to(torch.float8_e4m3fn)
        expected[name] = packed[name].float() * scale
        blocks = () if static else tuple(n // 8 for n in tensor.shape)
        packed[f"{front}weight_scale_inv"] = scale.expand(blocks).clone()
        packed |= {f"{front}input_scale": torch.ones(())} if static else {}
    packed["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    sizes["weight_block_size"] = None if static else [8, 8]
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": sizes}))
    loaded = load(str(folder), device="cpu")
    for name, tensor in loaded.model.state_dict().items():
        torch.testing.assert_close(tensor.float(), expected[name], rtol=2e-2, atol=1e-5)
    assert [note for note in loaded.card.notes if "scales for quantised activations" in note]


@pytest.mark.parametrize(
    ("mask", "plain"),
    [
        (torch.ones(32, 32).tril(), True),
        (torch.ones(32, 32).tril().to(torch.uint8), True),
        (torch.ones(32, 32).tril().triu(-3).bool(), True),  # local attention
        (torch.ones(32, 32), False),
        (torch.linspace(-1, 1, 32 * 32).reshape(32, 32).tril(), False),
    ],
)
def test_a_mask_that_is_none(mask: Tensor, plain: bool, saved: Callable[..., Path]) -> None:
    spec = rewritten(saved("GPT-2"), lambda weights: {**weights, "transformer.h.0.attn.bias": mask[None, None].clone()})
    if plain:
        assert load(spec, device="cpu").unused == ("transformer.h.0.attn.bias",)
        return
    with pytest.raises(ModelError, match=r"h\.0\.attn\.bias' in its files has the name and the shape of a causal mask"):
        load(spec, device="cpu")
