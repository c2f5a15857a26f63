"""How to load a model: the words a user may write, checked before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from catchment.errors import InputError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps", "xpu")
HEADS = {
    "causal-lm": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}


@dataclass(frozen=True)
class Options:
    """How to load; checked once, before anything is touched."""

    tokenizer: Any
    revision: str | None
    dtype: str
    device: str
    device_map: Any
    attention: str | None
    trust_remote_code: bool
    head: str

    def conditions(self) -> dict[str, Any]:
        """What, besides the files, decides the card."""
        return {
            "dtype": self.dtype,
            "device": self.device,
            "device_map": repr(self.device_map),
            "attention": self.attention,
            "trust": self.trust_remote_code,
            "head": self.head,
            "versions": {name: _version(name) for name in ("catchment", "torch", "transformers", "tokenizers", "peft")},
        }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def options(
    tokenizer: Any,
    revision: str | None,
    dtype: str,
    device: str | None,
    device_map: Any,
    attention: str | None,
    trust: bool,
    head: str,
) -> Options:
    """Check the arguments of ``load``.

    Raises:
        InputError: A word that is not known, or a device that is not there.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.{did_you_mean(dtype, DTYPES)}")
    if head != "auto" and head not in HEADS:
        raise InputError(f"head {head!r} is not one of auto, {', '.join(HEADS)}.{did_you_mean(head, HEADS)}")
    return Options(tokenizer, revision, dtype, find_device(device), device_map, attention, trust, head)


def find_device(device: str | None) -> str:
    """Check a device's name, or choose: CUDA, then MPS, then the CPU.

    Raises:
        InputError: Not a device, or one that this machine does not have.

    >>> find_device("cpu")
    'cpu'
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = str(device).partition(":")
    if kind not in DEVICES or (number and not number.isdigit()):
        hint = did_you_mean(kind, DEVICES)
        raise InputError(f"device {str(device)!r} is not cpu, cuda, cuda:N, mps or xpu.{hint}")
    backend = getattr(torch, kind) if kind != "cpu" else None
    if backend is not None and not backend.is_available():
        raise InputError(f"device {str(device)!r} is not available on this machine; use cpu.")
    if backend is not None and number and int(number) >= backend.device_count():
        raise InputError(f"device {str(device)!r} does not exist: this machine has {backend.device_count()}.")
    return str(device)
