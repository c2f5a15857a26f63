"""Ways to fine-tune: one protocol, one table of conformance."""

from catchment.methods.arguments import FitOptions, not_cut, sharding, steps_of, training_arguments
from catchment.methods.dense import L2SP, SAM, DenseTuning, Full, WiSEFT
from catchment.methods.fit import Fitted, encode_for, fit, make_trainer, try_out
from catchment.methods.lora import LoRA, LoRATuning
from catchment.methods.protocol import Method, Tuning
from catchment.methods.sift import RULES, SCOPES, SIFT, Sift, SiftCallback
from catchment.methods.targets import ALL_LINEAR
from catchment.methods.trainer import MethodTrainer, PunctualTrainer, whole_checkpoint

METHODS: dict[str, type] = {kind.name: kind for kind in (SIFT, LoRA, Full, L2SP, SAM, WiSEFT)}
"""By the name that ``--method`` takes."""

__all__ = [
    "ALL_LINEAR",
    "L2SP",
    "METHODS",
    "RULES",
    "SAM",
    "SCOPES",
    "SIFT",
    "DenseTuning",
    "FitOptions",
    "Fitted",
    "Full",
    "LoRA",
    "LoRATuning",
    "Method",
    "MethodTrainer",
    "PunctualTrainer",
    "Sift",
    "SiftCallback",
    "Tuning",
    "WiSEFT",
    "encode_for",
    "fit",
    "make_trainer",
    "not_cut",
    "sharding",
    "steps_of",
    "training_arguments",
    "try_out",
    "whole_checkpoint",
]
