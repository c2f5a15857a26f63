from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from catchment.errors import InputError, ModelError
from catchment.models import (
    drift,
    effective_weights,
    from_vector,
    named_weights,
    non_finite,
    norm,
    persistent_buffers,
    select,
    to_vector,
)
from tests.unit.models.conftest import build


def lora(model: Any, seed: int = 1, **kwargs: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {"r": 2, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **kwargs}
    with peft_is_older_than_transformers():
        return get_peft_model(model, LoraConfig(**settings)).eval()


@contextmanager
def peft_is_older_than_transformers() -> Iterator[None]:
    """PEFT reads an attribute that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def moved(model: Any, scale: float = 0.01, seed: int = 5) -> Any:
    tuned = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(scale * torch.randn_like(p))
    return tuned


def test_ties_once_under_the_first_name() -> None:
    names = list(named_weights(build("Llama tied")))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(named_weights(build("Llama"))) == len(names) + 1


def test_views_of_one_storage_count_once() -> None:
    module = nn.Module()
    module.a = nn.Parameter(torch.ones(3))
    module.b = nn.Parameter(module.a.data)
    assert list(named_weights(module)) == ["a"]


def test_buffers_are_apart() -> None:
    module = nn.BatchNorm1d(3)
    assert list(named_weights(module)) == ["weight", "bias"]
    assert list(persistent_buffers(module)) == ["running_mean", "running_var", "num_batches_tracked"]
    assert persistent_buffers(build("BERT")) == {}


def test_peft_parts() -> None:
    model = build("Llama tied")
    plain = {name: t.clone() for name, t in named_weights(model).items()}
    wrapped = lora(model)
    base = named_weights(wrapped, "base")
    assert list(base) == list(plain)
    assert all(torch.equal(base[n], plain[n]) for n in plain)
    adapter = named_weights(wrapped, "adapter")
    assert len(adapter) == 2 * 2 * 2  # A and B, two targets, two blocks
    assert named_weights(wrapped).keys() == base.keys() | adapter.keys()
    with pytest.raises(InputError, match="'both'"):
        named_weights(wrapped, "both")  # type: ignore[arg-type]


def test_select() -> None:
    model = build("Llama")
    assert list(select(model, "model.layers.1.mlp.*")) == [
        f"model.layers.1.mlp.{p}_proj.weight" for p in ("gate", "up", "down")
    ]
    assert list(select(model, ["lm_head.weight", "model.norm.weight"])) == ["model.norm.weight", "lm_head.weight"]
    with pytest.raises(InputError, match=r"'lm_haed.weight' matches none.*Did you mean 'lm_head.weight'"):
        select(model, ["*", "lm_haed.weight"])


def test_vector_round_trip() -> None:
    weights = named_weights(build("GPT-2"))
    vector = to_vector(weights)
    assert vector.shape == (sum(t.numel() for t in weights.values()),)
    back = from_vector(vector, weights)
    assert all(torch.equal(back[n], t) for n, t in weights.items())
    assert norm(weights) == pytest.approx(float(vector.double().norm()), rel=1e-12)


def test_vector_errors() -> None:
    mixed = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)}
    with pytest.raises(InputError, match="different dtypes"):
        to_vector(mixed)
    assert to_vector(mixed, torch.float64).dtype == torch.float64
    with pytest.raises(InputError, match="expected \\(4,\\)"):
        from_vector(torch.ones(3), mixed)
    with pytest.raises(InputError, match="no weights"):
        to_vector({})


@pytest.mark.parametrize("name", ["Llama tied", "T5", "BERT"])
def test_drift_against_a_dense_oracle(name: str) -> None:
    base = build(name)
    tuned = moved(base)
    found = drift(base, tuned)
    a, b = (to_vector(named_weights(m), torch.float64) for m in (base, tuned))
    assert found.size == a.numel()
    assert found.norm == pytest.approx(float(a.norm()))
    assert found.distance == pytest.approx(float((a - b).norm()))
    assert found.rms == pytest.approx(float((a - b).norm()) / math.sqrt(a.numel()))
    assert found.changed == int((a != b).sum())
    assert {row.name for row in found.tensors} == set(named_weights(base))


def test_drift_of_one_entry_is_placed() -> None:
    base = build("Llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight[3, 4] += 0.5
    rows = [row for row in drift(base, tuned).tensors if row.changed]
    assert [(r.name, r.layer, r.kind, r.changed) for r in rows] == [("model.layers.1.mlp.up_proj.weight", 1, "ffn", 1)]
    assert rows[0].distance == pytest.approx(0.5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "v_proj"]}],
    ids=["lora", "dora", "modules_to_save", "embedding"],
)
def test_drift_of_an_adapter_is_that_of_the_merged_model(settings: dict[str, Any]) -> None:
    base = build("Llama")
    tuned = lora(copy.deepcopy(base), **settings)
    if "modules_to_save" in settings:
        with torch.no_grad():
            tuned.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.25)
    before = {n: p.clone() for n, p in tuned.named_parameters()}
    found = drift(base, tuned)
    assert all(torch.equal(p, before[n]) for n, p in tuned.named_parameters())
    expected = drift(base, tuned.merge_and_unload())
    assert found.distance > 0
    assert found == expected


def test_disabled_adapter_does_not_move() -> None:
    base = build("Llama")
    tuned = lora(copy.deepcopy(base))
    with tuned.disable_adapter():
        assert drift(base, tuned).changed == 0


def test_prompt_adapter_moves_no_weight() -> None:
    from peft import PromptTuningConfig, get_peft_model

    with peft_is_older_than_transformers():
        tuned = get_peft_model(build("Llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert list(named_weights(tuned, "base")) == list(named_weights(build("Llama")))
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        effective_weights(tuned)


def test_drift_refuses() -> None:
    base = build("Llama")
    with pytest.raises(ModelError, match=r"'lm_head.weight' is not in the tuned model"):
        drift(base, build("Llama classifier"))
    wider = build("Llama")
    wider.resize_token_embeddings(48, mean_resizing=False)
    with pytest.raises(ModelError, match=r"'model.embed_tokens.weight' has shape \(40, 16\) .* \(48, 16\)"):
        drift(base, wider)
    with pytest.raises(ModelError, match="offloaded"):
        drift(base, copy.deepcopy(base).to("meta"))
    packed = copy.deepcopy(base)
    packed.lm_head.weight = nn.Parameter(packed.lm_head.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match=r"packed as torch\.uint8"):
        drift(base, packed)


def test_non_finite() -> None:
    model = build("Llama")
    assert non_finite(model) == []
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
        model.lm_head.weight[1, 1] = float("-inf")
    assert non_finite(model) == ["model.norm.weight", "lm_head.weight"]
