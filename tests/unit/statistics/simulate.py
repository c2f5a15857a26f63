"""Draws of flips and counts of how often a claim holds. The claims are made by the public functions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy.special import gammaln, ndtri, xlogy

from catchment.records import Interval
from catchment.statistics import Decision, decide, paired_interval

Counts = tuple[int, int, int]  # lost, gained, items
Bounds = tuple[float, float]


def scores(lost: int, gained: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores with these flips; on all other items both models are right."""
    base, tuned = np.ones(n), np.ones(n)
    tuned[:lost] = 0
    base[lost : lost + gained] = 0
    return base, tuned


@functools.cache
def interval(lost: int, gained: int, n: int, level: float = 0.95, family: int = 1) -> Interval:
    return paired_interval(*scores(lost, gained, n), level=level, family=family)


@functools.cache
def decision(lost: int, gained: int, n: int, margin: float = 0.02, family: int = 1) -> Decision:
    return decide(*scores(lost, gained, n), chance=0.25, margin=margin, family=family)


def tango(lost: int, gained: int, n: int) -> Bounds:
    found = interval(lost, gained, n)
    return found.low, found.high


def wald(lost: int, gained: int, n: int) -> Bounds:
    """The textbook interval: it has width zero without flips. Here to show that the harness can tell."""
    mean = (gained - lost) / n
    half = 1.96 * np.sqrt(max((lost + gained) / n - mean**2, 0) / n)
    return mean - half, mean + half


def probabilities(n: int, p_lost: float, p_gained: float) -> list[tuple[Counts, float]]:
    """Every outcome that matters, with its exact trinomial probability (all but 1e-9 of the mass)."""
    most = [int(min(n, n * p + 8 * np.sqrt(n * p) + 12)) for p in (p_lost, p_gained)]
    b, c = np.meshgrid(*(np.arange(m + 1) for m in most), indexing="ij")
    b, c = b[b + c <= n], c[b + c <= n]
    rest = n - b - c
    log = gammaln(n + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(rest + 1)
    p = np.exp(log + xlogy(b, p_lost) + xlogy(c, p_gained) + xlogy(rest, 1 - p_lost - p_gained))
    keep = p > 1e-9
    return [((int(i), int(j), n), float(q)) for i, j, q in zip(b[keep], c[keep], p[keep], strict=True)]


def draw(n: int, p_lost: float, p_gained: float, repeats: int, seed: int) -> list[tuple[Counts, int]]:
    """Distinct outcomes of ``repeats`` experiments with the number of times each came up."""
    rng = np.random.default_rng(seed)
    flips = rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=repeats)[:, :2]
    distinct, times = np.unique(flips, axis=0, return_counts=True)
    return [((int(b), int(c), n), int(k)) for (b, c), k in zip(distinct, times, strict=True)]


def coverage(
    bounds: Callable[[int, int, int], Bounds], n: int, p_lost: float, p_gained: float, repeats: int, seed: int
) -> float:
    """Share of experiments whose interval contains the true difference."""
    truth, hits = p_gained - p_lost, 0
    for counts, times in draw(n, p_lost, p_gained, repeats, seed):
        low, high = bounds(*counts)
        hits += times * (low <= truth <= high)
    return hits / repeats


def correlated_flips(
    tasks: int, n: int, p_lost: np.ndarray, p_gained: np.ndarray, correlation: float, repeats: int, seed: int
) -> np.ndarray:
    """Flips of several tasks whose items share a difficulty: (repeats, tasks, 2) counts of lost and gained."""
    rng = np.random.default_rng(seed)
    out = np.empty((repeats, tasks, 2), dtype=int)
    for r in range(repeats):
        shared = rng.standard_normal(n)
        z = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.standard_normal((tasks, n))
        out[r, :, 0] = (z < ndtri(p_lost)[:, None]).sum(1)
        out[r, :, 1] = (z > -ndtri(p_gained)[:, None]).sum(1)
    return out


def above(rate: float, repeats: int) -> float:
    """The largest frequency that chance explains when the true rate is ``rate``: three standard errors."""
    return rate + 3 * float(np.sqrt(rate * (1 - rate) / repeats))
