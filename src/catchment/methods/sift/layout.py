"""Where the entries that train lie: targets, and one flat vector over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError
from catchment.methods.sift.selection import Candidates, budget


@dataclass(eq=False)
class Target:
    """One tensor whose best entries train.

    Attributes:
        name: Its parameter's name.
        parameter: The parameter; under FSDP2 a ``DTensor``, of which this process holds rows.
        budget: Entries to choose; of the whole tensor, also where it is sharded.
        certain: Of these, entries that the tensor gets whatever the others score (global scope with a floor).
        dense: Every entry trains (``modules_to_save``).
        start, count: Its place in the flat vector.
        index: Sorted flat indices within the local part, ``(count,)``; ``None`` until they are chosen.
        scores, total: Sums of scores and gradients of the batches that took part in the choice so far.
        held: Dense gradient of one backward pass that waits for the other processes.
        waiting: Best entries of this process's part, which wait for the other processes.
    """

    name: str
    parameter: nn.Parameter
    budget: int
    certain: int = 0
    dense: bool = False
    start: int = 0
    count: int = 0
    index: Tensor | None = None
    scores: Tensor | None = field(default=None, repr=False)
    total: Tensor | None = field(default=None, repr=False)
    held: Tensor | None = field(default=None, repr=False)
    waiting: Candidates | None = field(default=None, repr=False)

    @property
    def local(self) -> Tensor:
        """The part of the weights that this process holds, flat, outside autograd: writing to it moves the model."""
        here = self.parameter.to_local() if hasattr(self.parameter, "to_local") else self.parameter
        return here.detach().view(-1)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    def offset(self) -> int:
        """Flat index, in the whole tensor, of the first entry that this process holds."""
        if not hasattr(self.parameter, "to_local"):
            return 0
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        sharded: Any = self.parameter
        _, places = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
        return int(places[0]) * (self.parameter.numel() // max(self.parameter.shape[0], 1))

    @property
    def slots(self) -> slice:
        return slice(self.start, self.start + self.count)


def plan(
    parameters: Mapping[str, nn.Parameter], dense: Mapping[str, nn.Parameter], sparsity: float, floor: float
) -> list[Target]:
    """Targets in the model's order with their budgets; nothing is chosen yet.

    Raises:
        InputError: A share of the weights that selects nothing, or is none.
        ModelError: Targets on several devices.
    """
    if not isinstance(sparsity, (int, float)) or isinstance(sparsity, bool) or not 0 < sparsity <= 1:
        raise InputError(
            f"sparsity {sparsity!r}: it is the share of the targeted weights that train; expected more than 0 (which "
            "selects nothing) and at most 1, e.g. 0.01."
        )
    targets = []
    for name, parameter in parameters.items():
        k = budget(parameter.numel(), sparsity)
        targets.append(Target(name, parameter, k, int(floor * k)))
    targets += [Target(name, parameter, parameter.numel(), dense=True) for name, parameter in dense.items()]
    devices = sorted({str(target.local.device) for target in targets})
    if len(devices) > 1:
        raise ModelError(
            f"the targets lie on several devices ({', '.join(devices)}); load the model on one, or use FSDP2."
        )
    dtypes = sorted({str(target.parameter.dtype) for target in targets})
    if len(dtypes) > 1:
        raise ModelError(f"the targets have several dtypes ({', '.join(dtypes)}); convert the model to one.")
    return targets


class Flat:
    """The flat vectors: ``values`` (fp32, what the optimizer steps), ``base``, and who owns which slots.

    Args:
        targets: Whose entries; slots are laid out for their budgets at first.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = list(targets)
        first = self.targets[0].local
        self.index_dtype = torch.int32 if max(t.parameter.numel() for t in targets) < 2**31 else torch.int64
        self.values = nn.Parameter(torch.empty(0, device=first.device))
        self.base = torch.empty(0, dtype=first.dtype, device=first.device)
        self.lay_out({target.name: target.budget for target in targets})

    def lay_out(self, counts: Mapping[str, int]) -> None:
        """Give every target its slots; all are zero afterwards."""
        start = 0
        for target in self.targets:
            target.start, target.count = start, counts.get(target.name, 0)
            start += target.count
        self.values.grad = None
        self.values.data = self.values.data.new_zeros(start)
        self.base = self.base.new_zeros(start)

    def to(self, device: torch.device) -> None:
        """Follow a model that was moved to another device."""
        self.values.grad = None
        self.values.data, self.base = self.values.data.to(device), self.base.to(device)
        for target in self.targets:
            for name in ("index", "scores", "total"):
                value = getattr(target, name)
                setattr(target, name, None if value is None else value.to(device))

    def gradient(self) -> Tensor:
        """The flat gradient, made of zeros where there is none yet."""
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        return self.values.grad

    def settle(self, target: Target, index: Tensor, gradient: Tensor | None = None) -> None:
        """The entries of a target are chosen: their values are the base, their gradient counts for the next step."""
        index = index.to(target.local.device)
        target.index = index.to(self.index_dtype)
        old = target.local[index]
        self.base[target.slots] = old
        self.values.data[target.slots] = old.float()
        if gradient is not None:
            self.gradient()[target.slots].add_(gradient)

    def parts(self, flat: Tensor) -> Iterator[tuple[Target, Tensor]]:
        """Every target whose entries are chosen, with its slots of a flat vector."""
        for target in self.targets:
            if target.index is not None and target.count:
                yield target, flat[target.slots]

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """``W[index] = cast(flat)``."""
        for target, part in self.parts(flat):
            assert target.index is not None
            local = target.local
            local.index_copy_(0, target.index.long(), part.detach().to(local.dtype))
