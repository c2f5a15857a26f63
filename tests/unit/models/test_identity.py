from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from catchment.errors import ModelError
from catchment.models import (
    aliases,
    config_hash,
    make_increment,
    peft_hashes,
    template_hash,
    tokenizer_hash,
    weights_hash,
)
from catchment.records import ModelCard
from tests.unit.models.conftest import TINY, build, word_tokenizer
from tests.unit.models.test_weights import lora, moved, peft_is_older_than_transformers

CARD = ModelCard("a", "folder", "X", 1, "w", "c", "t", "p", "float32", "cpu", "sdpa")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_memory_equals_saved_file(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(name, dtype=dtype)
    model.save_pretrained(tmp_path)
    assert weights_hash(tmp_path) == weights_hash(model)


def test_sharding_and_order_do_not_matter(tmp_path: Path) -> None:
    model = build("Llama tied")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert weights_hash(tmp_path / "many") == weights_hash(model)
    weights = {k: v.detach().clone() for k, v in model.named_parameters()}
    save_file(dict(reversed(weights.items())), tmp_path / "reversed.safetensors")
    assert weights_hash(tmp_path / "reversed.safetensors") == weights_hash(model)


def test_a_tie_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    model = build("Llama tied")
    weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    assert "lm_head.weight" in weights
    save_file(weights, tmp_path / "both.safetensors")
    assert weights_hash(tmp_path / "both.safetensors") == weights_hash(model)


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype", "negative zero"])
def test_every_difference_is_seen(change: str, tmp_path: Path) -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(4, 2))
    other = nn.Module()
    other.a = nn.Parameter(torch.zeros(4, 2))
    assert weights_hash(model) == weights_hash(other)
    if change == "value":
        other.a.data[3, 1] = 1e-30
    elif change == "name":
        other.b = other.a
        del other.a
    elif change == "shape":
        other.a = nn.Parameter(torch.zeros(2, 4))
    elif change == "dtype":
        other.a = nn.Parameter(torch.zeros(4, 2, dtype=torch.float16))
    else:
        other.a.data[0, 0] = -0.0
    assert weights_hash(model) != weights_hash(other)


def test_saved_buffers_belong_to_the_identity() -> None:
    model = nn.BatchNorm1d(2)
    before = weights_hash(model)
    model.running_mean += 1  # type: ignore[operator]
    assert weights_hash(model) != before


def test_peft_base_and_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    base = build("Llama tied")
    plain = weights_hash(base)
    wrapped = lora(copy.deepcopy(base), seed=1)
    other = lora(copy.deepcopy(base), seed=2)
    assert peft_hashes(wrapped)[0] == plain
    assert peft_hashes(other)[0] == plain
    assert peft_hashes(wrapped)[1] != peft_hashes(other)[1]
    assert weights_hash(wrapped) not in (plain, weights_hash(other))
    wrapped.save_pretrained(tmp_path)
    with peft_is_older_than_transformers():
        again = PeftModel.from_pretrained(base, tmp_path)
    assert weights_hash(again) == weights_hash(wrapped)


def test_adapter_settings_belong_to_the_config() -> None:
    base = build("Llama")
    one, same, other = (lora(copy.deepcopy(base), lora_alpha=a) for a in (8, 8, 16))
    assert config_hash(one) == config_hash(same) != config_hash(other)
    assert config_hash(one) != config_hash(base)


def test_increment_applied_is_the_full_model_saved(tmp_path: Path) -> None:
    base = build("Llama tied")
    tuned = moved(base)
    tuned.save_pretrained(tmp_path / "full")
    increment = make_increment(base, tuned, tmp_path / "move.safetensors")
    before = weights_hash(base)
    assert increment.base_hash == before
    with increment.applied(base):
        assert weights_hash(base) == weights_hash(tmp_path / "full")
    assert weights_hash(base) == before


def test_config_hash_is_steady(tmp_path: Path) -> None:
    model = build("Llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    again.config.use_cache = False
    assert config_hash(again) == config_hash(model)
    again.config.rope_parameters["rope_theta"] = 5.0
    assert config_hash(again) != config_hash(model)


def test_tokenizer_hash(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["w3 w4", "w5"], padding=True, truncation=True, max_length=8)
    tokenizer.padding_side = "left"
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(type(tokenizer).from_pretrained(tmp_path)) == before
    tokenizer.add_tokens(["new"])
    assert tokenizer_hash(tokenizer) != before
    assert tokenizer_hash(None) == ""


def test_template_is_apart() -> None:
    tokenizer = word_tokenizer()
    both = tokenizer_hash(tokenizer), template_hash(tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert tokenizer_hash(tokenizer) == both[0]
    assert template_hash(tokenizer) != both[1]


def test_aliases() -> None:
    cards = [
        CARD,
        dataclasses.replace(CARD, name="b"),
        dataclasses.replace(CARD, name="c", weights_hash="other"),
        CARD,
    ]
    assert aliases(cards) == [["a", "b"]]


@pytest.mark.parametrize("name", ["Llama", "Llama tied"])
def test_weights_that_accelerate_keeps_outside(name: str) -> None:
    from accelerate import cpu_offload

    model = build(name)
    expected = weights_hash(model)
    cpu_offload(model, torch.device("cpu"))
    assert model.model.norm.weight.device.type == "meta"
    assert weights_hash(model) == expected


def test_weights_without_values_have_no_identity() -> None:
    with pytest.raises(ModelError, match="'weight' is offloaded"):
        weights_hash(nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize("damage", ["truncated", "short header", "garbage header", "longer", "empty"])
def test_damaged_file(damage: str, saved: Callable[..., Path]) -> None:
    path = saved() / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[:-100],
            "short header": data[:40],
            "garbage header": data[:8] + b"\xff" * 50 + data[58:],
            "longer": data + b"x",
            "empty": b"",
        }[damage]
    )
    with pytest.raises(ModelError, match=r"model\.safetensors .*download or save it again"):
        weights_hash(path)


def test_folder_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no safetensors"):
        weights_hash(tmp_path)


def test_saved_file_has_no_tie(tmp_path: Path) -> None:
    """What the hash of files relies on: transformers stores a tied tensor under its first name."""
    build("Llama tied").save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
