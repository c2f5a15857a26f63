"""Where a curve over training stops changing: a line in log tokens that turns flat, and whether the data show it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from catchment.errors import InputError
from catchment.records import Interval
from catchment.statistics import checks
from catchment.statistics.checks import Floats
from catchment.statistics.quantiles import normal_tail, student_quantile

FEWEST = 5  # checkpoints: three parameters and two left for the noise
BREAKS = 400  # candidates in all, at least 4 between neighbours
DRAWS = 4000  # of the null distributions
REDRAWN = 1000  # samples of rows
ROUNDING = 1e-10  # of the size of the curve: below this a residual is none

Shape = Literal["plateau", "bend", "straight line", "constant", "too few checkpoints"]


@dataclass(frozen=True)
class Plateau:
    """What a curve shows about a plateau.

    Attributes:
        shape: "plateau"; "bend" where the curve still changes after its break; "straight line" or "constant" where no
            break can be told from that; "too few checkpoints".
        reason: In words and numbers.
        tokens: Break with its interval, in tokens; ``None`` unless the shape is "plateau" or "bend".
        height: Score after the break; ``None`` unless the shape is "plateau".
        before: Slope before the break, in score per doubling of the tokens.
        after: Slope after the break with its interval, the break taken as known; same unit.
        p_line, p_constant: p-values of "straight line" and "constant" against a break.
        checkpoints: How many there are.
    """

    shape: Shape
    reason: str
    tokens: Interval | None
    height: float | None
    before: float | None
    after: Interval | None
    p_line: float | None
    p_constant: float | None
    checkpoints: int


@dataclass(frozen=True, eq=False)
class _Design:
    """What depends on the checkpoints only. Rows of ``stick`` and ``hinge`` have length 1.

    Attributes:
        x: Log tokens, (m,).
        breaks: Candidates from the second checkpoint to just before the last, (C,).
        stick: min(x, c) without its mean, (C, m).
        line: Orthonormal basis of straight lines, (m, 2).
        hinge: max(x - c, 0) without its part along straight lines, (C', m).
        null_line, null_constant: Sorted statistics of normal noise, (draws,).
    """

    x: Floats
    breaks: Floats
    stick: Floats
    line: Floats
    hinge: Floats
    null_line: Floats
    null_constant: Floats


# long: what is claimed, and what it rests on, is said in one place
def plateau(tokens: ArrayLike, scores: ArrayLike, *, level: float = 0.95, family: int = 1, seed: int = 0) -> Plateau:
    """Fit ``score = a + b min(log tokens, c)`` by least squares and say whether a plateau is shown.

    The break c lies between the second and the last checkpoint; before the second, c and b are not told apart. A break
    is claimed when two tests refuse, both exact for independent normal noise of equal size at the checkpoints, with
    error e = (1 - level)/family:

    - "constant", by the largest correlation of the curve with ``min(log tokens, c)`` over all c;
    - "straight line", by the largest t statistic, against the direction of the line, of ``max(log tokens - c, 0)``
      beside a straight line, over all c. So a straight line is called a plateau with probability e at most.

    It is then a "plateau" when at least two checkpoints lie after the break and the slope there, in the fit of two
    lines, is not distinguishable from 0, and a "bend" otherwise.

    The interval of the break is ``{c : SSE(c) <= min SSE (1 + F / (m - 3))}``, F the quantile of F with 1 and m - 3
    degrees of freedom, and it reaches to the first or last checkpoint when it reaches the first or last candidate. In
    simulations with 5 to 20 checkpoints it covered 93 to 95% at level 95%, where the bootstrap of residuals covered 78
    to 95%. Where the noise is such that a break is shown in less than half of the curves, those shown are chosen by
    their noise, and among them it covered 83 to 92%.

    It knows the noise of checkpoints and not that seeds may break at different times. The bootstrap of rows
    (percentiles widened for few rows, Hesterberg 2015) knows the latter, and of the former only what the rows do not
    share. So with rows the interval reaches over both, which covered at least 91% and mostly 95 to 99%.

    Args:
        tokens: Shape (m,), rising, above 0.
        scores: Shape (m,), or (rows, m): one curve per seed or per item, of which the mean is fitted.
        level: Of the interval; 1 - level is the error of the tests.
        family: How many curves are read together (Bonferroni).
        seed: Of the simulations.

    Raises:
        InputError: Tokens that do not rise from above 0, shapes that do not match, NaN or infinity.

    Cost: 15 ms for the first curve on 20 checkpoints, 0.5 ms for others; 5 ms with rows.

    Source: Hudson 1966, JASA 61:1097-1129 (joined lines, the set of likely breaks).

    >>> tokens = 1e9 * 2.0 ** np.arange(10)
    >>> curve = 0.25 + 0.05 * np.minimum(np.arange(10), 6) + np.random.default_rng(1).normal(0, 0.01, 10)
    >>> result = plateau(tokens, curve)
    >>> result.shape, [round(end / 1e9) for end in (result.tokens.low, result.tokens.estimate, result.tokens.high)]
    ('plateau', [52, 70, 87])
    """
    error = checks.error_rate(level, family)
    x, rows = _curves(tokens, scores)
    if x.size < FEWEST:
        reason = f"{x.size} checkpoints; a line, a break and the noise around them take at least {FEWEST}."
        return Plateau("too few checkpoints", reason, None, None, None, None, None, None, x.size)
    design = _design(tuple(x.tolist()), seed)
    curve = rows.mean(axis=0)
    p_line, p_constant = _p_values(design, curve)
    if max(p_line, p_constant) > error:
        return _no_break(p_line, p_constant, x.size, error)
    best = int(_squares(design, curve[None])[0].argmin())
    before, after = _slopes(design, curve, design.breaks[best], error, family)
    shape, end = _after_break(after, bool(design.breaks[best] > x[-2]))
    return Plateau(
        shape=shape,
        reason=f"per doubling of the tokens {before:+.4f} before the break; {end}.",
        tokens=_break_interval(design, rows, error, int(family), seed),
        height=_height(design, curve, best) if shape == "plateau" else None,
        before=before,
        after=after,
        p_line=p_line,
        p_constant=p_constant,
        checkpoints=x.size,
    )


def _after_break(after: Interval, single: bool) -> tuple[Shape, str]:
    if single:
        return "bend", "only the last checkpoint lies after it, too few to call the rest flat"
    flat = after.low <= 0 <= after.high
    said = f"{after.estimate:+.4f} [{after.low:+.4f}, {after.high:+.4f}] after it"
    return "plateau" if flat else "bend", f"{said}, {'flat within noise' if flat else 'not flat'}"


def _curves(tokens: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    steps = checks.finite(tokens, "tokens")
    if steps[0] <= 0 or (np.diff(steps) <= 0).any():
        raise InputError(f"tokens are {steps.tolist()}; expected rising numbers above 0. Sort them, leave step 0 out.")
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if rows.ndim != 2 or rows.shape[1] != steps.size or rows.shape[0] == 0:
        raise InputError(f"scores have shape {rows.shape}; expected (rows, {steps.size}), one score per checkpoint.")
    checks.finite(rows.ravel(), "scores")
    return np.log(steps), rows


@functools.lru_cache(maxsize=32)
def _design(x: tuple[float, ...], seed: int) -> _Design:
    steps = np.array(x)
    breaks, coarse = _between(steps, max(BREAKS // (steps.size - 2), 4)), _between(steps, 4)
    line, _ = np.linalg.qr(np.stack([np.ones_like(steps), steps], axis=1))
    stick = _unit(_centred(np.minimum(steps, breaks[:, None])))
    hinge = _unit(_beside(line, np.maximum(steps - coarse[:, None], 0)))
    noise = np.random.default_rng(seed).standard_normal((DRAWS, steps.size))
    null_line, null_constant = np.sort(_bending(line, hinge, noise)), np.sort(_changing(stick, noise))
    return _Design(steps, breaks, stick, line, hinge, null_line, null_constant)


def _between(x: Floats, each: int) -> Floats:
    """Equal steps from x[1] to just before x[-1], ``each`` of them between neighbours."""
    return np.concatenate([np.linspace(a, b, each, endpoint=False) for a, b in pairwise(x[1:])])


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _centred(rows: Floats) -> Floats:
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))


def _beside(line: Floats, rows: Floats) -> Floats:
    """What of each row is orthogonal to straight lines."""
    return np.asarray(rows - (rows @ line) @ line.T)


def _bending(line: Floats, hinge: Floats, curves: Floats) -> Floats:
    """Largest correlation of the rest beside a line with a hinge that turns against the line."""
    rest = _beside(line, curves)
    against = -np.sign(curves @ line[:, 1:] * np.sign(line[-1, 1]))
    return np.asarray((against * (rest @ hinge.T)).max(axis=1) / np.linalg.norm(rest, axis=1))


def _changing(stick: Floats, curves: Floats) -> Floats:
    """Largest correlation, of either sign, with a broken stick."""
    rest = _centred(curves)
    return np.asarray(np.abs(rest @ stick.T).max(axis=1) / np.linalg.norm(rest, axis=1))


def _p_values(design: _Design, curve: Floats) -> tuple[float, float]:
    """Of "straight line" and "constant"; 1 where nothing but rounding is left beside them."""
    size = ROUNDING * max(float(np.abs(curve).max()), 1e-300) * curve.size
    p_line = p_constant = 1.0
    if np.linalg.norm(_beside(design.line, curve[None])) > size:
        p_line = _p_value(design.null_line, float(_bending(design.line, design.hinge, curve[None])[0]))
    if np.linalg.norm(curve - curve.mean()) > size:
        p_constant = _p_value(design.null_constant, float(_changing(design.stick, curve[None])[0]))
    return p_line, p_constant


def _p_value(null: Floats, statistic: float) -> float:
    return float((1 + null.size - np.searchsorted(null, statistic)) / (1 + null.size))


def _no_break(p_line: float, p_constant: float, checkpoints: int, error: float) -> Plateau:
    shape: Shape = "constant" if p_constant > error else "straight line"
    p = p_constant if p_constant > error else p_line
    reason = f"a plateau cannot be told from a {shape} (p = {p:.3f})."
    return Plateau(shape, reason, None, None, None, None, p_line, p_constant, checkpoints)


def _squares(design: _Design, curves: Floats) -> Floats:
    """Sum of squares around the best broken stick for each break: (curves, C)."""
    rest = _centred(curves)
    return np.asarray((rest**2).sum(axis=1)[:, None] - (rest @ design.stick.T) ** 2)


def _height(design: _Design, curve: Floats, best: int) -> float:
    stick = design.stick[best]
    return float(curve.mean() + stick[-1] * (stick @ curve))


def _slopes(design: _Design, curve: Floats, at: float, error: float, family: int) -> tuple[float, Interval]:
    """Before and after the break in the fit of two joined lines, per doubling; m - 4 degrees of freedom."""
    x = design.x
    columns = np.stack([np.ones_like(x), np.minimum(x, at), np.maximum(x - at, 0)], axis=1)
    inverse = np.linalg.inv(columns.T @ columns)
    fitted = inverse @ (columns.T @ curve)
    freedom = x.size - 4
    variance = float(((curve - columns @ fitted) ** 2).sum()) / freedom * float(inverse[2, 2])
    before, after = (float(slope) * math.log(2) for slope in fitted[1:])
    half = student_quantile(error / 2, freedom) * math.sqrt(variance) * math.log(2)
    return before, Interval(after, after - half, after + half, 1 - error, "t, break known", family)


def _break_interval(design: _Design, rows: Floats, error: float, family: int, seed: int) -> Interval:
    squares = _squares(design, rows.mean(axis=0)[None])[0]
    freedom = design.x.size - 3
    limit = float(squares.min()) * (1 + student_quantile(error / 2, freedom) ** 2 / freedom)
    likely = design.breaks[squares <= limit]
    low, high, method = float(likely[0]), float(likely[-1]), "likelihood ratio"
    if rows.shape[0] > 1:
        below, above = _redrawn_ends(design, rows, error, seed)
        low, high, method = min(low, below), max(high, above), f"{method} and bootstrap of {rows.shape[0]} rows"
    low = float(design.x[0]) if low <= design.breaks[0] else low
    high = float(design.x[-1]) if high >= design.breaks[-1] else high
    best = float(design.breaks[squares.argmin()])
    return Interval(math.exp(best), math.exp(low), math.exp(high), 1 - error, method, family)


def _redrawn_ends(design: _Design, rows: Floats, error: float, seed: int) -> tuple[float, float]:
    """Widened percentiles of the break over redrawn rows, as in ``crossing_interval``."""
    number = rows.shape[0]
    weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=REDRAWN) / number
    breaks = design.breaks[_squares(design, weights @ rows).argmin(axis=1)]
    tail = normal_tail(student_quantile(error / 2, number - 1) * math.sqrt(number / (number - 1)))
    low, high = np.quantile(breaks, [tail, 1 - tail])
    return float(low), float(high)
