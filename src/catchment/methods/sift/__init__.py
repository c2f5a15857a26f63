"""SIFT: sparse increments chosen by gradients (arXiv 2312.11875)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import nn

from catchment.methods.sift.callback import SiftCallback
from catchment.methods.sift.core import Sift
from catchment.methods.sift.selection import RULES, SCOPES
from catchment.methods.targets import ALL_LINEAR


@dataclass(frozen=True)
class SIFT:
    """Settings of SIFT; the arguments of :class:`Sift`."""

    name: ClassVar[str] = "sift"
    sparsity: float = 0.01
    target_modules: str | Sequence[str] = ALL_LINEAR
    rule: str = "gradient"
    scope: str = "tensor"
    floor: float = 0.0
    selection_batches: int = 1
    modules_to_save: str | Sequence[str] = ()
    decay: str = "zero"

    def attach(self, model: nn.Module, *, seed: int = 0) -> Sift:
        """Freeze the model but for the entries that the first gradients will choose."""
        return Sift(model, seed=seed, **{**asdict(self), "target_modules": self.target_modules})


__all__ = ["RULES", "SCOPES", "SIFT", "Sift", "SiftCallback"]
