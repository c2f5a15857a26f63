from __future__ import annotations

import pytest
from torch import nn

from catchment.models import FAMILIES, family_of, locate, named_weights
from tests.unit.models.conftest import TINY, build
from tests.unit.models.test_weights import lora


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_is_located(name: str) -> None:
    model = build(name)
    family = family_of(model)
    assert family is not None
    kinds = {weight: family.locate(weight)[1] for weight in named_weights(model)}
    assert [weight for weight, kind in kinds.items() if kind == "other"] == []
    assert {"embedding", "attention", "ffn", "norm"} <= set(kinds.values())


@pytest.mark.parametrize("name", TINY)
def test_block_count_is_the_configs(name: str) -> None:
    model = build(name)
    family = family_of(model)
    assert family is not None
    blocks = getattr(model.config, family.layers_field)
    if family.decoder_layers_field:
        blocks += getattr(model.config, family.decoder_layers_field)
    assert family.blocks(named_weights(model)) == blocks


@pytest.mark.parametrize("name", [n for n in TINY if "classifier" not in n and n != "ViT"])
def test_ties_in_the_table_are_the_models(name: str) -> None:
    model = build(name)
    family = family_of(model)
    assert family is not None
    own = {str(later): str(first) for later, first in (type(model)._tied_weights_keys or {}).items()}
    assert own.items() <= dict(family.ties).items()


@pytest.mark.parametrize(
    ("name", "weight", "expected"),
    [
        ("Llama", "model.layers.1.self_attn.o_proj.weight", (1, "attention")),
        ("Llama", "lm_head.weight", (None, "head")),
        ("Llama classifier", "score.weight", (None, "head")),
        ("Qwen3", "model.layers.0.self_attn.q_norm.weight", (0, "norm")),
        ("GPT-2", "transformer.wpe.weight", (None, "embedding")),
        ("GPT-2", "transformer.h.1.mlp.c_proj.bias", (1, "ffn")),
        ("BERT", "bert.encoder.layer.1.attention.output.LayerNorm.bias", (1, "norm")),
        ("BERT", "cls.predictions.transform.LayerNorm.weight", (None, "head")),
        ("BERT", "bert.embeddings.LayerNorm.weight", (None, "norm")),
        ("RoBERTa", "roberta.encoder.layer.0.output.dense.weight", (0, "ffn")),
        ("ViT", "vit.embeddings.cls_token", (None, "embedding")),
        ("T5", "encoder.block.1.layer.1.DenseReluDense.wo.weight", (1, "ffn")),
        ("T5", "decoder.block.0.layer.1.EncDecAttention.q.weight", (2, "attention")),
    ],
)
def test_known_places(name: str, weight: str, expected: tuple[int | None, str]) -> None:
    model = build(name)
    assert weight in named_weights(model)
    family = family_of(model)
    assert family is not None
    assert family.locate(weight) == expected


def test_vit_names_of_older_transformers() -> None:
    family = next(f for f in FAMILIES if f.name == "ViT")
    assert family.locate("vit.encoder.layer.3.attention.attention.query.weight") == (3, "attention")
    assert family.locate("vit.encoder.layer.3.output.dense.weight") == (3, "ffn")


def test_no_model_type_twice() -> None:
    types = [t for family in FAMILIES for t in family.model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "GPT-NeoX", "BERT classifier", "T5"])
def test_generic_reading_agrees_where_it_matters(name: str) -> None:
    """An unknown architecture still gets blocks, attention and FFN."""
    model = build(name)
    family = family_of(model)
    assert family is not None
    for weight in named_weights(model):
        if (known := family.locate(weight)[1]) in ("attention", "ffn", "norm"):
            assert locate(weight)[1] == known, weight


def test_unknown_architecture() -> None:
    assert family_of(nn.Linear(2, 2)) is None
    assert family_of({"model_type": "never-heard-of"}) is None
    assert locate("tower.stuff") == (None, "other")


def test_family_through_peft() -> None:
    family = family_of(lora(build("Llama")))
    assert family is not None
    assert family.name == "Llama"
