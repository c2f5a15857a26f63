"""Directions: where to move, addressed and not stored. ``delta(name)`` gives one tensor of one.

All directions have RMS 1 over their subspace (in expectation for random ones), so that a scale is always alpha_S, the
RMS displacement per weight of S. Only filter-normalised ones do not, and say so: ``comparable`` is False.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.landscape import noise
from catchment.landscape.sharding import local, whole
from catchment.landscape.subspace import Subspace
from catchment.models import Weights, effective_weights

PIECE = 1 << 22
"""Numbers that are looked at together."""


class Direction(Protocol):
    """What every direction offers.

    Attributes:
        subspace: The weights that it moves.
        comparable: Whether scales along it are alpha_S.
        cuttable: Whether a piece of a tensor costs no more than its share.
    """

    @property
    def subspace(self) -> Subspace: ...

    @property
    def comparable(self) -> bool: ...

    @property
    def cuttable(self) -> bool: ...

    @property
    def address(self) -> dict[str, Any]:
        """JSON that decides the direction: part of the key of everything measured along it."""

    def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "cpu") -> Tensor:
        """Coordinates ``start`` to ``stop`` in one tensor, fp32, 1-D: entries of the flattened tensor, or, in a sparse
        subspace, of its support."""


def length(subspace: Subspace, name: str) -> int:
    """Numbers that ``delta(name)`` has; in a frame more than the dimensions that the tensor contributes."""
    return subspace.coordinates(name) if subspace.kind == "sparse" else math.prod(subspace.shapes[name])


def pieces(
    directions: Sequence[Direction], name: str, device: str, start: int = 0, stop: int | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of several directions in one tensor, at most 4M numbers at a time, from ``start`` to ``stop``.
    Of a direction that cannot be cut the whole stretch is drawn, once."""
    stop = length(directions[0].subspace, name) if stop is None else stop
    drawn = [None if d.cuttable else d.delta(name, start, stop, device) for d in directions]
    for low in range(start, stop, PIECE):
        high = min(low + PIECE, stop)
        yield tuple(
            d.delta(name, low, high, device) if kept is None else kept[low - start : high - start]
            for d, kept in zip(directions, drawn, strict=True)
        )


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two 1-D tensors in float64. Memory: two pieces."""
    return sum(float(x.double() @ y.double()) for x, y in zip(a.split(PIECE), b.split(PIECE), strict=True))


@dataclass(frozen=True)
class Gaussian:
    """z ~ N(0, I_k) in the subspace; its antithetic partner is the same direction at a negative scale.

    ``||delta||_2 / sqrt(k)`` is 1 up to ``1/sqrt(2 k)``: it is not normalised, as in arXiv 2505.17646, Def. 4.1.
    """

    subspace: Subspace
    seed: int
    index: int
    comparable: bool = True

    @property
    def cuttable(self) -> bool:
        return self.subspace.kind != "frame"

    @property
    def stream(self) -> int:
        """Seed of the numbers: of (seed, index) together."""
        digest = hashlib.sha256(f"{self.seed}/{self.index}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    @property
    def address(self) -> dict[str, Any]:
        return {"kind": "gaussian", "seed": self.seed, "index": self.index, "scheme": noise.SCHEME}

    def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "cpu") -> Tensor:
        size = self.subspace.coordinates(name)
        if self.subspace.kind != "frame":
            return noise.normal(self.stream, name, size, start, stop, device)
        rank, columns = self.subspace.rank, self.subspace.shapes[name][1]
        c = noise.normal(self.stream, name, size).reshape(rank, columns)
        # whole, then cut: rows of a product depend on how many are asked for in the last bit
        return (self.subspace.basis(name) @ c).reshape(-1)[start:stop].to(device)


def gaussian(subspace: Subspace, seed: int, index: int = 0) -> Gaussian:
    """The ``index``-th random direction of ``seed``."""
    return Gaussian(subspace, seed, index)


@dataclass(frozen=True, eq=False)
class FilterNormalised:
    """A Gaussian direction whose rows have the norms of the rows of the weights (Li et al., arXiv 1712.09913); vectors
    (norms, biases) stay. For plots only: its scales are relative to each row and cannot be compared with any other."""

    origin: Gaussian
    weights: Mapping[str, Tensor] = field(repr=False)
    comparable: bool = False
    cuttable: bool = False

    @property
    def subspace(self) -> Subspace:
        return self.origin.subspace

    @property
    def address(self) -> dict[str, Any]:
        return {**self.origin.address, "kind": "filter"}

    def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "cpu") -> Tensor:
        if self.subspace.kind == "sparse":
            raise ModelError("filter normalisation needs whole rows; a sparse subspace has none. Leave it out.")
        raw = self.origin.delta(name, device=device)
        weight = self.weights[name]
        if weight.ndim < 2:
            return torch.zeros_like(raw)[start:stop]
        rows = raw.reshape(weight.shape[0], -1)
        wanted = weight.detach().float().reshape(weight.shape[0], -1).norm(dim=1, keepdim=True).to(rows.device)
        return (rows * (wanted / rows.norm(dim=1, keepdim=True).clamp_min(1e-30))).reshape(-1)[start:stop]


def filter_normalised(model: nn.Module, direction: Gaussian) -> FilterNormalised:
    """The direction with the row norms of the model's weights as they stand now."""
    weights = {name: whole(w).clone() for name, w in direction.subspace.weights(model).items()}
    return FilterNormalised(direction, weights)


@dataclass(frozen=True, eq=False)
class Towards:
    """From one model to another: ``delta = sqrt(k) (end - start) / ||end - start||_2``, of RMS exactly 1.

    The other model stands at the scale ``alpha`` = ||end - start||_2 / sqrt(k), and there, and at 0, the displaced
    weights are those of the two models bit for bit (``lerp``, not ``start + delta``). ``start`` is a view of the live
    model: ask for ``delta`` while it stands at its own weights.
    """

    subspace: Subspace
    start: Mapping[str, Tensor] = field(repr=False)
    end: Mapping[str, Tensor] = field(repr=False)
    alpha: float
    identity: str
    comparable: bool = True
    cuttable: bool = True

    @property
    def address(self) -> dict[str, Any]:
        return {"kind": "towards", "to": self.identity, "alpha": self.alpha}

    @property
    def family(self) -> dict[str, Any]:
        """Part of the address of rows along it, whose points are named by scale / alpha; see
        :class:`~catchment.landscape.Ray`."""
        return {"kind": "ray", "subspace": self.subspace.hash, "to": self.identity}

    @property
    def distance(self) -> float:
        """||end - start||_2 over the subspace."""
        return self.alpha * math.sqrt(self.subspace.size)

    def change(self, name: str, clean: Tensor, start: int, stop: int) -> Tensor:
        """``alpha * delta`` from weights of the start, a new tensor in their dtype and on their device."""
        return self.end[name][start:stop].to(clean.device, clean.dtype) - clean

    def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "cpu") -> Tensor:
        a, b = (side[name][start:stop].to(device).float() for side in (self.start, self.end))
        return (b - a) / self.alpha

    def at(self, name: str, clean: Tensor, scale: float, start: int, stop: int) -> Tensor:
        """Weights at a scale, in fp32 (or wider), exact at both ends."""
        wide = torch.promote_types(clean.dtype, torch.float32)
        end = self.end[name][start:stop].to(clean.device, wide)
        return torch.lerp(clean.to(wide), end, scale / self.alpha)


def towards(model: nn.Module, other: nn.Module, subspace: Subspace | None = None, identity: str = "") -> Towards:
    """The direction from ``model`` to ``other`` within a subspace (default: the entries or tensors that differ).

    Both keep their weights; adapters count by what they merge to. Memory: the differing entries of both, or views of
    the two models' whole tensors.

    Raises:
        ModelError: The two have other shapes, or are equal there, or ``model`` ties what is two tensors in ``other``:
            go there inside ``models.untied(model, other)``.
    """
    own, goal = effective_weights(model), effective_weights(other)
    _refuse_tied(own, goal)
    subspace = subspace or moved_subspace(model, other)
    if subspace.kind == "frame":
        raise ModelError("the way to another model does not lie in a frame; expected all, globs or a sparse support.")
    start: dict[str, Tensor] = {}
    end: dict[str, Tensor] = {}
    squares = 0.0
    for name in subspace.shapes:
        if name not in goal or tuple(goal[name].shape) != tuple(own[name].shape):
            raise ModelError(f"weight {name!r} has no counterpart of the same shape in the other model.")
        a, b = (local(side[name]).reshape(-1) for side in (own, goal))
        if subspace.kind == "sparse":
            index = subspace.support[name]
            a, b = a[index.to(a.device)], b[index.to(b.device)]
        start[name], end[name] = a, b
        squares += _distance(a, b)
    if squares == 0:
        raise ModelError("the two models have equal weights in this subspace; there is no direction between them.")
    return Towards(subspace, start, end, math.sqrt(squares / subspace.size), identity)


def _refuse_tied(own: Weights, goal: Weights) -> None:
    """A move of one tensor cannot lead to two different ones."""
    for name, first in own.names.items():
        cut = first != name and {name, first} <= goal.names.keys() and goal.names[first] != goal.names[name]
        if cut and next(_differing(goal[first], goal[name]), None) is not None:
            raise ModelError(
                f"the other model has another tensor for {name!r} than for {first!r}, which this model ties to one: no "
                "move of it leads there. Untie it: models.untie(model, other)."
            )


def _distance(a: Tensor, b: Tensor) -> float:
    pieces = zip(a.split(PIECE), b.split(PIECE), strict=True)
    return sum(float((y.to(x.device).double() - x.double()).square().sum()) for x, y in pieces)


def moved_subspace(model: nn.Module, other: nn.Module, dense: float = 0.2) -> Subspace:
    """The weights in which two models differ: their entries where fewer than ``dense`` of all differ, else the tensors
    that hold a difference. Memory: at most ``dense`` of all entries in int32.

    Raises:
        ModelError: Nothing differs, or as :func:`towards`.
    """
    own, goal = effective_weights(model), effective_weights(other)
    _refuse_tied(own, goal)
    most = dense * sum(tensor.numel() for tensor in own.held.values())
    tensors: list[str] = []
    support: dict[str, Tensor] = {}
    moved = 0
    for name in own:
        if name not in goal or tuple(goal[name].shape) != tuple(own[name].shape):
            raise ModelError(f"weight {name!r} has no counterpart of the same shape in the other model.")
        indices: list[Tensor] = []
        for index in _differing(own[name], goal[name]):
            moved += index.numel()
            indices.append(index)
            if moved >= most:
                break
        if indices:
            tensors.append(name)
        if moved < most and indices:
            support[name] = torch.cat(indices)
        elif moved >= most:  # from here on only names are looked for
            support.clear()
    if not tensors:
        raise ModelError("the two models have equal weights; there is no direction between them.")
    if moved < most:
        return Subspace.sparse(model, support, f"the {moved:,} entries that the tune changed")
    return Subspace(
        "glob", f"the {len(tensors)} tensors that the tune changed", {n: tuple(own[n].shape) for n in tensors}
    )


def _differing(one: Tensor, other: Tensor) -> Iterator[Tensor]:
    """Flat indices of the entries that differ, on the CPU, piece by piece; pieces without any are left out."""
    a, b = (whole(side).reshape(-1) for side in (one, other))
    kind = torch.int32 if a.numel() < 2**31 else torch.int64
    for number, (x, y) in enumerate(zip(a.split(PIECE), b.split(PIECE), strict=True)):
        index = (x != y.to(x.device)).nonzero().reshape(-1)
        if index.numel():
            yield index.add_(number * PIECE).to("cpu", kind)


@dataclass(frozen=True, eq=False)
class Stored:
    """A direction that was found, such as an attack: its coordinates are kept, RMS 1."""

    subspace: Subspace
    coordinates: Mapping[str, Tensor] = field(repr=False)
    identity: Mapping[str, Any]
    comparable: bool = True
    cuttable: bool = True

    @property
    def address(self) -> dict[str, Any]:
        return {"kind": "stored", **self.identity}

    def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "cpu") -> Tensor:
        return self.coordinates[name][start:stop].to(device, torch.float32)
