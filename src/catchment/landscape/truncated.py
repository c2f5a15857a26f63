"""The way to another model with its small changes left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catchment.errors import InputError, ModelError
from catchment.landscape.directions import PIECE, Towards


@dataclass(frozen=True, eq=False)
class Truncated(Towards):
    """The way to another model with its small changes left out: with ``c = end - start`` over the subspace,
    ``delta = sqrt(k) c' / ||c'||_2``, where ``c' = c`` in the coordinates with ``|c| >= cut`` and 0 in the others.

    At the scale ``alpha`` = ||c'||_2 / sqrt(k) the weights that are kept are those of the other model and the rest
    those of the start, bit for bit. As of :class:`Towards`, ``identity`` is of the end, and the start is the model that
    is measured.

    Attributes:
        share: Of the coordinates that differ, the largest changes are kept; see :func:`truncated`.
    """

    cut: float = 0.0
    share: float = 1.0

    @property
    def address(self) -> dict[str, Any]:
        return {"kind": "truncated", "to": self.identity, "share": self.share}

    @property
    def family(self) -> dict[str, Any]:
        return {**self.address, "subspace": self.subspace.hash}

    def _kept(self, name: str, clean: Tensor, start: int, stop: int | None) -> Tensor:
        own = clean.to(self.start[name].dtype)
        return _sizes(own, self.end[name][start:stop].to(clean.device)) >= self.cut

    def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "cpu") -> Tensor:
        kept = self._kept(name, self.start[name][start:stop].to(device), start, stop)
        return super().delta(name, start, stop, device).mul_(kept)

    def change(self, name: str, clean: Tensor, start: int, stop: int) -> Tensor:
        return super().change(name, clean, start, stop).mul_(self._kept(name, clean, start, stop))

    def at(self, name: str, clean: Tensor, scale: float, start: int, stop: int) -> Tensor:
        moved = super().at(name, clean, scale, start, stop)
        return torch.where(self._kept(name, clean, start, stop), moved, clean.to(moved.dtype))


def _sizes(a: Tensor, b: Tensor) -> Tensor:
    """|b - a| in fp32, formed in fp32 or wider."""
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return (b.to(wide) - a.to(wide)).abs_().float()


def truncated(way: Towards, share: float) -> Truncated:
    """The way with the given share of its changes, the largest ones; ties with the smallest of them are kept too.

    Of m coordinates that differ, ``min(floor(share m) + 1, m)`` are kept: the cut is an order statistic of ``|end -
    start|`` in fp32, found exactly by counting bit patterns, which are ordered as the numbers are. The start must stand
    at its own weights.

    Args:
        share: In [0, 1].

    Cost: three reads of both models' weights in the subspace. Memory: a piece of a tensor.

    Raises:
        ModelError: No coordinate differs by a number that fp32 holds.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share {share}; expected a number from 0 to 1.")
    cut = _largest(way, share)
    squares = 0.0
    for size in _all_sizes(way):
        squares += float(size[size >= cut].double().square().sum())
    alpha = math.sqrt(squares / way.subspace.size)
    return Truncated(way.subspace, way.start, way.end, alpha, way.identity, cut=cut, share=share)


def _all_sizes(way: Towards) -> Iterator[Tensor]:
    for name in way.subspace.shapes:
        for a, b in zip(way.start[name].split(PIECE), way.end[name].split(PIECE), strict=True):
            yield _sizes(a.to(b.device), b)


def _largest(way: Towards, share: float) -> float:
    """The change that a share of all non-zero ones exceeds: the upper half of its bits from one count, then the lower
    half from a count of the changes that share the upper one."""
    upper = torch.zeros(1 << 15, dtype=torch.long)
    for size in _all_sizes(way):
        upper += torch.bincount(size[size > 0].view(torch.int32) >> 16, minlength=1 << 15).cpu()
    moved = int(upper.sum())
    if not moved:
        raise ModelError("the two models have equal weights in this subspace; there is no direction between them.")
    high, rank = _from_above(upper, min(int(share * moved), moved - 1))
    lower = torch.zeros(1 << 16, dtype=torch.long)
    for size in _all_sizes(way):
        bits = size.view(torch.int32)
        lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16).cpu()
    low, _ = _from_above(lower, rank)
    return float(torch.tensor((high << 16) + low, dtype=torch.int32).view(torch.float32))


def _from_above(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin of the number of this rank (0 is the largest), and its rank within the bin."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, rank, right=True))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - before
