"""What every way to fine-tune has in common: a :class:`Method` is its settings, a :class:`Tuning` is it at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class Method(Protocol):
    """Settings of a way to fine-tune; a frozen dataclass, so that two runs can be compared by their settings."""

    name: ClassVar[str]

    def attach(self, model: nn.Module, *, seed: int = 0) -> Tuning:
        """Make the model ready: what trains requires a gradient, what does not is frozen.

        Raises:
            InputError: A setting that this model cannot have; nothing was altered.
        """


class Tuning(Protocol):
    """A method at work on a model. Everything that a training loop needs beyond forward and backward.

    Attributes:
        model: What computes; for LoRA the wrapped model, else the one that was given.
    """

    model: nn.Module

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer sees."""

    def optimizer(self, factory: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> Any:
        """An optimizer over :meth:`parameters` whose steps reach the weights; its state resumes the tuning."""

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip the gradient of what trains to this norm; returns the norm before."""

    def zero_grad(self) -> None:
        """Forget the gradient of what trains, after a step that was left out."""

    def second_pass(self, again: Callable[[], None]) -> None:
        """Called after each backward pass; ``again`` runs forward and backward of the same batch once more (SAM)."""

    def scale(self, factor: float) -> None:
        """Multiply the move made so far: the weights stand at ``base + factor * (weights - base)`` from here on."""

    def finish(self) -> None:
        """Called once after the last step (WiSE-FT interpolates here)."""

    def save_pretrained(
        self, folder: str | Path, *, base_hash: str | None = None, recipe: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the smallest artefact that holds the move: an increment, an adapter or a whole model.

        Returns:
            The path that ``catchment.models.load`` reads: alone for a whole model, after ``BASE+`` otherwise.
        """

    def load_pretrained(self, folder: str | Path) -> None:
        """Take up what :meth:`save_pretrained` wrote, on the same base; optimizer state is loaded separately."""

    def merge(self) -> nn.Module:
        """The tuned model as a plain transformers model; the tuning is over."""

    def remove(self) -> nn.Module:
        """The base, bit for bit, with ``requires_grad`` as it was found; the tuning is over."""
