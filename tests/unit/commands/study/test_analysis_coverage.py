"""Intervals of the analysis cover as they say, in simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from catchment.commands.study.analysis.intervals import LEVEL, score_interval, with_error
from catchment.commands.study.analysis.paired import Rule, judge
from catchment.commands.study.record import Cell
from catchment.commands.study.scores import Scored
from catchment.statistics import seed_noise

CELL = Cell("m", "1", "sft", 0, "qa", "default", 0, "choice")
RUNS = 400
LEAST = LEVEL - 3 * np.sqrt(LEVEL * (1 - LEVEL) / RUNS)


def _scored(scores: np.ndarray) -> Scored:
    array = np.asarray(scores, dtype=np.float64)
    return with_error(Scored(CELL, float(array.mean()), array.size, None, np.arange(array.size), array))


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("graded", [False, True])
def test_bands_of_trajectories_cover_the_mean_of_the_population(seeds: int, graded: bool) -> None:
    """Items differ in difficulty, seeds in skill; one seed is no sample of seeds, so that its skill is the truth."""
    rng, covered = np.random.default_rng(5), 0
    for _ in range(RUNS):
        difficulty, skill = rng.normal(0, 0.15, 120), rng.normal(0, 0.03 if seeds > 1 else 0.0, seeds)
        rate = np.clip(0.6 + difficulty + skill[:, None], 0, 1)
        scores = np.clip(rate + rng.normal(0, 0.05, rate.shape), 0, 1) if graded else rng.random(rate.shape) < rate
        interval = score_interval([_scored(row) for row in scores])
        covered += interval.low <= 0.6 <= interval.high
    assert covered / RUNS >= LEAST


def test_changes_with_noise_of_seeds_that_is_pooled_over_cells() -> None:
    """Three seeds of five tunings without a true effect, whose seeds vary equally: the interval of one of them."""
    rng, covered = np.random.default_rng(6), 0
    rule = Rule(alpha=1 - LEVEL, margin=0.02, family=1)
    for _ in range(RUNS):
        rate = np.clip(0.6 + rng.normal(0, 0.15, 120), 0.1, 0.9)
        cells = []
        for _ in range(5):
            skill = rng.normal(0, 0.04, (3, 1))
            cells.append([_scored(row) for row in rng.random((3, 120)) < rate + skill])
        floor = seed_noise([[s.mean for s in seeds] for seeds in cells])
        base = _scored(rng.random(120) < rate)
        judged = judge(base, cells[0], rule, chance=0.25, generated=False, floor=floor)
        assert judged is not None
        covered += judged.interval.low <= 0 <= judged.interval.high
    assert covered / RUNS >= LEAST
