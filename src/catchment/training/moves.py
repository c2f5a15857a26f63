"""What a fence does to a move of the weights: pull it back by a factor, and slow down what goes on from there."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Move(Protocol):
    """What can be pulled back.

    It may also offer ``snapshot() -> state`` and ``restore(state)``, and should where it is kept in a half type. Then
    each factor is applied to the state before the look, and the weights that go on are bit for bit those that were
    scored. Without them factors are applied one after the other, by ratio, each up to rounding of the weights.
    """

    def scale(self, factor: float) -> None:
        """From here on the weights stand at ``base + factor * (weights - base)``; 0 is the base."""


class Pull:
    """The move at absolute factors of where it stood when the look began."""

    def __init__(self, move: Any) -> None:
        self.move, self.at = move, 1.0
        self.exact = hasattr(move, "snapshot") and hasattr(move, "restore")
        self.scales: list[float] = []
        self._start = move.snapshot() if self.exact else None

    def to(self, factor: float) -> None:
        """Factor 0 cannot be left again by ratio: it comes last."""
        if factor == self.at:
            return
        if self.exact:
            self.move.restore(self._start)
            self.scales = []
        ratio = factor if self.exact else factor / self.at
        if ratio != 1:
            self.move.scale(ratio)
            self.scales.append(ratio)
        self.at = factor


def slow_down(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply a scheduler's base learning rates and the rates in force; checkpoints hold both.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> slow_down(optimizer, None, 0.5)
    >>> optimizer.param_groups[0]["lr"]
    0.05
    """
    waiting = [scheduler]
    while waiting:  # some hold others
        one = waiting.pop()
        waiting += [*getattr(one, "_schedulers", ()), *([one.scheduler] if hasattr(one, "scheduler") else [])]
        if hasattr(one, "base_lrs"):
            one.base_lrs = [rate * factor for rate in one.base_lrs]
    for group in getattr(optimizer, "param_groups", ()):
        for name in {"lr", "initial_lr"} & group.keys():
            if isinstance(group[name], torch.Tensor):
                group[name].mul_(factor)
            else:
                group[name] *= factor
