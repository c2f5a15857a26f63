"""What a model is: loading, families, weights, identity, and increments (a sparse move as a file)."""

from catchment.models.compat import Calls, calls_of, check_trainer, expanded, picking, quiet_peft
from catchment.models.export import Export, export_merged, export_peft
from catchment.models.families import FAMILIES, KINDS, Family, family_of, is_block, locate
from catchment.models.files import read_header
from catchment.models.identity import (
    aliases,
    config_hash,
    mapped_weights,
    peft_hashes,
    template_hash,
    tokenizer_hash,
    weights_hash,
)
from catchment.models.increment_sums import Overlap, PairOverlap, add_increments, overlap
from catchment.models.increments import Increment, make_increment, swap, write_increment
from catchment.models.layout import Damage, ModelLayout, listed, reshard
from catchment.models.loading import LoadedModel, card_of, load, tokenizer_of
from catchment.models.options import DEVICES, DTYPES, HEADS, find_device
from catchment.models.sources import Source, no_hub, offline, resolve
from catchment.models.ties import merge_adapter, save_model, untie, untied
from catchment.models.traces import without_trace
from catchment.models.weights import (
    Weights,
    drift,
    effective_weights,
    from_vector,
    named_weights,
    non_finite,
    norm,
    persistent_buffers,
    select,
    shared_names,
    to_vector,
)

__all__ = [
    "DEVICES",
    "DTYPES",
    "FAMILIES",
    "HEADS",
    "KINDS",
    "Calls",
    "Damage",
    "Export",
    "Family",
    "Increment",
    "LoadedModel",
    "ModelLayout",
    "Overlap",
    "PairOverlap",
    "Source",
    "Weights",
    "add_increments",
    "aliases",
    "calls_of",
    "card_of",
    "check_trainer",
    "config_hash",
    "drift",
    "effective_weights",
    "expanded",
    "export_merged",
    "export_peft",
    "family_of",
    "find_device",
    "from_vector",
    "is_block",
    "listed",
    "load",
    "locate",
    "make_increment",
    "mapped_weights",
    "merge_adapter",
    "named_weights",
    "no_hub",
    "non_finite",
    "norm",
    "offline",
    "overlap",
    "peft_hashes",
    "persistent_buffers",
    "picking",
    "quiet_peft",
    "read_header",
    "reshard",
    "resolve",
    "save_model",
    "select",
    "shared_names",
    "swap",
    "template_hash",
    "to_vector",
    "tokenizer_hash",
    "tokenizer_of",
    "untie",
    "untied",
    "weights_hash",
    "without_trace",
    "write_increment",
]
