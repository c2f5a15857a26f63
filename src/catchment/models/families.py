"""Where the parts of a model stand: one table of architectures, and a generic reading for unknown ones.

Every other module asks this table; no other file names a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

KINDS = ("embedding", "attention", "ffn", "norm", "head", "other")


@dataclass(frozen=True)
class Family:
    """One architecture. All patterns are regular expressions that are searched in a parameter's name.

    Attributes:
        name: Name for people.
        model_types: Values of ``config.model_type`` that belong here.
        block: Matches the prefix of a block; its first group is the number of the block.
        embedding, attention, ffn, norm, head: What each kind of parameter is called. Tried in the order
            head, norm, embedding, attention, ffn; the first match decides.
        ties: Pairs ``(later, first)`` of names that may share one tensor; the first is the name we keep.
        layers_field: Field of the config that holds the number of blocks.
        decoder_layers_field: The same for the decoder of an encoder-decoder; its blocks are numbered after
            the encoder's.
        offset: Number of encoder blocks, filled in by :func:`family_of`.
        renames: Regular expressions of names that files have, and what they are called in memory today.
    """

    name: str
    model_types: tuple[str, ...]
    block: str
    embedding: str
    attention: str
    ffn: str
    norm: str
    head: str
    ties: tuple[tuple[str, str], ...] = ()
    layers_field: str = "num_hidden_layers"
    decoder_layers_field: str | None = None
    offset: int = 0
    renames: tuple[tuple[str, str], ...] = ()

    def locate(self, name: str) -> tuple[int | None, str]:
        """Return ``(block, kind)`` of a parameter; the block is ``None`` outside the blocks.

        >>> LLAMA.locate("model.layers.3.mlp.up_proj.weight")
        (3, 'ffn')
        >>> LLAMA.locate("model.norm.weight")
        (None, 'norm')
        """
        match = re.search(self.block, name)
        layer = int(match.group(1)) if match else None
        if layer is not None and self.decoder_layers_field and re.search(r"(?:^|\.)decoder\.", name):
            layer += self.offset
        patterns = (
            ("head", self.head),
            ("norm", self.norm),
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("ffn", self.ffn),
        )
        for kind, pattern in patterns:
            if re.search(pattern, name):
                return layer, kind
        return layer, "other"

    def blocks(self, names: Iterable[str]) -> int:
        """Number of different blocks among parameter names."""
        return len({layer for layer, _ in map(self.locate, names) if layer is not None})


LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    block=r"(?:^|\.)layers\.(\d+)\.",
    embedding=r"(?:^|\.)embed_tokens\.",
    attention=r"\.self_attn\.",
    ffn=r"\.mlp\.",
    norm=r"(?:layernorm|_norm|(?:^|\.)norm)\.weight$",
    head=r"^(?:lm_head|score|classifier|qa_outputs)\.",
    ties=(("lm_head.weight", "model.embed_tokens.weight"),),
)
_VIT_BLOCK = r"^vit\.encoder\.layer\.(\d+)\."  # as files have it
_BERT_BLOCK = r"encoder\.layer\.(\d+)\."
_BERT_EMBEDDING = r"(?:^|\.)embeddings\.(?!LayerNorm)"
_BERT_FFN = r"encoder\.layer\.\d+\.(?:intermediate|output)\.dense\."

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    replace(LLAMA, name="Mistral", model_types=("mistral",)),
    replace(LLAMA, name="Qwen2", model_types=("qwen2",)),
    replace(LLAMA, name="Qwen3", model_types=("qwen3",)),
    replace(LLAMA, name="Gemma", model_types=("gemma", "gemma2", "gemma3_text")),
    replace(LLAMA, name="OLMo2", model_types=("olmo2",)),
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        block=r"(?:^|\.)h\.(\d+)\.",
        embedding=r"(?:^|\.)w[tp]e\.",
        attention=r"\.(?:attn|crossattention)\.",
        ffn=r"\.mlp\.",
        norm=r"(?:^|\.)ln_\w+\.",
        head=r"^(?:lm_head|score|classifier|qa_outputs)\.",
        ties=(("lm_head.weight", "transformer.wte.weight"),),
        layers_field="n_layer",
    ),
    Family(
        name="GPT-NeoX",
        model_types=("gpt_neox",),
        block=r"(?:^|\.)layers\.(\d+)\.",
        embedding=r"(?:^|\.)embed_in\.",
        attention=r"\.attention\.",
        ffn=r"\.mlp\.",
        norm=r"(?:layernorm|layer_norm)\.",
        head=r"^(?:lm_head|embed_out|score|classifier|qa_outputs)\.",
        ties=(("lm_head.weight", "gpt_neox.embed_in.weight"), ("embed_out.weight", "gpt_neox.embed_in.weight")),
        renames=((r"^embed_out\.", "lm_head."),),
    ),
    Family(
        name="BERT",
        model_types=("bert",),
        block=_BERT_BLOCK,
        embedding=_BERT_EMBEDDING,
        attention=r"\.(?:cross)?attention\.",
        ffn=_BERT_FFN,
        norm=r"\.LayerNorm\.",
        head=r"^(?:cls|classifier|qa_outputs)\.|(?:^|\.)pooler\.",
        ties=(
            ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
    ),
    Family(
        name="RoBERTa",
        model_types=("roberta", "xlm-roberta"),
        block=_BERT_BLOCK,
        embedding=_BERT_EMBEDDING,
        attention=r"\.(?:cross)?attention\.",
        ffn=_BERT_FFN,
        norm=r"\.LayerNorm\.",
        head=r"^(?:lm_head|classifier|qa_outputs)\.|(?:^|\.)pooler\.",
        ties=(
            ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
            ("lm_head.decoder.bias", "lm_head.bias"),
        ),
    ),
    Family(
        name="ViT",
        model_types=("vit",),
        block=r"(?:^|\.)(?:encoder\.layer|layers)\.(\d+)\.",
        embedding=r"(?:^|\.)embeddings\.",
        attention=r"\.attention\.",
        ffn=r"\.mlp\.|\.(?:intermediate|output)\.dense\.",
        norm=r"(?:^|\.)layernorm(?:_before|_after)?\.",
        head=r"^classifier\.|(?:^|\.)pooler\.",
        renames=(
            (
                _VIT_BLOCK + r"attention\.attention\.(q|k|v)(?:uery|ey|alue)\.",
                r"vit.layers.\1.attention.\2_proj.",
            ),
            (_VIT_BLOCK + r"attention\.output\.dense\.", r"vit.layers.\1.attention.o_proj."),
            (_VIT_BLOCK + r"intermediate\.dense\.", r"vit.layers.\1.mlp.fc1."),
            (_VIT_BLOCK + r"output\.dense\.", r"vit.layers.\1.mlp.fc2."),
            (r"^vit\.encoder\.layer\.", "vit.layers."),
        ),
    ),
    Family(
        name="T5",
        model_types=("t5", "mt5"),
        block=r"(?:^|\.)block\.(\d+)\.",
        embedding=r"^shared\.|\.embed_tokens\.",
        attention=r"\.(?:SelfAttention|EncDecAttention)\.",
        ffn=r"\.DenseReluDense\.",
        norm=r"layer_norm\.",
        head=r"^(?:lm_head|classification_head|classifier|qa_outputs)\.",
        ties=(
            ("encoder.embed_tokens.weight", "shared.weight"),
            ("decoder.embed_tokens.weight", "shared.weight"),
            ("lm_head.weight", "shared.weight"),
        ),
        layers_field="num_layers",
        decoder_layers_field="num_decoder_layers",
    ),
)

# For architectures that are not in the table: the words that most of them use.
_GENERIC = Family(
    name="unknown",
    model_types=(),
    block=r"(?:^|\.)(?:layers?|h|blocks?|stages?)\.(\d+)\.",
    embedding=r"(?i)embed|(?:^|\.)w[tp]e\.|cls_token",
    attention=r"(?i)attn|attention|(?:^|\.)(?:q|k|v|qkv|query|key|value)(?:_proj)?\.|mixer|[._]ssm",
    ffn=r"(?i)mlp|ffn|ff\.|feed_?forward|expert|fc\d|intermediate|dense|router|gate_proj|up_proj|down_proj",
    norm=r"(?i)norm|(?:^|\.)ln_?\w*\.|(?:^|\.)bn\d*\.",
    head=r"^(?:lm_head|head|classifier|score|embed_out|output|cls|qa_outputs)\.|(?:^|\.)pooler\.",
)


def family_of(config_or_model: Any) -> Family | None:
    """The row of the table for a model or its config, or ``None`` for an unknown architecture.

    PEFT models are looked through. For an encoder-decoder the decoder's blocks are numbered after the encoder's.
    """
    config = getattr(config_or_model, "config", config_or_model)
    model_type = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    for family in FAMILIES:
        if model_type in family.model_types:
            if family.decoder_layers_field is None:
                return family
            return replace(family, offset=int(getattr(config, family.layers_field, 0)))
    return None


_RENAMES = tuple((re.compile(old), new) for family in FAMILIES for old, new in family.renames)


def current_name(name: str) -> str:
    """A parameter's name in memory today, from a name in a file.

    >>> current_name("vit.encoder.layer.3.attention.attention.key.bias")
    'vit.layers.3.attention.k_proj.bias'
    """
    for old, new in _RENAMES:
        name = old.sub(new, name)
    return name


def locate(name: str, family: Family | None = None) -> tuple[int | None, str]:
    """``(block, kind)`` of a parameter by the family's table, or by common names when the family is unknown.

    >>> locate("backbone.blocks.7.ffn.w1.weight")
    (7, 'ffn')
    """
    return (family or _GENERIC).locate(name)


def is_block(module: str, family: Family | None = None) -> bool:
    """Whether a module's name is that of a whole block.

    >>> is_block("model.layers.3"), is_block("model.layers.3.mlp"), is_block("model.layers")
    (True, False, False)
    """
    match = re.search((family or _GENERIC).block, f"{module}.")
    return match is not None and match.end() == len(module) + 1
