"""One tensor of a mover: where it lies, what it must go back to, and its values at a displaced point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catchment.errors import ModelError
from catchment.landscape import noise, sharding
from catchment.landscape.directions import Direction, Towards


@dataclass
class Part:
    """One tensor, as far as it is here: ``weight`` is the live flat storage, ``clean`` what it must go back to.
    ``index``: where the coordinates lie in it (a sparse subspace); ``start``: of the first coordinate in the whole."""

    name: str
    weight: Tensor
    clean: Tensor
    index: Tensor | None
    start: int
    from_file: bool = False
    delta: Tensor | None = None

    @property
    def stop(self) -> int:
        return self.start + self.clean.numel()

    def write(self, values: Tensor) -> None:
        if self.index is None:
            self.weight.copy_(values)
        else:
            self.weight[self.index] = values.to(self.weight.dtype)


def flat(name: str, tensor: Tensor) -> Tensor:
    here = sharding.local(tensor)
    if not here.is_contiguous():
        raise ModelError(
            f"weight {name!r} is not contiguous in memory and cannot be moved in place; call .contiguous()."
        )
    return here.view(-1)


def is_clean(part: Part) -> bool:
    """Whether the live values are the clean ones, bit for bit. Cost: one read of both."""
    live = part.weight if part.index is None else part.weight[part.index]
    return torch.equal(_words(live), _words(part.clean.to(live.device)))


def _words(tensor: Tensor) -> Tensor:
    """Bits as integers, of which NaN equals itself and 0 is not -0; of 8 bytes where they fit, which is the fastest."""
    size = tensor.element_size()
    if tensor.nbytes % 8 == 0 and tensor.storage_offset() * size % 8 == 0:
        return tensor.view(torch.int64)
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[size])


def plain(part: Part) -> bool:
    return part.clean.dtype == torch.float32 and part.clean.device == part.weight.device


def added(clean: Tensor, delta: Tensor, scale: float) -> Tensor:
    """``clean + scale * delta`` in fp32 or wider, to be rounded once. (In half types torch rounds the scale itself.)"""
    wide = torch.promote_types(clean.dtype, torch.float32)
    return torch.add(clean.to(wide), delta.to(wide), alpha=scale)


def moved(direction: Direction, part: Part, clean: Tensor, scale: float, low: int, high: int) -> Tensor:
    """``clean + scale * delta``, a new tensor in the dtype of ``clean``."""
    first, last = part.start + low, part.start + high
    if isinstance(direction, Towards):
        return direction.at(part.name, clean, scale, first, last)
    drawn = direction.delta(part.name, first, last, str(clean.device))
    return torch.add(clean, drawn.to(part.clean.dtype).to(clean.dtype), alpha=scale)


def intended(direction: Direction, part: Part, here: slice, clean: Tensor, drawn: Tensor | None) -> Tensor:
    """A piece of the direction in float64, on the device of ``clean``; ``drawn`` where it cannot be cut."""
    first, last = part.start + here.start, part.start + here.stop
    if isinstance(direction, Towards):  # its own start is the live model, which is displaced
        return direction.change(part.name, clean, first, last).div_(direction.alpha)
    delta = direction.delta(part.name, first, last, str(clean.device)) if drawn is None else drawn[here]
    return delta.double()


def edges(start: int, count: int) -> list[int]:
    """Where the blocks of a part begin, so that no block of noise is drawn twice.

    >>> edges(0, 3 * noise.BLOCK) == [0, noise.BLOCK, 2 * noise.BLOCK]
    True
    """
    first = -start % noise.BLOCK
    inner = range(first, count, noise.BLOCK)
    return sorted({0, *inner}) if count else []
