"""Tiny random models and tokenizers, made without network: what unit tests measure."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = (
    "The capital of France is Paris and the capital of Italy is Rome.",
    "Question: What is 12 + 7? Answer: 19",
    "A small dog ran into the big garden, and the old cat slept on the warm stone.",
    "I am sorry, but I cannot help with that. First, open the door. Then, close it again.",
    "system user assistant You are a helpful assistant. Text: Continue the text.",
)
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VOCABULARY = 320


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(*, bos: bool = True, chat: bool | str = False, pad: bool = True) -> Any:
    """Byte-level BPE with at most 320 tokens, ``<pad>`` 0, ``<s>`` 1, ``</s>`` 2.

    Args:
        bos: Puts ``<s>`` before plain text.
        chat: ``True``: a template that writes no BOS; or the template itself.
        pad: Has a padding token.
    """
    tokenizer = Tokenizer.from_str(_trained())
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>" if pad else None
    )
    if chat:
        fast.chat_template = CHAT if chat is True else chat
    return fast


_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}
_IDS: dict[str, Any] = {k: v for k, v in _COMMON.items() if k in ("vocab_size", "initializer_range") or "token" in k}
_GPT2: dict[str, Any] = {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}


def _make(config: Callable[..., Any], head: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = head(config(**settings)).eval()
    with torch.no_grad():  # norms and biases start at 1 and 0, where mistakes would not show
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def tiny_llama(**settings: Any) -> Any:
    """A Llama with grouped-query attention, 320 tokens, 256 positions."""
    return _make(tf.LlamaConfig, tf.LlamaForCausalLM, **{**_GROUPED, **settings})


def tiny_mistral(sliding_window: int = 12) -> Any:
    return _make(tf.MistralConfig, tf.MistralForCausalLM, **_GROUPED, sliding_window=sliding_window)


def tiny_gemma2(sliding_window: int = 128) -> Any:
    return _make(
        tf.Gemma2Config,
        tf.Gemma2ForCausalLM,
        **_GROUPED,
        head_dim=8,
        sliding_window=sliding_window,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
        attn_implementation="eager",
    )


CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "gpt2": lambda: _make(tf.GPT2Config, tf.GPT2LMHeadModel, **_GPT2),
    "pythia": lambda: _make(tf.GPTNeoXConfig, tf.GPTNeoXForCausalLM, **_COMMON),
    "qwen2": lambda: _make(tf.Qwen2Config, tf.Qwen2ForCausalLM, **_GROUPED),
    "qwen3": lambda: _make(tf.Qwen3Config, tf.Qwen3ForCausalLM, **_GROUPED, head_dim=8),
    "gemma2": tiny_gemma2,
    "mistral": tiny_mistral,
    "olmo2": lambda: _make(tf.Olmo2Config, tf.Olmo2ForCausalLM, **_GROUPED),
    "opt": lambda: _make(
        tf.OPTConfig, tf.OPTForCausalLM, **_COMMON, ffn_dim=48, word_embed_proj_dim=32, init_std=0.3, dropout=0.0
    ),
    "bloom": lambda: _make(tf.BloomConfig, tf.BloomForCausalLM, **_IDS, hidden_size=32, n_layer=2, n_head=4),
    "mamba": lambda: _make(
        tf.MambaConfig, tf.MambaForCausalLM, **_IDS, hidden_size=32, state_size=4, num_hidden_layers=2
    ),
}
"""Tiny causal language models by family; each call builds the same random weights."""
