"""Which of many tasks a model has learned: one exact one-sided test per task, false discoveries controlled over all.

A task that is not discovered is not shown to be learned. That it is not learned is not shown either: it takes an
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from catchment.errors import InputError
from catchment.statistics import checks
from catchment.statistics.checks import Floats
from catchment.statistics.quantiles import binomial_tail

ENUMERATED = 13  # differences up to which all 2^n signs are tried
CHUNK = 1 << 22  # signs held at once


@dataclass(frozen=True)
class Discovery:
    """One task among all, with its p-value and whether it is discovered.

    ``bh`` and ``by`` are the smallest rates of false discoveries at which it is one: by Benjamini-Hochberg (independent
    or positively dependent tests) and by Benjamini-Yekutieli (any dependence).
    """

    p: float
    bh: float
    by: float
    discovered: bool


def chance_p_value(scores: ArrayLike, chance: float) -> float:
    """Exact one-sided binomial test that the accuracy is above guessing: ``P(X >= x)``, X ~ Binomial(n, chance).

    For a task whose gold answers are unbalanced take the share of the most frequent answer, when it is larger than
    chance: a model that always says it has learned nothing. Items must be independent: groups of items that hang
    together make the test reject too often.

    Args:
        scores: Shape (n,), each 0 or 1.
        chance: Probability of a right guess, in (0, 1).

    Raises:
        InputError: A score other than 0 and 1 (a generation score has no chance level: test it against the base), NaN,
            no items, or a chance outside (0, 1).

    >>> round(chance_p_value([1] * 8 + [0] * 2, chance=0.5), 4)
    0.0547
    """
    values = checks.scores(scores, "scores")
    if not checks.is_binary(values):
        raise InputError("scores are not all 0 or 1; expected right or wrong. Test graded scores against the base.")
    wrong = values.size - int(values.sum())
    return binomial_tail(wrong, values.size, 1 - checks.open_unit(chance, "chance"))


def improvement_p_value(
    base: ArrayLike, tuned: ArrayLike, *, groups: ArrayLike | None = None, draws: int = 9999, seed: int = 0
) -> float:
    """One-sided paired test that tuned scores above base on the mean, by random signs of the differences.

    Under the null hypothesis that base and tuned are exchangeable on each item (group), every sign of its difference is
    as likely: ``p = P(sum_i s_i d_i >= sum_i d_i)``. For 0/1 scores without groups this is the exact sign test of the
    flips (McNemar 1947): ``P(X >= gained)``, X ~ Binomial(gained + lost, 1/2). Otherwise all signs are tried for up to
    13 differences that are not 0; beyond, ``draws`` of them, and ``p = (1 + exceedances) / (1 + draws)``, which is
    never too small either.

    About these two models: a claim about a method needs seeds.

    Args:
        base, tuned: Shape (n,), scores in [0, 1], the same items in the same order.
        groups: Shape (n,), labels of items that hang together and change sign together.
        draws: Random signs; p is at least 1 / (1 + draws).
        seed: Of the signs.

    Raises:
        InputError: Empty, unequal lengths, NaN, scores outside [0, 1], or fewer than 99 draws.

    Cost: ``draws * n`` signs; 10 ms for 200 graded differences.

    >>> improvement_p_value([0, 0, 0, 0, 1], [1, 1, 1, 1, 1])
    0.0625
    """
    before, after = checks.scores(base, "base"), checks.scores(tuned, "tuned")
    checks.same_length(before, after)
    if draws < 99:
        raise InputError(f"draws is {draws}; expected at least 99 random signs, such as 9999.")
    difference = _summed(after - before, groups)
    difference = difference[difference != 0]
    if groups is None and checks.is_binary(before) and checks.is_binary(after):
        return binomial_tail(int((difference < 0).sum()), difference.size, 0.5)
    if difference.size <= ENUMERATED:
        return _exceeding(_all_signs(difference.size), difference) / 2**difference.size
    rng = np.random.default_rng(seed)
    rows = max(CHUNK // difference.size, 1)
    parts = [min(rows, draws - start) for start in range(0, draws, rows)]
    return (1 + sum(_exceeding(rng.integers(0, 2, (n, difference.size)), difference) for n in parts)) / (1 + draws)


def discoveries(p_values: Sequence[float], rate: float = 0.05, *, dependent: bool = False) -> tuple[Discovery, ...]:
    """The tasks whose null hypothesis is refused, with the expected share of false ones among them at most ``rate``.

    Args:
        p_values: One per task, in [0, 1]. All tasks that were tested, the failures included: leaving some out by
            looking at them voids the control.
        rate: False discovery rate.
        dependent: Decide by Benjamini-Yekutieli, valid under any dependence, in place of Benjamini-Hochberg.

    Raises:
        InputError: No p-values, one outside [0, 1] or NaN, or a rate outside (0, 1).

    Source: Benjamini & Hochberg 1995, JRSS B 57:289-300; Benjamini & Yekutieli 2001, Annals of Statistics 29:1165-1188;
    computed by ``scipy.stats.false_discovery_control``.

    >>> [task.discovered for task in discoveries([0.001, 0.02, 0.03, 0.8])]
    [True, True, True, False]
    """
    from scipy.stats import false_discovery_control

    values = checks.scores(p_values, "p_values")
    checks.open_unit(rate, "rate")
    bh, by = (false_discovery_control(values, method=method) for method in ("bh", "by"))
    decided = by if dependent else bh
    return tuple(
        Discovery(float(p), float(h), float(y), bool(d <= rate))
        for p, h, y, d in zip(values, bh, by, decided, strict=True)
    )


def _summed(difference: Floats, groups: ArrayLike | None) -> Floats:
    if groups is None:
        return difference
    labels = np.asarray(groups)
    if labels.shape != difference.shape:
        raise InputError(f"groups has shape {labels.shape}; expected one label per item, {difference.shape}.")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, weights=difference).astype(np.float64)


def _all_signs(size: int) -> np.ndarray:
    """All rows of ``size`` bits: (2^size, size)."""
    return np.arange(2**size)[:, None] >> np.arange(size) & 1


def _exceeding(bits: np.ndarray, difference: Floats) -> int:
    """Rows of signs (1: as it is, 0: turned) whose sum is not below that of the differences, up to rounding."""
    below = (1 - bits) @ difference  # the sum falls by twice this
    return int((below <= 1e-12 * np.abs(difference).sum()).sum())
