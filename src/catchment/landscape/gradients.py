"""Two claims about the gradients of pre-trained models, measured: quasi-sparsity and oscillation (arXiv 2312.11875).

Quasi-sparsity: "1 % of the components account for 99 % of the gradient norm". A share of the L2 norm is the root of a
share of its square, and any vector has some: both are given, next to a fresh model of the same architecture and to
i.i.d. Gaussian entries. Oscillation: how much the loss goes up and down along a line through the weights.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor

from catchment.errors import InputError, ModelError
from catchment.landscape.losses import Batch, accumulate_gradient, mean_loss
from catchment.models import Family, family_of, locate
from catchment.records import Oscillation, Share

TOPS = (0.001, 0.01, 0.05, 0.1)
_CHUNK = 1 << 22
_HALF = 1 << 16  # float32 magnitudes are ranked by their bits, upper half and then lower half


def entries(top: float, size: int) -> int:
    """How many entries the ``top`` share of ``size`` is: min(int(top * size) + 1, size), as in SIFT.

    >>> entries(0.01, 1000), entries(0.01, 3), entries(1.0, 3)
    (11, 1, 3)
    """
    return min(int(top * size) + 1, size)


def gaussian_share(top: float) -> tuple[float, float]:
    """What the largest ``top`` share of i.i.d. Gaussian entries holds of the L2 norm, and of its square.

        squared = 2 t phi(t) + top,  t = Phi^-1(1 - top/2);    L2 = sqrt(squared)

    Raises:
        InputError: ``top`` outside (0, 1].

    >>> [round(value, 3) for value in gaussian_share(0.01)]
    [0.291, 0.084]
    """
    _check_tops((top,))
    t = NormalDist().inv_cdf(1 - top / 2)
    squared = 2 * t * NormalDist().pdf(t) + top
    return math.sqrt(squared), squared


def _check_tops(tops: Sequence[float]) -> None:
    if not tops or not all(0 < top <= 1 for top in tops) or list(tops) != sorted(set(tops)):
        raise InputError(f"tops {tuple(tops)}: expected increasing shares in (0, 1], e.g. {TOPS}.")


def _codes(tensor: Tensor) -> Iterator[Tensor]:
    """Magnitudes as integers of the same order (the bits of float32), in pieces so that memory stays flat."""
    for piece in tensor.detach().reshape(-1).split(_CHUNK):
        yield piece.abs().to(torch.float32).view(torch.int32)


def _thresholds(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[int, int]]:
    """For each count: the code of the entry of that rank over all tensors, and how many entries with exactly this code
    are still among the largest. Two histograms of the codes: exact, and no sort."""

    def histogram(select: Callable[[Tensor], Tensor]) -> Tensor:
        total = torch.zeros(_HALF, dtype=torch.long)
        for tensor in tensors:
            for codes in _codes(tensor):
                total += torch.bincount(select(codes).long(), minlength=_HALF).cpu()
        return total

    def place(counted: Tensor, count: int) -> tuple[int, int]:
        """The bin that holds the entry of rank ``count`` from above, and its rank within the bin."""
        above = counted.flip(0).cumsum(0)
        at = int(torch.searchsorted(above, count))
        return _HALF - 1 - at, count - (int(above[at - 1]) if at else 0)

    upper = histogram(lambda codes: codes >> 16)
    places = [place(upper, count) for count in counts]
    lower = {high: histogram(lambda c, h=high: c[c >> 16 == h] & (_HALF - 1)) for high, _ in places}  # type: ignore[misc]
    thresholds = []
    for high, rank in places:
        low, left = place(lower[high], rank)
        thresholds.append((high * _HALF + low, left))
    return thresholds


def rank_classes(tensors: Sequence[Tensor], tops: Sequence[float]) -> list[Tensor]:
    """Which entries are among the largest magnitudes of all tensors together: for each tensor a flat uint8 tensor with
    the number of the smallest of ``tops`` (increasing) that an entry belongs to, ``len(tops)`` for none.

    Exactly ``entries(top, size)`` belong to each; ties go to those that come first. Magnitudes are compared in float32.
    """
    limits = _thresholds(tensors, [entries(top, sum(t.numel() for t in tensors)) for top in tops])
    seen = [0] * len(tops)
    classes = []
    for tensor in tensors:
        pieces = []
        for codes in _codes(tensor):
            piece = torch.full_like(codes, len(tops), dtype=torch.uint8)
            for number in range(len(tops) - 1, -1, -1):
                limit, quota = limits[number]
                piece[codes > limit] = number
                ties = (codes == limit).nonzero()[: quota - seen[number], 0]
                piece[ties] = number
                seen[number] += len(ties)
            pieces.append(piece)
        classes.append(torch.cat(pieces))
    return classes


def energies(tensor: Tensor, classes: Tensor, kinds: int) -> Tensor:
    """Sum of squares of the entries of each class, float64, shape (kinds,)."""
    total = torch.zeros(kinds, dtype=torch.float64)
    flat = tensor.detach().reshape(-1)
    for piece, part in zip(flat.split(_CHUNK), classes.split(_CHUNK), strict=True):
        total += torch.bincount(part.long(), weights=piece.double().square(), minlength=kinds).cpu()
    return total


def _shares(energy: Tensor, name: str) -> list[float]:
    """Cumulative shares of the square; 0 where the gradient is zero."""
    total = float(energy.sum())
    if not math.isfinite(total):
        raise ModelError(f"the gradient of {name!r} is not finite; use bfloat16 or float32 instead of float16.")
    return [float(part) / total if total else 0.0 for part in energy[:-1].cumsum(0)]


def quasi_sparsity(
    model: Any,
    weights: Mapping[str, Tensor],
    batches_a: Sequence[Batch],
    batches_b: Sequence[Batch],
    tops: Sequence[float] = TOPS,
    family: Family | None = None,
) -> tuple[Share, ...]:
    """How much of the gradient of ``batches_b`` stands in its largest entries.

    Per tensor, and for all together (``"all"``, one threshold for all): the share of the L2 norm and of its square in
    the ``top`` share of the entries by magnitude. Fresh: the entries were chosen on this very gradient. Static: they
    were chosen on the gradient of ``batches_a``, as a method must that fixes its indices. Give batches without a common
    item; static shares of the same batches are fresh ones. Shares of a zero gradient are 0.

    Cost: two forward and backward passes, and five reads of the gradient. Memory: one gradient in float32, three
    bytes per entry for the classes, and one gradient more while a batch is added.

    Args:
        tops: Increasing shares in (0, 1].
        family: Names layers and kinds; the model's own by default.

    Returns:
        For each tensor, then for all, one share per top.

    Raises:
        InputError: bad ``tops``, or see :func:`~catchment.landscape.losses.accumulate_gradient`.
        ModelError: loss or gradient is not finite.

    Source: arXiv 2312.11875.
    """
    _check_tops(tops)
    family = family or family_of(model)
    kinds = len(tops) + 1
    _, gradient = accumulate_gradient(model, weights, batches_a)
    each = {name: rank_classes([g], tops)[0] for name, g in gradient.items()}
    whole = dict(zip(gradient, rank_classes(list(gradient.values()), tops), strict=True))
    del gradient
    _, gradient = accumulate_gradient(model, weights, batches_b)
    rows: list[Share] = []
    static = fresh = torch.zeros(kinds, dtype=torch.float64)
    for (name, g), now in zip(gradient.items(), rank_classes(list(gradient.values()), tops), strict=True):
        static = static + energies(g, whole[name], kinds)
        fresh = fresh + energies(g, now, kinds)
        own = energies(g, rank_classes([g], tops)[0], kinds)
        rows += _rows(name, locate(name, family), g.numel(), tops, own, energies(g, each[name], kinds))
    size = sum(g.numel() for g in gradient.values())
    return (*rows, *_rows("all", (None, "all"), size, tops, fresh, static))


def _rows(
    name: str, place: tuple[int | None, str], size: int, tops: Sequence[float], fresh: Tensor, static: Tensor
) -> list[Share]:
    layer, kind = place
    return [
        Share(name, layer, kind, size, top, math.sqrt(now), now, math.sqrt(then), then)
        for top, now, then in zip(tops, _shares(fresh, name), _shares(static, name), strict=True)
    ]


def random_init(model: Any, seed: int = 0) -> Any:
    """The same architecture as it is before training: freshly initialised from ``seed`` by its own rules, in the dtype
    and on the device of ``model``, in evaluation mode. An adapter is left out. The random state is restored.

    Memory: one model, in float32 while it is made.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    dtypes = [p.dtype for p in base.parameters() if p.is_floating_point()]
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU: other generators are not touched
        with torch.device("cpu"):
            fresh = type(base)(copy.deepcopy(base.config))
    finally:
        torch.set_rng_state(state)
    return fresh.to(device=next(base.parameters()).device, dtype=dtypes[0]).eval()


def oscillation(
    model: Any, batches: Sequence[Batch], at: Callable[[float], AbstractContextManager[Any]], scales: Sequence[float]
) -> tuple[float, ...]:
    """Mean loss (nats per token) at each scale of one direction. Cost: one forward pass over the batches per scale.

    Args:
        at: ``at(scale)`` is a context in which the model stands displaced by that scale.
    """
    losses = []
    for scale in scales:
        with at(scale):
            losses.append(mean_loss(model, batches))
    return tuple(losses)


def summarise(
    model: Literal["pretrained", "random"],
    direction: Literal["gaussian", "gradient"],
    scales: Sequence[float],
    losses: Sequence[Sequence[float]],
    centre: float,
) -> Oscillation:
    """Amplitude and rise of the losses along directions, ``losses[d][i]`` at ``scales[i]``.

        amplitude = mean |L(s[i-1]) - 2 L(s[i]) + L(s[i+1])|
        rise      = mean of L at the ends / L(0) - 1

    in nats per token, over inner scales and directions. On unequal steps the second difference is twice the distance
    from the straight line between the neighbours, which is the same on equal ones. A smooth parabola a s^2 has the
    amplitude 2 a h^2 at steps of h: compare amplitudes on the same scales only. A scale of 0 is the centre and no end.

    Raises:
        InputError: fewer than 3 increasing scales, ragged losses, or a centre that is not positive.
    """
    n = len(scales)
    if n < 3 or any(b <= a for a, b in itertools.pairwise(scales)):
        raise InputError(f"scales {tuple(scales)}: expected at least 3 increasing numbers.")
    if not losses or any(len(row) != n for row in losses):
        raise InputError(f"losses of lengths {[len(row) for row in losses]}: expected {n} for every direction.")
    if not centre > 0:
        raise InputError(f"a loss of {centre} at the centre; expected a positive one, because the rise is relative.")
    bends = []
    for row in losses:
        for i in range(1, n - 1):
            share = (scales[i] - scales[i - 1]) / (scales[i + 1] - scales[i - 1])
            bends.append(2 * abs((1 - share) * row[i - 1] + share * row[i + 1] - row[i]))
    ends = [row[i] for row in losses for i in (0, n - 1) if scales[i] != 0]
    return Oscillation(
        model=model,
        direction=direction,
        scales=tuple(scales),
        losses=tuple(tuple(row) for row in losses),
        centre=centre,
        amplitude=math.fsum(bends) / len(bends),
        rise=math.fsum(ends) / len(ends) / centre - 1,
    )
