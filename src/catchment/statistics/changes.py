"""How far tuning moves a score: chance-adjusted scores, retention and sensitivity over prompt formats, ratio of change.

A mean of ratios is governed by its smallest bases: in the scores released with arXiv 2408.06663 one cell of 32, whose
base is 0.019, moves the mean from -0.79 to -0.61. So the ratio of change comes with the statistics that do not depend
on one cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from catchment.errors import InputError
from catchment.statistics import checks
from catchment.statistics.checks import Floats


@overload
def chance_adjusted(score: float, chance: float) -> float: ...
@overload
def chance_adjusted(score: ArrayLike, chance: float) -> float | Floats: ...
def chance_adjusted(score: ArrayLike, chance: float) -> float | Floats:
    """``(P - c) / (1 - c)``: 0 at the score of guessing, 1 at a perfect score, negative below guessing.

    Args:
        score: P, one score or an array of them, at most 1.
        chance: c, the score of guessing, in [0, 1).

    Returns:
        A float for one score, otherwise an array of the same shape. NaN stays NaN.

    Raises:
        InputError: A chance outside [0, 1), a score above 1.

    >>> chance_adjusted(0.625, chance=0.25)
    0.5
    """
    _chance(chance)
    values = np.asarray(score, dtype=np.float64)
    if (values > 1).any():
        raise InputError(f"a score is {np.nanmax(values):g}; expected at most 1. Rescale the scorer.")
    adjusted = (values - chance) / (1 - chance)
    return float(adjusted) if adjusted.ndim == 0 else adjusted


def retention(other: float, default: float, chance: float) -> float | None:
    """``(P_other - c) / (P_default - c)``: the share of what is above chance that survives another prompt format.

    1: nothing is lost; 0: the other format scores at chance. ``None`` when the default format itself is not above
    chance, because then there is nothing to retain. The ratio is unstable when the default is close to chance: read
    the two scores beside it.

    Args:
        other, default: Scores of one model in the two formats.
        chance: c, the score of guessing, in [0, 1).

    Raises:
        InputError: A chance outside [0, 1), a score that is not finite.

    >>> retention(0.5, 0.75, chance=0.25)
    0.5
    >>> retention(0.5, 0.25, chance=0.25) is None
    True
    """
    _chance(chance)
    above, whole = (checks.finite([other, default], "scores") - chance).tolist()
    return above / whole if whole > 0 else None


def sensitivity(scores: ArrayLike) -> float:
    """``max_f P_f - min_f P_f``: the range of one model's score over prompt formats.

    The range of m noisy scores is above 0 even when the format has no effect: compare with the noise floor.

    Args:
        scores: Shape (m,), one score per format, m >= 2.

    Raises:
        InputError: Fewer than two formats, NaN or infinity.

    >>> sensitivity([0.5, 0.75, 0.625])
    0.25
    """
    values = checks.finite(scores, "scores")
    if values.size < 2:
        raise InputError("1 format; expected the scores of at least 2 formats, because one has no range.")
    return float(values.max() - values.min())


@dataclass(frozen=True)
class RatioOfChange:
    """Mean ratio of change over n cells, and the statistics to read beside it. Changes are tuned - base.

    A ratio is not defined where the base is 0. Such cells are never left out: they are listed in ``undefined``, and
    ``mean``, ``sd``, ``t``, ``median``, ``largest`` and ``without_largest`` are then ``None``.

    Attributes:
        n: Cells.
        mean: Mean of (tuned - base) / base.
        sd: Standard deviation of the ratios (n - 1); ``None`` for one cell.
        t: ``mean / (sd / sqrt(n))``; ``None`` where sd is 0 or ``None``. Cells share models and data, so this is a
            description and no test.
        median: Of the ratios.
        pooled: Sum of the changes / sum of the bases; ``None`` when all bases are 0.
        log_ratio: Mean of log(tuned / base); ``None`` when any score is 0.
        raw: Mean change, in the unit of the score.
        near_zero: Indices of the cells whose base is below the bound.
        undefined: Indices of the cells whose base is 0.
        largest: Index of the cell whose removal moves the mean most; ``None`` for one cell.
        without_largest: The mean without that cell.
    """

    n: int
    mean: float | None
    sd: float | None
    t: float | None
    median: float | None
    pooled: float | None
    log_ratio: float | None
    raw: float
    near_zero: tuple[int, ...]
    undefined: tuple[int, ...]
    largest: int | None
    without_largest: float | None


def ratio_of_change(base: ArrayLike, tuned: ArrayLike, *, near_zero: float = 0.05) -> RatioOfChange:
    """Mean ratio of change ``1/n sum (tuned - base) / base`` with median, pooled and logarithmic ratio.

    Args:
        base, tuned: Shape (n,), scores of at least 0 before and after tuning, one per cell, in the same order.
        near_zero: Bases below this are listed: their ratios are large whatever the change means.

    Raises:
        InputError: Empty, unequal lengths, NaN, a negative score, or a bound that is not positive.

    Source: Sun & Dredze 2024, arXiv 2408.06663, section 2 (mean ratio of change).

    >>> change = ratio_of_change([0.5, 0.5, 0.01], [0.4, 0.6, 0.06])
    >>> round(change.mean, 3), round(change.median, 3), round(change.pooled, 3), change.near_zero
    (1.667, 0.2, 0.05, (2,))
    >>> change.largest, round(change.without_largest, 12)
    (2, 0.0)
    """
    before, after = _nonnegative(base, "base"), _nonnegative(tuned, "tuned")
    checks.same_length(before, after)
    if not near_zero > 0:
        raise InputError(f"near_zero is {near_zero}; expected a positive score such as 0.05.")
    zero = _indices(before == 0)
    ratios = (after - before) / before if not zero else None
    mean, sd, median = _moments(ratios)
    largest, rest = _most_influential(ratios)
    return RatioOfChange(
        n=before.size,
        mean=mean,
        sd=sd,
        t=mean / (sd / math.sqrt(before.size)) if mean is not None and sd else None,
        median=median,
        pooled=float((after - before).sum() / before.sum()) if before.any() else None,
        log_ratio=_log_ratio(before, after),
        raw=float((after - before).mean()),
        near_zero=_indices(before < near_zero),
        undefined=zero,
        largest=largest,
        without_largest=rest,
    )


def _chance(chance: float) -> None:
    if not 0 <= chance < 1:
        raise InputError(f"chance is {chance}; expected the score of guessing, at least 0 and below 1.")


def _nonnegative(values: ArrayLike, name: str) -> Floats:
    array = checks.finite(values, name)
    if (array < 0).any():
        place = int(np.argmax(array < 0))
        raise InputError(f"{name}[{place}] is {array[place]:g}; expected a score of at least 0, as a ratio needs.")
    return array


def _indices(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _moments(ratios: Floats | None) -> tuple[float | None, float | None, float | None]:
    """Mean, standard deviation and median."""
    if ratios is None:
        return None, None, None
    sd = float(ratios.std(ddof=1)) if ratios.size > 1 else None
    return float(ratios.mean()), sd, float(np.median(ratios))


def _most_influential(ratios: Floats | None) -> tuple[int | None, float | None]:
    """The ratio farthest from the mean, which is the one whose removal moves the mean most."""
    if ratios is None or ratios.size < 2:
        return None, None
    largest = int(np.abs(ratios - ratios.mean()).argmax())
    return largest, float(np.delete(ratios, largest).mean())


def _log_ratio(base: Floats, tuned: Floats) -> float | None:
    if not (base.all() and tuned.all()):
        return None
    return float(np.log(tuned / base).mean())
