"""The models that every tool of the landscape benchmark moves, and how far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

REACH = 0.3
"""Largest displacement along one axis, as a share of the norm of the weights."""


def config(**settings: Any) -> Any:
    """33.5 million weights: hidden 512, 8 layers, 8,000 tokens, untied."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    return LlamaConfig(**{**sizes, "vocab_size": 8000, "max_position_embeddings": 512, **settings})


def build(kind: str, folder: Path, device: str) -> Any:
    """The model of ``folder`` in memory of its own, or a variant: tied, lora, bf16."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    if kind in ("plain", "bf16"):
        dtype = torch.float32 if kind == "plain" else torch.bfloat16
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        for weight in model.parameters():
            weight.data = weight.data.clone()  # not a view of the file
    else:
        model = LlamaForCausalLM(config(tie_word_embeddings=kind == "tied"))
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, settings)
    return model.to(device).train()
