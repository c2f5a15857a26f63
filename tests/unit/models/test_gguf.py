from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import gguf
import pytest
import torch

from catchment.errors import ModelError
from catchment.models import card_of, load, named_weights
from tests.unit.models.conftest import build

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
    name = name.replace("model.layers.", "blk.").replace("lm_head", "output")
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp interleaves the two halves of each head's rotary dimensions."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return written(tmp_path / "tiny.gguf")


def written(
    path: Path,
    more: dict[str, torch.Tensor] | None = None,
    without: str = "",
    theta: float = 10_000.0,
    scaling: tuple[str, float] | None = None,
) -> Path:
    """The tiny Llama as llama.cpp writes it, with tensors more or without one."""
    model = build("Llama")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(theta)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<pad>", "<s>", "</s>", *(chr(ord("A") + i) for i in range(36)), "AB"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 37)
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    for name, tensor in named_weights(model).items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        data = permuted(tensor.detach(), heads) if heads else tensor.detach()
        if name != without:
            writer.add_tensor(gguf_name(name), data.contiguous().numpy())
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_unpacked_once(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(str(tiny_gguf), device="cpu")
    expected = named_weights(build("Llama"))
    assert all(torch.equal(t, expected[name]) for name, t in named_weights(loaded.model).items())
    assert (loaded.card.source, loaded.card.dtype, loaded.card.quantization) == ("gguf", "float32", None)
    assert loaded.newly_initialised == ()
    assert loaded.tokenizer("AB")["input_ids"][-1] == 39
    assert loaded.tokenizer.chat_template == "{{ messages[0].content }}"
    monkeypatch.setattr("catchment.models.gguf._unpack", None)
    assert load(str(tiny_gguf), device="cpu").card == loaded.card == card_of(str(tiny_gguf), device="cpu")
    assert len(list((Path(os.environ["CATCHMENT_HOME"]) / "gguf").iterdir())) == 1


def test_truncated(tiny_gguf: Path) -> None:
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"cannot unpack .*tiny\.gguf"):
        load(str(tiny_gguf), device="cpu")
    assert list((Path(os.environ["CATCHMENT_HOME"]) / "gguf").iterdir()) == []


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"blk.0.attn_q.bias": torch.ones(16)}, r"1 tensors .*LlamaForCausalLM \(first: 'blk\.0\.attn_q\.bias'\)"),
        ({"blk.2.attn_q.weight": torch.ones(16, 16), "blk.10.attn_q.weight": torch.ones(16, 16)},
         r"holds 2 tensors .*\(first: 'blk\.2\.attn_q\.weight'\)"),
        ({"rope_freqs.weight": torch.tensor([1.0, 1.0, 4.0, 8.0])}, "'rope_freqs.*scale the rotary frequencies"),
        ({"rope_factors_long.weight": torch.ones(4)}, "'rope_factors_long.*scale the rotary frequencies"),
    ],
)  # fmt: skip
def test_tensors_without_a_place(more: dict[str, torch.Tensor], match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=match):
        load(str(written(tmp_path / "more.gguf", more)), device="cpu")
    assert list((Path(os.environ["CATCHMENT_HOME"]) / "gguf").iterdir()) == []


def test_weights_that_the_file_lacks_are_not_made_up(tmp_path: Path) -> None:
    path = written(tmp_path / "less.gguf", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"lacks 1 weights .*model\.layers\.1\.mlp\.up_proj\.weight.*would be random"):
        load(str(path), device="cpu")


def test_harmless_tensors_are_told(tmp_path: Path) -> None:
    more = {"rope_freqs.weight": torch.ones(4), "blk.2.nextn.eh_proj.weight": torch.ones(16, 32)}
    path = written(tmp_path / "more.gguf", {**more, "blk.2.attn_q.weight": torch.ones(16, 16)})
    for _ in range(2):  # unpacked, and from the cache
        loaded = load(str(path), device="cpu")
        assert loaded.card.notes == (
            "1 of its tensors are not used (first: 'rope_freqs.weight'): rotary factors of 1",
            "2 of its tensors are not used (first: 'blk.2.attn_q.weight'): layers that predict several tokens at once, "
            "not run",
        )
    expected = named_weights(build("Llama"))
    assert all(torch.equal(t, expected[name]) for name, t in named_weights(loaded.model).items())


def llama3_factors(theta: float, width: int, factor: float) -> torch.Tensor:
    """As llama.cpp computes them (``convert_hf_to_gguf.py``), for a context of 8192."""
    factors = []
    for i in range(0, width, 2):
        wavelength = 2 * math.pi * theta ** (i / width)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors)


def test_rotary_frequencies_scaled_as_in_llama_3_are_used(tmp_path: Path) -> None:
    factors = llama3_factors(500_000.0, 8, 32.0)
    assert 1 < float(factors[2]) < 32 == float(factors[3])
    loaded = load(str(written(tmp_path / "l3.gguf", {"rope_freqs.weight": factors}, theta=500_000.0)), device="cpu")
    plain = 500_000.0 ** -(torch.arange(0, 8, 2) / 8)
    assert torch.allclose(loaded.model.model.rotary_emb.inv_freq, plain / factors, rtol=1e-5)
    assert loaded.card.notes == ()
    config = copy.deepcopy(build("Llama").config)
    config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    oracle = type(build("Llama"))(config).eval()
    oracle.load_state_dict(build("Llama").state_dict())
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, oracle(ids).logits, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_scaling_in_the_metadata_that_is_not_read_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"scales its rotary frequencies \({kind}, factor 4\)"):
        load(str(written(tmp_path / "scaled.gguf", scaling=(kind, 4.0))), device="cpu")


@pytest.mark.parametrize("scaling", [("linear", 1.0), ("none", 4.0)])
def test_a_scaling_by_nothing_is_none(scaling: tuple[str, float], tmp_path: Path) -> None:
    loaded = load(str(written(tmp_path / "plain.gguf", scaling=scaling)), device="cpu")
    torch.testing.assert_close(loaded.model.state_dict(), build("Llama").state_dict())
