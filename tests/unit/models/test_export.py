from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from catchment.errors import InputError, ModelError, StoreError
from catchment.models import (
    Increment,
    config_hash,
    effective_weights,
    export_merged,
    export_peft,
    load,
    make_increment,
    named_weights,
    weights_hash,
    write_increment,
)
from catchment.records import ModelCard
from tests.tiny import CAUSAL, tiny_llama, tiny_tokenizer
from tests.unit.models.test_increments import bits, sparse_move
from tests.unit.models.test_weights import lora

LINEAR = "model.layers.{}.{}.weight"
TARGETS = {
    LINEAR.format(0, "self_attn.q_proj"): 70,
    LINEAR.format(0, "self_attn.k_proj"): 9,
    LINEAR.format(1, "mlp.down_proj"): 161,
    LINEAR.format(1, "mlp.up_proj"): 1,
    "lm_head.weight": 5,
}
IDS = torch.tensor([[1, 5, 9, 200, 17, 44, 3, 8], [1, 7, 7, 31, 90, 101, 250, 2]])


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path_factory.mktemp("home")))


def tuned(base: Any, path: Path, counts: dict[str, int], scale: float = 0.5, **recipe: Any) -> Increment:
    generator = torch.Generator().manual_seed(0)
    entries = []
    for name, count in counts.items():
        tensor = named_weights(base)[name].detach()
        index = torch.randperm(tensor.numel(), generator=generator)[:count].sort().values
        noise = scale * torch.randn(count, generator=generator)
        values = (tensor.view(-1)[index].float() + noise).to(tensor.dtype)
        entries.append((name, tensor.shape, index, values))
    return write_increment(path / "move.safetensors", entries, base_hash=weights_hash(base), recipe=recipe)


def stock_peft(base: Any, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():  # PEFT reads an attribute that transformers has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return PeftModel.from_pretrained(copy.deepcopy(base), str(folder))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")  # of PEFT's layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_stock_peft_gives_the_merged_models_logits(dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_llama().to(dtype)
    increment = tuned(base, tmp_path, TARGETS, method="sift", seed=7)
    before = bits(base)
    export = export_peft(increment, base, tmp_path / "adapter", base="org/base")
    assert bits(base) == before
    model = stock_peft(base, tmp_path / "adapter")
    with increment.applied(base):
        want, weights = logits(base), {name: t.detach().clone() for name, t in named_weights(base).items()}
    assert not torch.allclose(logits(base), want, atol=1e-2)
    assert torch.allclose(logits(model), want, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    merged = effective_weights(model)
    off = {name: (merged[name].double() - weights[name].double()).abs() for name in weights}
    assert sum(int(torch.count_nonzero(d)) for d in off.values()) == export.rounded
    assert max(float(d.max()) for d in off.values()) == export.error
    assert export.error <= 1e-7 or dtype != torch.float32


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rounding_is_counted_as_it_happens(store: torch.dtype, tmp_path: Path) -> None:
    """Large weights moved to small ones: the difference cannot hold the value."""
    base = tiny_llama().to(torch.bfloat16)
    name = LINEAR.format(0, "self_attn.q_proj")
    with torch.no_grad():
        named_weights(base)[name].view(-1)[:50] = 300.0
    values = torch.linspace(1e-3, 0.1, 50).bfloat16()
    entries = [(name, (32, 32), torch.arange(50), values)]
    increment = write_increment(tmp_path / "move.safetensors", entries, base_hash=weights_hash(base))
    export = export_peft(increment, base, tmp_path / "adapter", dtype=store)
    merged = effective_weights(stock_peft(base, tmp_path / "adapter"))[name].reshape(-1)[:50]
    off = (merged.double() - values.double()).abs()
    assert (export.rounded, export.error) == (int(torch.count_nonzero(off)), float(off.max()))
    assert export.rounded > 0
    assert f"{export.rounded} values are rounded" in str(export)


def test_what_the_adapter_holds(tmp_path: Path) -> None:
    base = tiny_llama()
    increment = tuned(base, tmp_path, TARGETS, method="sift", seed=7)
    folder = tmp_path / "adapter"
    export = export_peft(increment, base, folder, base="org/base")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["task_type"]) == ("SHIRA", 3, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "org/base"
    assert export.r == 3  # 161 entries at 80 per unit of r
    tensors = load_file(folder / "adapter_model.safetensors")
    shapes = {name: tuple(t.shape) for name, t in named_weights(base).items()}
    assert len(tensors) == 2 * len(TARGETS)
    padding = 0
    for piece in increment.pieces:
        module = f"base_model.model.{piece.name.removesuffix('.weight')}"
        places, delta = tensors[f"{module}.shira_indices"].long(), tensors[f"{module}.shira_weight"]
        flat = places[0] * shapes[piece.name][1] + places[1]
        assert delta.shape == (3 * sum(shapes[piece.name]),)
        assert flat.unique().numel() == delta.numel()
        dense = torch.zeros(piece.numel).index_put((flat,), delta)
        old = named_weights(base)[piece.name].detach().view(-1)[increment.index(piece)]
        assert torch.equal(dense[increment.index(piece)], increment.values[piece.name] - old)
        assert torch.count_nonzero(dense) <= piece.count
        padding += delta.numel() - piece.count
    assert (export.k, export.padded) == (increment.k, padding)
    assert export.bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert export.ratio == export.bytes / increment.size_on_disk
    assert f"r = 3, {export.k} entries and {padding:,} zeros" in str(export)
    text = (folder / "README.md").read_text()
    assert "base_model: org/base" in text
    assert "sift" in text


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
def test_our_load_takes_the_adapter(tmp_path: Path) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    start = load(str(tmp_path / "base"), device="cpu")
    increment = tuned(base, tmp_path, TARGETS)
    export_peft(increment, start.model, tmp_path / "adapter", base=start.card)
    loaded = load(str(tmp_path / "adapter"), device="cpu")  # finds its base by the name in the config
    assert loaded.newly_initialised == ()
    with increment.applied(base):
        assert torch.allclose(logits(loaded.model), logits(base), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "name", "match"),
    [
        ("llama", "model.embed_tokens.weight", "weight of a Embedding"),
        ("llama", "model.norm.weight", "weight of a LlamaRMSNorm"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", "weight of a Conv1D"),
        ("pythia", "gpt_neox.layers.0.attention.query_key_value.bias", "bias of a Linear"),
        ("mamba", "backbone.layers.0.mixer.conv1d.weight", r"weight of a Conv1d, shape \(64, 1, 4\)"),
    ],
)
def test_tensors_that_shira_cannot_have(family: str, name: str, match: str, tmp_path: Path) -> None:
    base = CAUSAL[family]()
    increment = tuned(base, tmp_path, {name: 2})
    with pytest.raises(ModelError, match=rf"{name}' \({match}.*use export_merged"):
        export_peft(increment, base, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_tied_head_and_a_full_layer_are_refused(tmp_path: Path) -> None:
    tied = tiny_llama(tie_word_embeddings=True)
    increment = tuned(tied, tmp_path, {"model.embed_tokens.weight": 3})
    with pytest.raises(ModelError, match=r"embed_tokens.weight' \(weight of a Embedding"):
        export_peft(increment, tied, tmp_path / "adapter")
    base = tiny_llama()
    full = LINEAR.format(0, "self_attn.q_proj")
    crowded = tuned(base, tmp_path, {full: 1024, LINEAR.format(0, "self_attn.k_proj"): 1})
    with pytest.raises(
        ModelError, match=r"q_proj.weight' moves 1024 entries, which needs r = 16 .*'.*k_proj.weight' of"
    ):
        export_peft(crowded, base, tmp_path / "adapter")
    assert export_peft(tuned(base, tmp_path, {full: 1024}), base, tmp_path / "adapter").padded == 0


def test_another_base(tmp_path: Path) -> None:
    base = tiny_llama()
    increment = tuned(base, tmp_path, TARGETS)
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    for export in (export_peft, export_merged):
        with pytest.raises(ModelError, match="give its own base"):
            export(increment, other, tmp_path / "out")
        with increment.applied(base), pytest.raises(ModelError, match="revert it first"):
            export(increment, base, tmp_path / "out")
        with pytest.raises(ModelError, match=r"with an adapter|PeftModel"):
            export(increment, lora(copy.deepcopy(base)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_merged(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = tiny_llama(tie_word_embeddings=tied).to(dtype)
    target = make_increment(
        base, sparse_move(base), tmp_path / "move.safetensors", recipe={"method": "sift", "seed": 7}
    )
    before, config = bits(base), vars(base.config).copy()
    folder = export_merged(
        target, base, tmp_path / "new" / "merged", tiny_tokenizer(), base="org/base", recipe={"n": 1}
    )
    assert bits(base) == before
    assert vars(base.config) == config
    with target.applied(base):
        want = bits(base)
    assert bits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto")) == want
    loaded = load(str(folder), device="cpu")
    assert bits(loaded.model) == want
    assert loaded.card.config_hash == config_hash(base)
    text = (folder / "README.md").read_text()
    for told in ("base_model: org/base", f"{target.k:,} weights", "sift", '"n": 1', target.base_hash):
        assert told in text
    assert [p.name for p in folder.parent.iterdir()] == ["merged"]
    with pytest.raises(StoreError, match="not an empty folder"):
        export_merged(target, base, folder)


def test_merged_from_a_model_and_from_an_adapter(tmp_path: Path) -> None:
    base = tiny_llama()
    card = ModelCard("org/base", "hub", "X", 1, weights_hash(base), "", "", "", "float32", "cpu", "sdpa")
    full = sparse_move(base)
    adapted = lora(copy.deepcopy(base))
    for name, model in (("full", full), ("adapter", adapted)):
        before = bits(model)
        folder = export_merged(model, base, tmp_path / name, tiny_tokenizer(), base=card)
        assert bits(model) == before
        merged = effective_weights(model)
        found = named_weights(load(str(folder), device="cpu").model)
        assert list(found) == list(merged)
        assert all(torch.equal(found[n].nan_to_num(), merged[n].nan_to_num()) for n in found)
        assert card.weights_hash in (folder / "README.md").read_text()
    with pytest.raises(ModelError, match="embed_tokens"):
        export_merged(tiny_llama(vocab_size=330), base, tmp_path / "x")


def test_merged_into_nowhere(tmp_path: Path) -> None:
    base = tiny_llama()
    increment = tuned(base, tmp_path, TARGETS)
    before = bits(base)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        export_merged(increment, base, tmp_path / "file" / "merged")
    with pytest.raises(InputError, match="not plain JSON"):
        export_merged(increment, base, tmp_path / "merged", recipe={"f": len})

    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        export_merged(increment, base, tmp_path / "merged", Full())
    assert bits(base) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "move.safetensors"]
