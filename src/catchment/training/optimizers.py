"""What optimizers lack for fine-tuning: a pull towards the base, ascent before descent (SAM), fp32 master weights.

Each works with any ``torch.optim`` optimizer: through its hooks, or between the backward pass and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from catchment.errors import InputError

_MASTERS = "master_weights"


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which only matrices decay; vectors (biases, gains of norms) have a weight decay of 0.

    >>> matrix, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    >>> [group["weight_decay"] for group in decay_groups([matrix, bias], 0.1)]
    [0.1, 0.0]
    """
    parameters = list(parameters)
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def pull_to_base(
    optimizer: torch.optim.Optimizer, pairs: Sequence[tuple[nn.Parameter, Tensor]], strength: float
) -> RemovableHandle:
    """Before each step: ``w <- w - lr * strength * (w - w0)``, the decoupled decay towards the base (L2-SP).

    The penalty ``strength/2 * ||w - w0||^2`` of L2-SP (arXiv 1802.01483, equation 2 without its second term) has the
    gradient ``strength * (w - w0)``. Here it is applied as AdamW applies its decay, outside the moments; for plain SGD
    the two are the same step. ``lr`` is that of the parameter's group at that step. A parameter without a gradient is
    pulled too.

    Cost: one pass over the pairs per step; a base on another device is copied over at every step.

    Args:
        optimizer: Holds every parameter of ``pairs`` in its groups.
        pairs: Parameter and its base ``w0``: same shape, any dtype. The difference is taken in at least fp32.
        strength: Not negative.

    Returns:
        A handle whose ``remove()`` ends the pull.

    Raises:
        InputError: The strength is negative or not finite, or a parameter is not in the optimizer.
    """
    check_number("strength", strength, 0.0)
    bases = {id(parameter): base for parameter, base in pairs}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not bases.keys() <= held:
        raise InputError(f"{len(bases.keys() - held)} of {len(bases)} parameters to pull are not in the optimizer.")

    @torch.no_grad()
    def pull(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            amount = float(group["lr"]) * strength
            for parameter in group["params"]:
                base = bases.get(id(parameter))
                if base is not None and amount:
                    _pull(parameter, base, amount)

    return optimizer.register_step_pre_hook(pull)


def _pull(parameter: nn.Parameter, base: Tensor, amount: float) -> None:
    wide = torch.promote_types(parameter.dtype, torch.float32)
    here = parameter.detach().to(wide)
    gap = here - base.to(device=here.device, dtype=wide)
    parameter.copy_(torch.sub(here, gap, alpha=amount))


def check_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse a setting outside ``[low, high]``, or infinite.

    Raises:
        InputError: It is, or it is no number.
    """
    if not isinstance(value, Real) or not low <= value <= high or value == float("inf"):
        limit = f"of at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
        raise InputError(f"{name} {value}: expected a finite number {limit}.")


class MasterWeights:
    """fp32 copies of half-precision weights: the optimizer moves the copies, and the weights follow by rounding.

    bf16 has 8 significant bits: a step below 1/512 of a weight is lost when it is added to the weight itself. The
    gradient of each backward pass is added to the copy's in fp32 and freed at once, so accumulation is in fp32 too.
    Weights of other dtypes are their own masters.

    Memory per half-precision weight: 4 bytes for the copy and 4 for its gradient, while only one tensor's 2-byte
    gradient is alive; the optimizer's moments are fp32. Where several processes train together, gradients are moved
    at the step instead, after they have been averaged, and the accumulation is in the weights' own dtype.

    Args:
        weights: The parameters to move.
        enabled: ``False``: every weight is its own master, whatever its dtype.

    Attributes:
        weights: The model's own parameters.
        leaves: What the optimizer sees, one per weight.
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, enabled: bool = True) -> None:
        self.weights = list(weights)
        half = [enabled and w.dtype.itemsize < 4 for w in self.weights]
        self.leaves = [nn.Parameter(w.detach().float()) if h else w for w, h in zip(self.weights, half, strict=True)]
        self._pairs = [(w, m) for w, m in zip(self.weights, self.leaves, strict=True) if m is not w]
        self._hooks: list[RemovableHandle] = []
        if not distributed():
            for weight, master in self._pairs:
                self._hooks.append(weight.register_post_accumulate_grad_hook(_mover(master)))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the weights after each step of the optimizer, and keep the copies in its state."""
        if not self._pairs:
            return
        optimizer.register_step_pre_hook(lambda *_: self.collect())
        optimizer.register_step_post_hook(lambda *_: self.write())
        optimizer.register_state_dict_post_hook(self._put)
        optimizer.register_load_state_dict_pre_hook(self._take)

    def settle(self) -> None:
        """Follow weights that moved to another device, and leave their gradients in place if processes joined."""
        for weight, master in self._pairs:
            master.data = master.data.to(weight.device)
        if distributed():
            self.close()

    def collect(self) -> None:
        """Move gradients that still are with the weights."""
        for weight, master in self._pairs:
            if weight.grad is not None:
                _move(weight, master)

    @torch.no_grad()
    def write(self) -> None:
        """Round the copies into the weights."""
        for weight, master in self._pairs:
            weight.copy_(master)

    @torch.no_grad()
    def read(self) -> None:
        """Take the weights as they are."""
        for weight, master in self._pairs:
            master.copy_(weight)

    def close(self) -> None:
        """Leave gradients with the weights from here on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _put(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, _MASTERS: [master.detach() for _, master in self._pairs]}

    @torch.no_grad()
    def _take(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        masters = state.get(_MASTERS)
        if masters is None or [m.shape for m in masters] != [m.shape for _, m in self._pairs]:
            raise InputError(
                "this optimizer state holds no fp32 master weights of this model; expected the state of the same "
                "method on the same model, with master_weights=True."
            )
        for (_, master), saved in zip(self._pairs, masters, strict=True):
            master.copy_(saved)
        self.write()
        return {key: value for key, value in state.items() if key != _MASTERS}


def _mover(master: nn.Parameter) -> Callable[[Tensor], None]:
    return lambda weight: _move(weight, master)


@torch.no_grad()
def _move(weight: Tensor, master: nn.Parameter) -> None:
    assert weight.grad is not None
    gradient = weight.grad.to(device=master.device, dtype=master.dtype)
    weight.grad = None
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)


class SharpnessAware:
    """SAM: the gradient at ``w + rho * g / ||g||`` instead of at ``w`` (arXiv 2010.01412, equations 2 and 3).

    ``g`` is the gradient of one micro-batch and ``||g||`` its norm over all trained weights together, so that with
    gradient accumulation each micro-batch climbs its own loss (m-SAM, section 4.1 there) and the sum of the micro
    batches' SAM gradients is what the optimizer sees. ``w`` is restored bit for bit before the gradients are added.
    The ascent stands at what the weights' dtype can hold: in bf16 a small ``rho`` may round away.

    Cost: a second forward and backward pass; memory: one copy of the trained weights during the second pass and one
    of the accumulated gradient.

    Args:
        masters: Weights and where their gradients are.
        rho: Radius of the ascent in Euclidean norm.
    """

    def __init__(self, masters: MasterWeights, rho: float) -> None:
        self._masters, self._rho = masters, rho
        self._before: list[Tensor | None] = [None] * len(masters.weights)

    def second_pass(self, again: Callable[[], None]) -> None:
        """Replace the gradient that the last backward pass added by the one at the point of ascent.

        A gradient that is zero or not finite is left as it is: there is no direction to climb.

        Raises:
            InputError: Gradients accumulate over several processes; the parts of a process cannot be told apart.
        """
        if distributed() and any(before is not None for before in self._before):
            raise InputError("SAM with gradient accumulation works in one process; expected accumulation 1, or one.")
        self._masters.collect()
        leaves = self._masters.leaves
        added = [
            leaf.grad if leaf.grad is None or before is None else leaf.grad - before
            for leaf, before in zip(leaves, self._before, strict=True)
        ]
        gradients = [g for g in added if g is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if 0 < norm < float("inf"):
            for leaf in leaves:
                leaf.grad = None
            self._climb(added, self._rho / norm, again)
            del added, gradients
            self._masters.collect()
            for leaf, before in zip(leaves, self._before, strict=True):
                if before is not None:
                    leaf.grad = before.clone() if leaf.grad is None else leaf.grad.add_(before)
        self._before = [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves]

    def _climb(self, gradients: Sequence[Tensor | None], factor: float, again: Callable[[], None]) -> None:
        """Run ``again`` at ``w + factor * gradients``; the weights are restored whatever happens inside."""
        kept = [weight.detach().clone() for weight in self._masters.weights]
        try:
            with torch.no_grad():
                for weight, leaf, g in zip(self._masters.weights, self._masters.leaves, gradients, strict=True):
                    if g is not None:
                        weight.copy_(torch.add(leaf.detach(), g, alpha=factor))
            again()
        finally:
            with torch.no_grad():
                for weight, value in zip(self._masters.weights, kept, strict=True):
                    weight.copy_(value)

    def forget(self, *_: Any) -> None:
        """The gradients were used or dropped: the next backward pass begins from none. An optimizer's step hook."""
        self._before = [None] * len(self._masters.weights)


def distributed() -> bool:
    """Whether several processes train together."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1
