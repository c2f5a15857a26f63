"""The self-check of every scan: that it moved what it says, where it says, and put it back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from catchment.landscape.directions import gaussian
from catchment.landscape.evaluator import Evaluator
from catchment.models import weights_hash
from catchment.records import Row, SelfCheck

REALISED = 0.02
"""How far from 1 the realised size of the largest move may be before a scan is not trusted."""
CENTRE = 1e-9
FEW = 4
"""Items per task where there is no time for all."""


def check(
    evaluator: Evaluator,
    scales: Sequence[float],
    hash_before: str,
    *,
    plane_cosine: float | None = None,
    items: int = 16,
    stop: Callable[[float], bool] | None = None,
) -> SelfCheck:
    """Compare the score at displacement 0 with the model's own, the realised move with the intended one (at the
    smallest and the largest scale), and the weights' hash after with the one before. Puts the model back.

    Cost: two evaluations of up to ``items`` items per task, few displacements, one hash of the weights.

    Args:
        items: Per task, to compare scores on.
        stop: Whether so many more seconds are too many. With it one item of each task is looked at first, which tells
            what the others take, and then all of them, few or no others.
    """
    mover = evaluator.mover
    notes: list[str] = []
    failed = False
    centre = _centre(evaluator, items, stop)
    if centre > CENTRE:
        failed = True
        notes.append(f"scores at displacement 0 differ from the model's own by up to {centre:.2g}")
    direction = gaussian(mover.subspace, 0, 0)
    moves = []
    for scale in sorted({min(scales), max(scales)}) if scales else []:
        with mover.at((direction, scale)):
            moves.append((scale, *mover.realised(direction, scale)))
    size, off = (max((row[i] for row in moves), key=lambda v: abs(v - (i == 1)), default=float(i == 1)) for i in (1, 2))
    for scale, realised, off_axis in moves:
        if abs(realised - 1) > REALISED or off_axis > 10 * REALISED:
            failed |= scale == max(scales)
            notes.append(
                f"at scale {scale:.3g} rounding leaves a move of {realised:.3f} times the intended size, "
                f"{off_axis:.0%} of it off its axis: the weights' type is too coarse there"
            )
    if plane_cosine is not None and abs(plane_cosine) > max(REALISED, 4 / math.sqrt(mover.subspace.size)):
        failed = True
        notes.append(f"the axes of the plane have cosine {plane_cosine:.3f}")
    evaluator.home()
    after = weights_hash(evaluator.engine.model)
    if after != hash_before:
        failed = True
        notes.append("the weights are not what they were before the scan")
    return SelfCheck(
        centre, size, off, plane_cosine, tied(evaluator.engine.model), hash_before, after, mover.mode, not failed,
        tuple(notes),
    )  # fmt: skip


def _centre(evaluator: Evaluator, items: int, stop: Callable[[float], bool] | None) -> float:
    """Largest difference of a score or log-probability between the model untouched and at displacement 0, on the same
    items in the same batches."""
    if stop is None:
        return _difference(evaluator, {name: ground.items[:items] for name, ground in evaluator.grounds.items()})
    began = time.monotonic()
    worst = _difference(evaluator, {name: ground.items[:1] for name, ground in evaluator.grounds.items()})
    each = time.monotonic() - began
    most = next((n for n in (items, FEW) if not stop(each * (n - 1))), 1)
    if most > 1:
        wanted = {name: ground.items[1:most] for name, ground in evaluator.grounds.items()}
        worst = max(worst, _difference(evaluator, {name: ids for name, ids in wanted.items() if ids}))
    return worst


def _difference(evaluator: Evaluator, wanted: Mapping[str, Sequence[str]]) -> float:
    worst = 0.0
    evaluator.mover.restore()
    own = {name: evaluator.fresh(name, ids) for name, ids in wanted.items()}
    direction = gaussian(evaluator.mover.subspace, 0, 0)
    with evaluator.mover.at((direction, 0.0)):
        there = {name: evaluator.fresh(name, ids) for name, ids in wanted.items()}
    for name in wanted:
        for item, row in own[name].items():
            worst = max(worst, _apart(row, there[name][item]))
    return worst


def _apart(row: Row, other: Row) -> float:
    if row.flags != other.flags:  # one of the two is not finite, or a tie was broken
        return 1.0
    pairs = [(row.score, other.score), *zip(row.logprobs, other.logprobs, strict=True)]
    pairs += [] if row.companion is None or other.companion is None else [(row.companion, other.companion)]
    return max(abs(a - b) for a, b in pairs)


def tied(model: nn.Module) -> int:
    """Names of parameters that share a tensor with an earlier name."""
    return sum(1 for _ in model.named_parameters(remove_duplicate=False)) - sum(1 for _ in model.named_parameters())
