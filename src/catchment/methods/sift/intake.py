"""What becomes of the gradients.

A hook on every targeted weight takes the dense gradient as soon as it is complete, adds the chosen entries to the flat
one and frees it, so that one dense gradient is alive at a time.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from catchment.methods.sift import sharing
from catchment.methods.sift.choice import Choice
from catchment.methods.sift.layout import Flat, Target

_SILENT = 3
"""Optimizer steps without any gradient after which something must be wrong."""


class Intake:
    """Adds the chosen entries of a dense gradient to the flat one, or offers it to the choice.

    Args:
        flat: Whose gradient grows.
        choice: Which entries train.
        replicas: Processes that hold all weights (DDP), whose gradients are averaged here.
    """

    def __init__(self, flat: Flat, choice: Choice, replicas: int) -> None:
        self.flat, self.choice, self.replicas = flat, choice, replicas
        self._silent: int | None = 0
        self._task: int | None = None

    def hooks(self) -> list[RemovableHandle]:
        """One on every target, called when its gradient is complete."""
        return [
            target.parameter.register_post_accumulate_grad_hook(partial(self.receive, target))
            for target in self.flat.targets
        ]

    @torch.no_grad()
    def receive(self, target: Target, parameter: Tensor) -> None:
        """A target's gradient is complete: take the chosen entries, free the rest."""
        dense, parameter.grad = parameter.grad, None
        if dense is None:
            return
        self._silent = None
        gradient = (dense.to_local() if self.choice.sharded else dense).reshape(-1)  # type: ignore[attr-defined]
        if gradient.device != self.flat.values.device:
            self.flat.to(gradient.device)
        if self.replicas > 1 or (self.choice.together and not self.choice.settled):
            self._follow_backward()
        flat = self.flat.gradient()
        if target.index is not None:
            flat[target.slots].add_(gradient.index_select(0, target.index), alpha=self.choice.share)
        elif self.choice.waits(target):
            if self.replicas > 1:
                target.held = gradient if target.held is None else target.held.add_(gradient)
            else:
                self.choice.offer(target, gradient)

    def _follow_backward(self) -> None:
        """Be called when this backward pass has ended. One that failed never ends: what it left is dropped."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        if self._task is not None and not self.choice.settled:
            self.choice.forget()
        for target in self.flat.targets:
            target.held = None
        self._task = task
        torch.autograd.Variable._execution_engine.queue_callback(self._backward_ended)

    @torch.no_grad()
    def _backward_ended(self) -> None:
        """Once per backward pass, where batches, processes or tensors must agree."""
        self._task = None
        if self.replicas > 1:
            waiting = [target for target in self.flat.targets if self.choice.waits(target)]
            for target, anywhere in zip(
                waiting, sharing.anywhere([t.held is not None for t in waiting], self.flat.base.device), strict=True
            ):
                held, target.held = target.held, None
                if anywhere:
                    mean = sharing.mean_(torch.zeros_like(target.local) if held is None else held)
                    self.choice.offer(target, mean)
        self.choice.backward_ended()
        if self.replicas > 1 and self.choice.done:
            sharing.mean_(self.flat.gradient())

    def listen(self) -> None:
        """Warn once when steps go by and no gradient has ever come."""
        if self._silent is None:
            return
        self._silent += 1
        if self._silent == _SILENT:
            warnings.warn(
                f"{_SILENT} optimizer steps, and no gradient has reached any of the {len(self.flat.targets)} targets: "
                "nothing trains. Check that the loss is of this model, not of a copy, that nothing (FSDP1, "
                "offloading) has put other weights in their place, and that they still require gradients.",
                stacklevel=5,
            )
