"""Tiny random models of every architecture in the table, a word tokenizer, and a cache folder of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

torch.set_num_threads(1)
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA = {**_SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32, "bos_token_id": 1}
_VIT = {k: v for k, v in _SIZES.items() if not k.endswith("_id") and k != "vocab_size"}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "vocab_size": 40}

TINY: dict[str, Callable[[], Any]] = {
    "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA)),
    "Llama tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA, tie_word_embeddings=True)),
    "Llama classifier": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**_LLAMA)),
    "Mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_LLAMA)),
    "Qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_LLAMA)),
    "Qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_LLAMA)),
    "Gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**_LLAMA)),
    "Gemma 2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_LLAMA)),
    "Gemma 3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_LLAMA)),
    "OLMo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**_LLAMA)),
    "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT2, eos_token_id=2)),
    "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_SIZES)),
    "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**_SIZES)),
    "BERT classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(**_SIZES)),
    "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**_SIZES)),
    "RoBERTa classifier": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**_SIZES)),
    "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_VIT, image_size=16, patch_size=8)),
    "T5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5, feed_forward_proj="gated-gelu")),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(seed)
    return TINY[name]().to(dtype).eval()


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 40)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model and the word tokenizer to a folder."""

    def save(name: str = "Llama", seed: int = 0, folder: str = "model", **kwargs: Any) -> Path:
        path = tmp_path / folder
        build(name, seed, kwargs.pop("dtype", torch.float32)).save_pretrained(path, **kwargs)
        word_tokenizer().save_pretrained(path)
        return path

    return save
