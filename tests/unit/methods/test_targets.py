"""What ``target_modules`` means, and that a model is tuned by one method at a time."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import transformers as tf
from torch import nn

from catchment.errors import InputError
from catchment.methods.targets import claim, release, target_weights
from tests.tiny import tiny_llama

Q = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
    "given", [["q_proj"], r".*\.q_proj", r"model\.layers\.\d\.self_attn\.q_proj", ["*.q_proj.weight"]]
)
def test_a_list_and_a_regular_expression(given: str | list[str]) -> None:
    assert list(target_weights(tiny_llama(), given)) == Q


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            "*.q_proj",
            r"'\*\.q_proj' is no regular expression \(nothing to repeat.*over whole module names.*\['q_proj'\]",
        ),
        ("*.mlp.*", r"for an ending or a glob give a list: \['\*\.mlp\.\*'\]"),
        ("(q_proj", r"is no regular expression \(missing \), .*names, e\.g\. '\.\*q_proj'"),
        ("q_proj", r"'q_proj' matches no module of this model; a string .* give a list: \['q_proj'\]"),
        ("self_attn.q_proj", r"give a list: \['self_attn\.q_proj'\]"),
        ("q_prj", r"matches no weight of this model; .* Did you mean 'q_proj'"),
        (["q_prj"], r"matches no weight of this model; .* Did you mean 'q_proj'"),
        (["lm_heat"], r"Did you mean 'lm_head'"),
    ],
)
def test_a_string_that_should_be_a_list(given: str | list[str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        target_weights(tiny_llama(tie_word_embeddings=True), given)


@pytest.mark.parametrize("given", [["lm_head"], ["lm_head.weight"], ["lm_head.*"], "lm_head"])
def test_a_later_name_of_a_tied_weight_means_that_weight(given: str | list[str]) -> None:
    told = r"modules_to_save '.*' names 'lm_head\.weight', which is tied to 'model\.embed_tokens\.weight'"
    model = tiny_llama(tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=told) as caught:
        found = target_weights(model, given, "modules_to_save")
    assert len(caught) == 1
    assert list(found) == ["model.embed_tokens.weight"]
    assert found["model.embed_tokens.weight"] is model.lm_head.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(target_weights(tiny_llama(), given)) == ["lm_head.weight"]


def test_a_tied_weight_that_is_named_first_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_llama(tie_word_embeddings=True)
        assert "lm_head.weight" not in target_weights(model, ["*"])
        assert list(target_weights(model, ["embed_tokens"])) == ["model.embed_tokens.weight"]


def test_a_tied_weight_beside_one_of_its_own() -> None:
    """BERT's decoder: its bias alone would be a part of what was asked for."""
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = tf.BertForMaskedLM(config)
    with pytest.warns(UserWarning, match="tied to") as caught:
        found = target_weights(model, ["cls.predictions.decoder.*"])
    decoder = model.cls.predictions.decoder
    assert {id(p) for p in found.values()} == {id(decoder.weight), id(decoder.bias)}
    assert len(caught) == sum(name not in found for name, _ in decoder.named_parameters("cls.predictions.decoder"))


def test_claims() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    release(model)  # nothing to release
    before = dict(vars(model))
    claim(model)
    for one in (model, nn.Sequential(model)):  # also what wraps it
        for _ in range(2):
            with pytest.raises(InputError, match="being tuned already"):
                claim(one)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        claim(twin)  # no tuning holds the copy
        release(twin)
    with pytest.raises(InputError, match="being tuned already"):
        claim(model)
    release(model)
    release(model)
    assert vars(model) == before
    claim(model)
