from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catchment.errors import CatchmentError, InputError, ModelError, StoreError
from catchment.models import (
    card_of,
    find_device,
    load,
    loading,
    make_increment,
    named_weights,
    peft_hashes,
    weights_hash,
)
from tests.unit.models.conftest import build, word_tokenizer
from tests.unit.models.test_weights import lora, moved


def test_a_folder(saved: Callable[..., Path]) -> None:
    folder = saved("Llama tied")
    loaded = load(str(folder), device="cpu")
    card = loaded.card
    assert not loaded.model.training
    assert loaded.tokenizer("w3 w4")["input_ids"] == [3, 4]
    assert loaded.newly_initialised == ()
    assert card.weights_hash == weights_hash(build("Llama tied")) == weights_hash(folder)
    assert (card.name, card.source, card.architecture) == (str(folder), "folder", "LlamaForCausalLM")
    assert card.parameters == sum(p.numel() for p in build("Llama tied").parameters())
    assert (card.dtype, card.device, card.quantization, card.base) == ("float32", "cpu", None, None)
    loaded.movable()
    loaded.release()
    assert loaded.model is None


def test_the_same_model_in_memory(saved: Callable[..., Path]) -> None:
    from_folder = load(str(saved()), device="cpu").card
    model = build("Llama")
    in_memory = load(model, tokenizer=word_tokenizer())
    assert in_memory.model is model
    assert in_memory.card == dataclasses.replace(from_folder, name="LlamaForCausalLM", source="memory")
    with pytest.raises(InputError, match=r"load\(model, tokenizer=tokenizer\)"):
        load(model)
    with pytest.raises(InputError, match="convert it to bfloat16"):
        load(model, tokenizer=word_tokenizer(), dtype="bfloat16")
    with pytest.raises(InputError, match="a dict is no model"):
        load({}, tokenizer=word_tokenizer())
    assert card_of(model) is None


def test_dtype_and_attention(saved: Callable[..., Path]) -> None:
    folder = str(saved(dtype=torch.bfloat16))
    own = load(folder, device="cpu").card
    assert (own.dtype, own.attention) == ("bfloat16", "sdpa")
    wide = load(folder, device="cpu", dtype="float32", attn_implementation="eager").card
    assert (wide.dtype, wide.attention) == ("float32", "eager")
    assert wide.weights_hash != own.weights_hash
    assert wide.config_hash == own.config_hash


def test_card_without_loading(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved()
    assert card_of(str(folder), device="cpu") is None
    card = load(str(folder), device="cpu").card
    monkeypatch.setattr(loading, "open_source", None)
    assert card_of(str(folder), device="cpu") == card
    assert card_of(str(folder), device="cpu", dtype="bfloat16") is None
    assert card_of(str(folder), device="cpu", tokenizer=word_tokenizer()) is None
    config = folder / "config.json"
    os.utime(config, (1, 1))  # as a copy or a checkout leaves it: the content is the same
    assert card_of(str(folder), device="cpu") == card
    config.write_text(config.read_text() + " ")
    assert card_of(str(folder), device="cpu") is None


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"dtype": "float23"}, r"'float23' is not one of auto, float32.*Did you mean 'float32'"),
        ({"dtype": "fp16"}, "'fp16' is not one of"),
        ({"device": "cdua"}, "'cdua' is not cpu.*Did you mean 'cuda'"),
        ({"device": "cuda:x"}, "'cuda:x' is not cpu"),
        ({"device": "cpu:-1"}, "'cpu:-1' is not cpu"),
        ({"head": "causal"}, "'causal' is not one of auto, causal-lm.*Did you mean 'causal-lm'"),
    ],
)
def test_wrong_words(option: dict[str, Any], match: str) -> None:
    for function in (load, card_of):
        with pytest.raises(InputError, match=match):
            function("somewhere", **option)


def test_missing_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'cuda' is not available on this machine; use cpu"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == "cuda:1"
    assert find_device(None) == "cuda"
    with pytest.raises(InputError, match="'cuda:2' does not exist: this machine has 2"):
        find_device("cuda:2")


def test_heads(saved: Callable[..., Path]) -> None:
    classifier = str(saved("BERT classifier"))
    assert load(classifier, device="cpu", head="auto").card.architecture == "BertForSequenceClassification"
    language = str(saved("Llama", folder="lm"))
    assert load(language, device="cpu", head="auto").card.architecture == "LlamaForCausalLM"
    seq2seq = str(saved("T5", folder="t5"))
    with pytest.raises(ModelError, match=r"\(t5\) cannot have this head; choose one of"):
        load(seq2seq, device="cpu")


def test_newly_initialised_weights_are_named_and_not_cached(saved: Callable[..., Path]) -> None:
    folder = str(saved("Llama"))
    loaded = load(folder, device="cpu", head="sequence-classification")
    assert loaded.newly_initialised == ("score.weight",)
    assert card_of(folder, device="cpu", head="sequence-classification") is None
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = load(folder, device="cpu", head="sequence-classification")
    assert again.card.weights_hash == loaded.card.weights_hash
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tensor_missing_from_the_file(saved: Callable[..., Path]) -> None:
    path = saved() / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    assert load(str(path.parent), device="cpu").newly_initialised == ("model.layers.1.mlp.up_proj.weight",)


@pytest.mark.parametrize("damage", ["truncated", "corrupt header", "empty", "gone"])
def test_damaged_weights(damage: str, saved: Callable[..., Path]) -> None:
    path = saved() / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-7], "corrupt header": b"x" * 99, "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    match = "has a config.json but no weights" if damage == "gone" else r"model\.safetensors .*; download or save it"
    with pytest.raises(ModelError, match=match):
        load(str(path.parent), device="cpu")


def test_damaged_folder(saved: Callable[..., Path]) -> None:
    folder = saved(max_shard_size="4KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name}"):
        load(str(folder), device="cpu")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        load(str(folder), device="cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        load(str(folder), device="cpu")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        load(str(folder), device="cpu")


def test_shapes_that_differ_from_the_config(saved: Callable[..., Path]) -> None:
    config = saved() / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 32}))
    with pytest.raises(ModelError, match="cannot load"):
        load(str(config.parent), device="cpu")


def test_unknown_architecture(saved: Callable[..., Path]) -> None:
    config = saved() / "config.json"
    config.write_text(json.dumps({"model_type": "never-heard-of"}))
    with pytest.raises(ModelError, match=r"cannot load .*never-heard-of"):
        load(str(config.parent), device="cpu")


def test_code_that_comes_with_a_model_is_not_run(saved: Callable[..., Path]) -> None:
    config = saved() / "config.json"
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config.write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    (config.parent / "own.py").write_text("raise RuntimeError('ran')")
    with pytest.raises(ModelError, match="pass trust_remote_code=True if you trust it"):
        load(str(config.parent), device="cpu")


def test_tokenizer(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved()
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load(str(folder), device="cpu")
    loaded = load(str(folder), device="cpu", tokenizer=str(tmp_path / "tokenizer"))
    assert loaded.card.tokenizer_hash == load(str(folder), device="cpu", tokenizer=word_tokenizer()).card.tokenizer_hash


def test_an_adapter(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved("Llama tied", folder="base")
    trained = lora(build("Llama tied"))
    trained.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(base)}))
    alone = load(str(tmp_path / "adapter"), device="cpu")
    both = load(f"{base}+{tmp_path / 'adapter'}", device="cpu")
    assert alone.card.weights_hash == both.card.weights_hash == weights_hash(trained)
    assert peft_hashes(alone.model)[0] == weights_hash(base)
    assert (alone.card.source, alone.card.base) == ("adapter", str(base))
    assert alone.card.architecture == "LlamaForCausalLM"
    assert alone.newly_initialised == ()
    assert card_of(str(tmp_path / "adapter"), device="cpu") == alone.card
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(alone.model(ids).logits, trained(ids).logits)


def test_an_adapter_that_is_damaged(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved("Llama", folder="base")
    lora(build("Llama")).save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = min(tensors)
    save_file({name: t for name, t in tensors.items() if name != first}, weights)
    spec = f"{base}+{tmp_path / 'adapter'}"
    with pytest.raises(ModelError, match=f"lacks 1 tensors .first: '{re.escape(first)}'.*would stay untrained"):
        load(spec, device="cpu")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors .*damaged"):
        load(spec, device="cpu")
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load(spec, device="cpu")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/away"}')
    with pytest.raises(ModelError, match="which cannot be found; write BASE"):
        load(str(tmp_path / "adapter"), device="cpu")


def test_an_increment(saved: Callable[..., Path], tmp_path: Path) -> None:
    base, tuned = build("Llama tied"), moved(build("Llama tied"))
    folder = saved("Llama tied")
    make_increment(base, tuned, tmp_path / "move.safetensors")
    spec = f"{folder}+{tmp_path / 'move.safetensors'}"
    loaded = load(spec, device="cpu")
    assert loaded.card.weights_hash == weights_hash(tuned)
    assert (loaded.card.source, loaded.card.base, loaded.card.name) == ("increment", str(folder), spec)
    assert card_of(spec, device="cpu") == loaded.card
    half = load(spec, device="cpu", dtype="bfloat16")
    assert half.card.weights_hash == weights_hash(copy.deepcopy(tuned).to(torch.bfloat16))
    other = saved("Llama tied", seed=4, folder="other")
    with pytest.raises(ModelError, match="was made for a base with weights"):
        load(f"{other}+{tmp_path / 'move.safetensors'}", device="cpu")
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(1)}, plain)
    with pytest.raises(ModelError, match="not an increment"):
        load(f"{folder}+{plain}", device="cpu")


def test_quantised_weights_do_not_move() -> None:
    loaded = load(build("Llama"), tokenizer=word_tokenizer())
    for settings, expected in (
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes-4bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes-8bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
    ):
        loaded.model.config.quantization_config = settings
        marked = load(loaded.model, tokenizer=word_tokenizer())
        assert marked.card.quantization == expected
        with pytest.raises(ModelError, match=re.escape(f"is quantised ({expected})")):
            marked.movable()


def test_a_four_bit_checkpoint_without_its_library(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = saved() / "config.json"
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": settings}))
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(CatchmentError, match=r"pip install 'catchment\[quantized\]'"):
        load(str(config.parent), device="cpu")


def test_gguf_that_is_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ModelError, match=r"is not a GGUF file: it begins with b'<htm'"):
        load(str(path), device="cpu")
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(ModelError, match="cannot unpack"):
        load(str(path), device="cpu")
    assert not any(p.is_dir() for p in (Path(os.environ["CATCHMENT_HOME"]) / "gguf").iterdir())


def test_gguf_with_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="set CATCHMENT_HOME"):
        load(str(path), device="cpu")


def test_an_image_classifier(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from transformers import ViTImageProcessorPil

    model = build("ViT")
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    loaded = load(str(tmp_path), device="cpu", head="auto")
    assert loaded.card.architecture == "ViTForImageClassification"
    assert loaded.card.weights_hash == weights_hash(model)
    assert list(named_weights(loaded.model)) == list(named_weights(model))
    assert len(loaded.card.tokenizer_hash) == 64
