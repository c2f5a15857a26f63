"""Several increments of one base: their weighted sum, and how far their supports and moves overlap.

Everything works on sorted indices; no tensor of the model's size is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from catchment.errors import InputError, ModelError
from catchment.models.identity import weights_hash
from catchment.models.increment_codec import Entry, Piece
from catchment.models.increments import Increment, write_increment


@dataclass(frozen=True)
class PairOverlap:
    """Two increments side by side.

    Attributes:
        first: Position of the one in the list that was given.
        second: Position of the other.
        shared: Entries that both move.
        jaccard: ``shared`` by the entries that at least one moves.
        expected: Shared entries if the supports were drawn independently and uniformly within each tensor, with
            the counts that they have: ``sum_t k_a(t) k_b(t) / n(t)``.
        same_sign: Of the shared entries, the share in which both moves have one sign (a move of zero agrees with
            none); ``None`` without shared entries.
        cosine: Of the two moves ``value - base`` as vectors in weight space; ``None`` when one of them is zero.
    """

    first: int
    second: int
    shared: int
    jaccard: float
    expected: float
    same_sign: float | None
    cosine: float | None


@dataclass(frozen=True)
class Overlap:
    """How increments of one base overlap, pair by pair.

    Attributes:
        files: Names of the increments' files, in the order given.
        k: Entries of each.
        pairs: Every pair ``first < second``.
    """

    files: tuple[str, ...]
    k: tuple[int, ...]
    pairs: tuple[PairOverlap, ...]

    def __str__(self) -> str:
        lines = [f"{i}: {file}, k = {k:,}" for i, (file, k) in enumerate(zip(self.files, self.k, strict=True))]
        for p in self.pairs:
            sign = "-" if p.same_sign is None else f"{p.same_sign:.1%}"
            cosine = "-" if p.cosine is None else f"{p.cosine:.3f}"
            lines.append(
                f"{p.first} and {p.second}: {p.shared:,} shared ({p.expected:,.1f} expected by chance), "
                f"Jaccard {p.jaccard:.4f}, same sign {sign}, cosine {cosine}"
            )
        return "\n".join(lines)


def add_increments(
    increments: Sequence[Increment],
    base_model: nn.Module,
    path: str | Path,
    weights: Sequence[float] | None = None,
    *,
    base_hash: str | None = None,
) -> Increment:
    """Write the weighted sum of the moves as one increment on the union of the supports::

        value = cast(base + sum_i w_i (value_i - base))

    in float32 (float64 for float64 weights), ``value_i = base`` outside the support of ``i``. Where one increment of
    weight 1 stands alone its own value is taken, so that increments on disjoint supports add up bit for bit.

    Cost: ``O(sum of k)``, and a hash of the base unless ``base_hash`` is given. The base is not altered.

    Args:
        weights: One per increment; ``None`` is all 1.
        base_hash: The base's weights hash, when it is already known.

    Returns:
        The sum, as read back from the file; its recipe holds the recipes of the parts.

    Raises:
        InputError: No increment, or weights that do not fit or are not finite.
        ModelError: Increments of different bases, of another base than ``base_model``, applied to it at the moment,
            or different in shape or dtype.
        StoreError: The file cannot be written.
    """
    factors = [1.0] * len(increments) if weights is None else [float(w) for w in weights]
    if len(factors) != len(increments) or not all(map(math.isfinite, factors)):
        raise InputError(f"weights {factors} do not fit {len(increments)} increments; give one finite number for each.")
    flats = _together(increments, base_model, base_hash)
    parts: dict[str, list[tuple[float, Increment, Piece]]] = {}
    for factor, increment in zip(factors, increments, strict=True):
        for piece in increment.pieces:
            parts.setdefault(piece.name, []).append((factor, increment, piece))
    entries: list[Entry] = []
    for name, flat in flats.items():
        index, values = _summed(flat, parts[name])
        entries.append((name, parts[name][0][2].shape, index, values))
    told = [
        {"file": one.path.name, "weight": factor, "k": one.k, "recipe": one.recipe}
        for factor, one in zip(factors, increments, strict=True)
    ]
    recipe: dict[str, Any] = {"method": "sum of increments", "parts": told}
    return write_increment(path, entries, base_hash=increments[0].base_hash, recipe=recipe)


def _summed(flat: Tensor, parts: Sequence[tuple[float, Increment, Piece]]) -> tuple[Tensor, Tensor]:
    """Union of the parts' indices in one tensor, and the values there."""
    supports = [increment.index(piece).numpy() for _, increment, piece in parts]
    union = np.unique(np.concatenate(supports))
    index = torch.from_numpy(union)
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    base = flat[index.to(flat.device)].cpu().to(wide)
    total, movers = torch.zeros_like(base), torch.zeros(len(union), dtype=torch.int64)
    places = [torch.from_numpy(np.searchsorted(union, support)) for support in supports]
    for at, (factor, increment, piece) in zip(places, parts, strict=True):
        total[at] += factor * (increment.values[piece.name].to(wide) - base[at])
        movers[at] += 1
    values = (base + total).to(flat.dtype)
    for at, (factor, increment, piece) in zip(places, parts, strict=True):
        alone = movers[at] == 1
        if factor == 1:
            values[at[alone]] = increment.values[piece.name][alone]
    return index, values


def overlap(increments: Sequence[Increment], base_model: nn.Module, *, base_hash: str | None = None) -> Overlap:
    """How far supports and moves of increments overlap, for every pair.

    Cost: ``O(sum of k)`` per pair in the worst case, and a hash of the base unless ``base_hash`` is given.

    Raises:
        InputError: Fewer than two increments.
        ModelError: As :func:`add_increments`.
    """
    if len(increments) < 2:
        raise InputError(f"an overlap needs at least two increments, not {len(increments)}.")
    flats = _together(increments, base_model, base_hash)
    moves = [_moves(increment, flats) for increment in increments]
    norms = [math.sqrt(sum(float(move @ move) for _, move in one.values())) for one in moves]
    pairs = tuple(_pair(i, j, increments, moves, norms) for i, j in combinations(range(len(increments)), 2))
    return Overlap(tuple(one.path.name for one in increments), tuple(one.k for one in increments), pairs)


_Moves = Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


def _moves(increment: Increment, flats: Mapping[str, Tensor]) -> _Moves:
    """Indices and ``value - base`` in float64, by tensor."""
    moves = {}
    for piece in increment.pieces:
        flat, index = flats[piece.name], increment.index(piece)
        move = increment.values[piece.name].double() - flat[index.to(flat.device)].cpu().double()
        moves[piece.name] = (index.numpy(), move.numpy())
    return moves


def _pair(
    i: int, j: int, increments: Sequence[Increment], moves: Sequence[_Moves], norms: Sequence[float]
) -> PairOverlap:
    sizes = {piece.name: piece.numel for piece in increments[i].pieces}
    shared, agree, expected, dot = 0, 0, 0.0, 0.0
    for name in (name for name in moves[i] if name in moves[j]):
        (ours, move), (theirs, other) = moves[i][name], moves[j][name]
        _, at, there = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        shared += at.size
        agree += int(np.count_nonzero(np.sign(move[at]) * np.sign(other[there]) > 0))
        dot += float(move[at] @ other[there])
        expected += ours.size * theirs.size / sizes[name]
    either = increments[i].k + increments[j].k - shared
    length = norms[i] * norms[j]
    cosine = dot / length if length else None
    return PairOverlap(i, j, shared, shared / either, expected, agree / shared if shared else None, cosine)


def _together(increments: Sequence[Increment], base_model: nn.Module, base_hash: str | None) -> dict[str, Tensor]:
    """The base's flat tensors that the increments move, by name, after checking that all of them fit."""
    if not increments:
        raise InputError("no increments were given; give at least one.")
    first = increments[0]
    for other in increments[1:]:
        if other.base_hash != first.base_hash:
            raise ModelError(
                f"{other.path} was made for a base with weights {other.base_hash[:12]}…, but {first.path} for "
                f"{first.base_hash[:12]}…; only increments of one base belong together."
            )
    refuse_applied(increments, base_model)
    flats = {piece.name: flat for increment in increments for piece, flat in increment.flats(base_model)}
    first.verify(base_hash or weights_hash(base_model))
    return flats


def refuse_applied(increments: Sequence[Increment], base_model: nn.Module) -> None:
    """Raise a :class:`ModelError` when one of the increments stands in the model that should be the base."""
    for increment in increments:
        if increment.is_applied(base_model):
            raise ModelError(f"{increment.path} is applied to this model, which is then not its base; revert it first.")
