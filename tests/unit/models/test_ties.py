"""Ties that a tune cuts. What is right is taken from PEFT's and transformers' own forward passes: the embedding of each
token, and the head of each unit vector."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.landscape import Subspace, towards
from catchment.methods import Full, LoRA
from catchment.models import (
    Increment,
    drift,
    effective_weights,
    export_merged,
    load,
    make_increment,
    merge_adapter,
    named_weights,
    peft_hashes,
    save_model,
    untied,
    weights_hash,
)
from tests.unit.models.conftest import build, word_tokenizer

VOCABULARY, WIDTH = 40, 16
IDS = torch.tensor([[1, 5, 9, 30, 7, 20, 39]])
SIZES = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TIED = {
    **SIZES, "vocab_size": VOCABULARY, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True, "initializer_range": 0.3,
}  # fmt: skip
NEOX = {key: TIED[key] for key in TIED if key not in ("head_dim", "num_key_value_heads")}
GPT2 = {
    "n_embd": WIDTH,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": VOCABULARY,
    "n_positions": 32,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[Callable[[], Any], str, str, str]] = {
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TIED)), "embed_tokens", "lm_head", "q_proj"),
    "qwen2": (lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**TIED)), "embed_tokens", "lm_head", "q_proj"),
    "gemma3": (lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**TIED)), "embed_tokens", "lm_head", "q_proj"),
    "gpt2": (lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, eos_token_id=2)), "wte", "lm_head", "c_attn"),
    "pythia": (lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**NEOX)), "embed_in", "lm_head", "query_key_value"),
    "bert": (lambda: tf.BertLMHeadModel(tf.BertConfig(**NEOX, is_decoder=True)), "word_embeddings", "decoder", "query"),
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning"),
]


def tied(family: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[family][0]().eval()


def adapted(family: str, seed: int = 3, **settings: Any) -> Any:
    """A tied base under an adapter whose parameters are not what they start as; EMBEDDING and HEAD name modules."""
    from peft import LoraConfig, get_peft_model

    _, embedding, head, other = FAMILIES[family]
    names = {"EMBEDDING": embedding, "HEAD": head, "OTHER": other}

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [names.get(v, v) for v in value]
        return {names.get(k, k): v for k, v in value.items()} if isinstance(value, dict) else value

    settings = {"target_modules": ["OTHER"], **settings}
    torch.manual_seed(1)
    model = get_peft_model(tied(family), LoraConfig(r=2, **{k: named(v) for k, v in settings.items()}))
    return nudged(model, seed).eval()


def nudged(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@torch.no_grad()
def ends(model: Any) -> tuple[Tensor, Tensor]:
    """Embedding matrix and head matrix, as the model computes: no weight is read."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    embedding = inner.get_input_embeddings()(torch.arange(VOCABULARY))
    if inner.config.model_type == "gemma3_text":
        embedding = embedding / WIDTH**0.5
    head = inner.get_output_embeddings()
    return embedding, (head(torch.eye(WIDTH)) - head(torch.zeros(WIDTH, WIDTH))).T


def moves(base: Any, tuned: Any) -> list[float]:
    return sorted(float((b - a).norm()) for a, b in zip(ends(base), ends(tuned), strict=True))


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


CUTS: dict[str, dict[str, Any]] = {
    "head to save": {"modules_to_save": ["HEAD"]},
    "embedding to save": {"modules_to_save": ["EMBEDDING"]},
    "both to save": {"modules_to_save": ["EMBEDDING", "HEAD"]},
    "LoRA on the head": {"target_modules": ["OTHER", "HEAD"]},
    "LoRA on the embedding": {"target_modules": ["OTHER", "EMBEDDING"]},
    "LoRA on both": {"target_modules": ["EMBEDDING", "HEAD"]},
    "DoRA on the head": {"target_modules": ["HEAD"], "use_dora": True},
    "DoRA on the embedding": {"target_modules": ["EMBEDDING"], "use_dora": True},
}
CASES = [("llama", name) for name in CUTS] + [
    ("gpt2", "LoRA on both"), ("gpt2", "head to save"), ("pythia", "LoRA on the embedding"), ("pythia", "both to save"),
    ("gemma3", "LoRA on the head"), ("gemma3", "embedding to save"), ("qwen2", "head to save"),
    ("bert", "LoRA on the embedding"), ("bert", "head to save"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "case"), CASES)
def test_an_adapter_that_cuts_a_tie(family: str, case: str, tmp_path: Path) -> None:
    base, tuned = tied(family), adapted(family, **CUTS[case])
    expected, before = logits(tuned), {n: t.clone() for n, t in tuned.state_dict().items()}
    distances = drift(base, tuned)
    seen = [row.distance for row in distances.tensors if row.size == VOCABULARY * WIDTH]
    assert sorted(seen) == pytest.approx(moves(base, tuned), rel=1e-3, abs=1e-4)
    folder = export_merged(tuned, base, tmp_path / "merged")
    assert all(torch.equal(t, before[n]) for n, t in tuned.state_dict().items())
    assert config_of(folder)["tie_word_embeddings"] is False
    plain, info = tf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    torch.testing.assert_close(logits(plain.eval()), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="an increment cannot untie them"):
        make_increment(base, tuned, tmp_path / "move.safetensors")
    assert base.config.tie_word_embeddings
    assert torch.equal(logits(base), logits(tied(family)))


KEPT: dict[str, dict[str, Any]] = {
    "tied to save": {"modules_to_save": ["EMBEDDING"], "ensure_weight_tying": True},
    "tied LoRA": {"target_modules": ["OTHER", "EMBEDDING"], "ensure_weight_tying": True},
    "trained tokens": {"trainable_token_indices": [5, 9, 30]},
}


@pytest.mark.parametrize("case", list(KEPT))
def test_an_adapter_that_keeps_a_tie(case: str, tmp_path: Path) -> None:
    base, tuned = tied("llama"), adapted("llama", **KEPT[case])
    expected, distances = logits(tuned), drift(base, tuned)
    assert "lm_head.weight" not in {row.name for row in distances.tensors}
    embedding, head = ends(tuned)
    torch.testing.assert_close(embedding, head, rtol=1e-4, atol=1e-5)
    row = next(row for row in distances.tensors if row.name == "model.embed_tokens.weight")
    assert row.distance == pytest.approx(moves(base, tuned)[0], rel=1e-3)
    folder = export_merged(tuned, base, tmp_path / "merged")
    plain = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    increment = make_increment(base, tuned, tmp_path / "move.safetensors")
    with increment.applied(base):
        torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-4)
    adapter = [n for n in named_weights(tuned, "adapter") if "embed_tokens" in n or "lm_head" in n]
    assert set(adapter) <= set(Subspace.all(tuned).shapes)
    assert all("lm_head" not in name for name in adapter)  # the head's are the embedding's own


def test_trained_tokens_that_differ_cut_the_tie(tmp_path: Path) -> None:
    base, tuned = tied("llama"), adapted("llama", trainable_token_indices={"EMBEDDING": [5, 6], "HEAD": [9, 30]})
    folder = export_merged(tuned, base, tmp_path / "merged")
    torch.testing.assert_close(
        logits(tf.AutoModelForCausalLM.from_pretrained(folder).eval()), logits(tuned), rtol=1e-4, atol=1e-4
    )
    changed = {row.name: row.changed for row in drift(base, tuned).tensors if row.size == VOCABULARY * WIDTH}
    assert changed == {"model.embed_tokens.weight": 2 * WIDTH, "lm_head.weight": 2 * WIDTH}


def test_trained_tokens_of_a_head_with_a_bias_are_refused() -> None:
    with pytest.raises(ModelError, match="leaves out the bias"):
        drift(tied("bert"), adapted("bert", trainable_token_indices=[5, 9]))


def test_trained_tokens_around_another_adapter_are_refused(tmp_path: Path) -> None:
    tuned = adapted("llama", target_modules=["HEAD"], trainable_token_indices=[5, 9])
    with pytest.raises(ModelError, match="whose tokens are trained"):
        export_merged(tuned, tied("llama"), tmp_path / "merged")
    with pytest.raises(ModelError, match="whose tokens are trained"):
        merge_adapter(tuned)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", ["head to save", "LoRA on the embedding", "LoRA on both"])
def test_merging_in_place(family: str, case: str, tmp_path: Path) -> None:
    tuned = adapted(family, **CUTS[case])
    expected = logits(tuned)
    merged = merge_adapter(tuned)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert merged.config.tie_word_embeddings is False
    assert sum(moves(tied(family), merged)) == pytest.approx(
        sum(r.distance for r in drift(tied(family), merged).tensors if r.size == VOCABULARY * WIDTH), rel=1e-3
    )


def test_merging_in_place_keeps_the_tie_of_a_tied_adapter(tmp_path: Path) -> None:
    adapted("llama", **KEPT["tied LoRA"]).save_pretrained(tmp_path / "adapter")
    tied("llama").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    tuned = load(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}").model
    expected = logits(tuned)
    merged = merge_adapter(tuned)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings is True
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_the_active_adapter_decides(tmp_path: Path) -> None:
    from peft import LoraConfig

    base, tuned = tied("llama"), adapted("llama", modules_to_save=["HEAD"])
    tuned.add_adapter("other", LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False))
    hashes, seen = set(), {}
    for name in ("default", "other"):
        tuned.set_adapter(name)
        expected = logits(tuned)
        seen[name] = {row.name for row in drift(base, tuned).tensors if row.changed and row.size == VOCABULARY * WIDTH}
        folder = export_merged(tuned, base, tmp_path / name)
        plain = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
        torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
        hashes.add(weights_hash(tuned))
    assert seen == {"default": {"lm_head.weight"}, "other": {"model.embed_tokens.weight"}}
    with tuned.disable_adapter():
        assert drift(base, tuned).changed == 0
        assert "lm_head.weight" not in effective_weights(tuned).held
        hashes.add(weights_hash(tuned))
    assert len(hashes) == 3  # other functions, other hashes


def untied_from(base: Any, scale: float = 0.2) -> Any:
    """A full tune that moved the head alone: two tensors, and a config that knows nothing of it."""
    tuned = copy.deepcopy(base)
    torch.manual_seed(4)
    weight = base.lm_head.weight.detach()
    tuned.lm_head.weight = nn.Parameter(weight + scale * torch.randn_like(weight))
    return tuned


def test_a_full_tune_that_unties_and_one_that_ties(tmp_path: Path) -> None:
    base = tied("llama")
    tuned = untied_from(base)
    expected, distance = logits(tuned), moves(base, tuned)[1]
    for one, other in ((base, tuned), (tuned, base)):
        difference = drift(one, other)
        assert difference.distance == pytest.approx(distance, rel=1e-5)
        assert difference.size == sum(t.numel() for t in named_weights(tuned).values())
    folder = export_merged(tuned, base, tmp_path / "untied")
    torch.testing.assert_close(logits(tf.AutoModelForCausalLM.from_pretrained(folder).eval()), expected)
    back = export_merged(base, tuned, tmp_path / "tied")
    torch.testing.assert_close(logits(tf.AutoModelForCausalLM.from_pretrained(back).eval()), logits(base))
    increment = make_increment(tuned, base, tmp_path / "move.safetensors")  # an untied base can take tied values
    with increment.applied(tuned):
        torch.testing.assert_close(logits(tuned), logits(base))
    save_model(tuned, tmp_path / "saved")
    assert config_of(tmp_path / "saved")["tie_word_embeddings"] is False
    torch.testing.assert_close(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()), expected)


def test_what_is_tied_in_memory_is_saved_under_both_names_where_the_config_ties_nothing(tmp_path: Path) -> None:
    model = build("Llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    save_model(model, tmp_path / "saved")
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(logits(plain), logits(model))


def test_equal_tensors_that_are_not_tied_are_another_point(tmp_path: Path) -> None:
    base = tied("llama")
    twin = untied_from(base, scale=0)
    assert drift(base, twin).changed == 0
    assert weights_hash(base) != weights_hash(twin)
    for name, model in (("base", base), ("twin", twin)):
        save_model(model, tmp_path / name)
        assert weights_hash(tmp_path / name) == weights_hash(model)
        assert weights_hash(tf.AutoModelForCausalLM.from_pretrained(tmp_path / name)) == weights_hash(model)
    moved = copy.deepcopy(twin)
    with torch.no_grad():
        moved.model.embed_tokens.weight[5] += 1
    increment = make_increment(twin, moved, tmp_path / "move.safetensors")
    with pytest.raises(ModelError, match="was made for a base"):
        increment.verify(weights_hash(base))
    assert Increment.read(tmp_path / "move.safetensors").k == WIDTH


@pytest.mark.parametrize("case", ["both to save", "LoRA on both"])
def test_a_subspace_of_an_adapter_that_cuts_a_tie_lists_both(case: str) -> None:
    tuned = adapted("llama", **CUTS[case])
    shapes = Subspace.all(tuned).shapes
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert set(shapes) == trained
    assert any("embed_tokens" in name for name in trained)
    assert any("lm_head" in name for name in trained)
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= Subspace.all(merge_adapter(tuned)).shapes.keys()


def test_the_way_to_an_untied_model_needs_an_untied_model() -> None:
    base = tied("llama")
    tuned = adapted("llama", modules_to_save=["HEAD"])
    with pytest.raises(ModelError, match=r"'lm_head.weight' than for 'model.embed_tokens.weight'"):
        towards(base, tuned)
    with pytest.raises(ModelError, match="Untie it"):
        towards(base, tuned, Subspace.glob(base, "model.embed_tokens.weight"))
    before, held = logits(base), base.lm_head.weight
    with untied(base, tuned) as names:
        assert names == ["lm_head.weight"]
        torch.testing.assert_close(logits(base), before, rtol=0, atol=0)
        way = towards(base, tuned)
        assert way.distance == pytest.approx(drift(base, tuned).distance)
    assert base.lm_head.weight is held is base.model.embed_tokens.weight


def test_untied_restores_what_failed_inside() -> None:
    base = tied("gpt2")
    with pytest.raises(RuntimeError), untied(base, untied_from(base)):
        raise RuntimeError
    assert base.lm_head.weight is base.transformer.wte.weight
    with untied(base, tied("gpt2")) as names:
        assert names == []


def test_configs_inside_a_config(tmp_path: Path) -> None:
    """A multimodal config has the field twice."""
    text = {**TIED, "tie_word_embeddings": True}
    vision = {**SIZES, "image_size": 14, "patch_size": 7}
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=38)
    torch.manual_seed(0)
    base = tf.Gemma3ForConditionalGeneration(config).eval()
    assert base.lm_head.weight is base.model.language_model.embed_tokens.weight
    tuned = untied_from(base)
    folder = export_merged(tuned, base, tmp_path / "merged")
    assert config_of(folder)["tie_word_embeddings"] is False
    assert config_of(folder)["text_config"]["tie_word_embeddings"] is False
    plain = tf.Gemma3ForConditionalGeneration.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(plain), logits(tuned))
    assert config.tie_word_embeddings
    assert config.text_config.tie_word_embeddings


def test_an_encoder_decoder_that_is_cut_is_not_saved(tmp_path: Path) -> None:
    base = build("T5")
    tuned = copy.deepcopy(base)
    tuned.lm_head.weight = nn.Parameter(base.lm_head.weight + 1)
    assert drift(base, tuned).distance == pytest.approx(base.lm_head.weight.numel() ** 0.5)
    with pytest.raises(ModelError, match="computes something else"):
        export_merged(tuned, base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("setting", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("modules", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")])
def test_our_lora_on_tied_weights(setting: str, modules: tuple[str, ...], tmp_path: Path) -> None:
    base = tied("llama")
    flags = {n: p.requires_grad for n, p in base.named_parameters(remove_duplicate=False)}
    tuning = LoRA(r=2, **{"target_modules": ("q_proj",), setting: modules}).attach(base)  # type: ignore[arg-type]
    nudged(tuning.model, 3)
    expected = logits(tuning.model)
    tuning.save_pretrained(tmp_path / "adapter")
    merged: Any = tuning.merge()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert {n: p.requires_grad for n, p in merged.named_parameters(remove_duplicate=False)} == flags
    tied("llama").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    loaded = load(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}").model
    torch.testing.assert_close(logits(loaded), expected)
    assert drift(tied("llama"), loaded).distance == pytest.approx(drift(tied("llama"), merged).distance, rel=1e-4)


def test_our_lora_taken_off_a_tied_base_leaves_it_tied() -> None:
    tuning = LoRA(r=2, target_modules=("q_proj", "lm_head"), modules_to_save="embed_tokens").attach(tied("llama"))
    nudged(tuning.model, 3)
    base: Any = tuning.remove()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert torch.equal(logits(base), logits(tied("llama")))


def test_a_full_tune_of_an_untied_head_is_saved_with_both(tmp_path: Path) -> None:
    model = untied_from(tied("llama"))
    tuning = Full().attach(model)
    nudged(model, 3)
    tuning.save_pretrained(tmp_path / "tuned")
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    torch.testing.assert_close(logits(plain), logits(model))
    assert config_of(tmp_path / "tuned")["tie_word_embeddings"] is False
    nudged(model, 5)
    tuning.load_pretrained(tmp_path / "tuned")
    torch.testing.assert_close(logits(model), logits(plain))


OTHERS: dict[str, Callable[[Any], Any]] = {
    "trained tokens": lambda peft: peft.TrainableTokensConfig(token_indices=[5], target_modules=["embed_tokens"]),
    "LoHa": lambda peft: peft.LoHaConfig(r=2, target_modules=["lm_head"], init_weights=False),
    "VeRA": lambda peft: peft.VeraConfig(r=2, target_modules=["lm_head"]),
    "OFT": lambda peft: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["lm_head"]),
    "IA3": lambda peft: peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[]),
    "SHiRA": lambda peft: peft.ShiraConfig(r=2, target_modules=["lm_head"]),
    "layer norms": lambda peft: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(OTHERS))
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
def test_other_kinds_of_adapters_on_a_tied_base(kind: str, tmp_path: Path) -> None:
    import peft

    base = tied("llama")
    tuned = nudged(peft.get_peft_model(tied("llama"), OTHERS[kind](peft)), 3).eval()
    seen = [row.distance for row in drift(base, tuned).tensors if row.size == VOCABULARY * WIDTH]
    assert max(seen) == pytest.approx(moves(base, tuned)[1], rel=1e-3)
    assert drift(base, tuned).changed > 0
    plain = tf.AutoModelForCausalLM.from_pretrained(export_merged(tuned, base, tmp_path / "merged")).eval()
    torch.testing.assert_close(logits(plain), logits(tuned), rtol=1e-4, atol=1e-4)
    assert peft_hashes(tuned)[0] == weights_hash(base)


def test_adapters_of_several_parameters_of_one_module(tmp_path: Path) -> None:
    """Experts: PEFT puts one layer around another."""
    from peft import LoraConfig, get_peft_model

    config = tf.MixtralConfig(**{**TIED, "num_local_experts": 2, "num_experts_per_tok": 1})
    torch.manual_seed(0)
    base = tf.MixtralForCausalLM(config).eval()
    names = [f"mlp.experts.{name}_proj" for name in ("gate_up", "down")]
    lora = LoraConfig(r=2, target_modules=[], target_parameters=names, init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(base), lora).eval()
    moved = {row.name for row in drift(base, tuned).tensors if row.changed}
    assert moved == {f"model.layers.0.{name}" for name in names}
    assert {n: tuple(t.shape) for n, t in named_weights(tuned, "base").items()} == {
        n: tuple(t.shape) for n, t in named_weights(base).items()
    }
    assert len(named_weights(tuned, "adapter")) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        folder = export_merged(tuned, base, tmp_path / "merged")
    plain = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(plain), logits(tuned), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_ends_that_peft_ties_in_training_only(family: str, tmp_path: Path) -> None:
    """PEFT knows Llama's embeddings by their name and not these; what the message advises gives what was trained."""
    _, embedding, head, _ = FAMILIES[family]
    base, tune = tmp_path / "base", tmp_path / "tune"
    tied(family).save_pretrained(base)
    word_tokenizer().save_pretrained(base)
    model = adapted(family, target_modules=["EMBEDDING", "HEAD"], ensure_weight_tying=True)
    model.save_pretrained(tune)
    with pytest.raises(ModelError, match=r"lm_head\.lora_A.*says ensure_weight_tying.*set it to false"):
        load(f"{base}+{tune}", device="cpu")
    config = tune / "adapter_config.json"
    advised = {"ensure_weight_tying": False, "target_modules": [embedding, head]}
    config.write_text(json.dumps({**json.loads(config.read_text()), **advised}))
    torch.testing.assert_close(logits(load(f"{base}+{tune}", device="cpu").model), logits(model))
