"""What a model is: loading, families, weights, identity, and increments (a sparse move as a file)."""

from catchment.models.families import FAMILIES, KINDS, Family, family_of, is_block, locate
from catchment.models.identity import (
    aliases,
    config_hash,
    mapped_weights,
    peft_hashes,
    template_hash,
    tokenizer_hash,
    weights_hash,
)
from catchment.models.increments import Increment, make_increment
from catchment.models.loading import LoadedModel, card_of, load
from catchment.models.options import DEVICES, DTYPES, HEADS, find_device
from catchment.models.sources import Source, offline, resolve
from catchment.models.weights import (
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

__all__ = [
    "DEVICES",
    "DTYPES",
    "FAMILIES",
    "HEADS",
    "KINDS",
    "Family",
    "Increment",
    "LoadedModel",
    "Source",
    "aliases",
    "card_of",
    "config_hash",
    "drift",
    "effective_weights",
    "family_of",
    "find_device",
    "from_vector",
    "is_block",
    "load",
    "locate",
    "make_increment",
    "mapped_weights",
    "named_weights",
    "non_finite",
    "norm",
    "offline",
    "peft_hashes",
    "persistent_buffers",
    "resolve",
    "select",
    "template_hash",
    "to_vector",
    "tokenizer_hash",
    "weights_hash",
]
