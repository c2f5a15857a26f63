"""Changes from items: intervals and verdicts over items, seeds and groups, simultaneous over the study."""

from __future__ import annotations

import numpy as np
import pytest

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.record import BASE, Change, Study
from catchment.statistics import decide, hierarchical_interval, mean_interval
from tests.unit.commands.study.tables import Entry, answers, item_table

RNG = np.random.default_rng(7)


def _change(study: Study, task: str = "qa", tuning: str = "sft") -> Change:
    return next(c for c in study.changes if (c.task, c.tuning) == (task, tuning))


@pytest.mark.parametrize("graded", [False, True])
def test_one_seed_is_decided_as_a_comparison_of_as_many_tasks(graded: bool) -> None:
    base = (RNG.random(300) < 0.8).astype(float)
    tuned = {"good": np.maximum(base, RNG.random(300) < 0.5), "bad": base * (RNG.random(300) < 0.8), "same": base}
    if graded:
        base, tuned = base * 0.9, {name: np.asarray(scores) * 0.9 for name, scores in tuned.items()}
    scores: dict[Entry, object] = {("1", BASE, None, task): base for task in tuned}
    scores |= {("1", "sft", None, task): np.asarray(t, dtype=float) for task, t in tuned.items()}
    study = analyse(item_table(scores, margin=0.03))
    for task, t in tuned.items():
        own = decide(base, t, chance=0.25, margin=0.03, family=3)
        assert _change(study, task).interval == own.interval
        assert _change(study, task).verdict == own.verdict
    assert {c.task: c.verdict for c in study.changes} == {"good": "gained", "bad": "lost", "same": "kept"}


def test_generated_answers_need_a_higher_base() -> None:
    same = answers(90, 110)
    scores: dict[Entry, object] = {("1", BASE, None, "qa"): same, ("1", "sft", None, "qa"): same}
    assert _change(analyse(item_table(scores, chance=0.0, margin=0.05))).verdict == "kept"
    generated = analyse(item_table(scores, chance=0.0, margin=0.05, scorer="exact"))
    assert _change(generated).verdict == "not measurable"


def test_several_seeds_use_the_interval_over_seeds_and_items() -> None:
    base = (RNG.random(200) < 0.7).astype(float)
    seeds = [np.where(RNG.random(200) < p, 1.0, base) for p in (0.2, 0.25, 0.3)]
    scores: dict[Entry, object] = {("1", BASE, None, "qa"): base}
    scores |= {("1", "sft", seed, "qa"): s for seed, s in enumerate(seeds)}
    change = _change(analyse(item_table(scores)))
    own = hierarchical_interval(base, np.stack(seeds))
    assert (change.seeds, change.n) == (3, 200)
    assert change.interval.low == pytest.approx(own.low, abs=1e-12)
    assert change.interval.high == pytest.approx(own.high, abs=1e-12)
    one = decide(base, seeds[0], chance=0.25).interval
    assert change.interval.high - change.interval.low > one.high - one.low


def test_noise_of_seeds_is_pooled_over_the_cells_of_a_task_and_never_below_the_cells_own() -> None:
    base = answers(140, 60)
    quiet = [answers(150, 50), answers(150, 50), answers(150, 50)]
    loud = [answers(120, 80), answers(160, 40), answers(140, 60)]
    scores: dict[Entry, object] = {("1", BASE, None, "qa"): base}
    for tuning, runs in (("quiet", quiet), ("loud", loud)):
        scores |= {("1", tuning, seed, "qa"): s for seed, s in enumerate(runs)}
    study = analyse(item_table(scores))
    widths = {c.tuning: c.interval.high - c.interval.low for c in study.changes}
    # pooled: s = sqrt(0.1^2 / 2) with 4 degrees of freedom, t(0.05/2/2, 4) = 3.4954; loud has its own 0.1
    seed_part = {"quiet": 3.49541 * np.sqrt(0.005) / np.sqrt(3), "loud": 3.49541 * 0.1 / np.sqrt(3)}
    for tuning, half in seed_part.items():
        assert widths[tuning] > 2 * half
        assert widths[tuning] < 2 * half + 0.12
    assert widths["loud"] > widths["quiet"]


def test_groups_of_items_widen_the_interval() -> None:
    base, tuned = np.ones(200), np.repeat((RNG.random(20) < 0.8).astype(float), 10)
    scores: dict[Entry, object] = {("1", BASE, None, "qa"): base, ("1", "sft", None, "qa"): tuned}
    alone = _change(analyse(item_table(scores)))
    grouped = _change(analyse(item_table(scores, groups={"qa": [i // 10 for i in range(200)]})))
    assert grouped.interval.estimate == pytest.approx(alone.interval.estimate)
    assert grouped.interval.high - grouped.interval.low > 1.5 * (alone.interval.high - alone.interval.low)


def test_a_change_is_over_the_items_that_both_have() -> None:
    # items 0 to 3 for the base, 5 down to 2 for the tuned model: they share 2 and 3
    scores: dict[Entry, object] = {
        ("1", BASE, None, "qa"): [1.0, 1.0, 0.0, 1.0],
        ("1", "sft", None, "qa"): [1.0, 1.0, 0.0, 1.0],
    }
    items = {("1", BASE, None, "qa"): [0, 1, 2, 3], ("1", "sft", None, "qa"): [5, 4, 3, 2]}
    study = analyse(item_table(scores, items=items))
    change = _change(study)
    assert (change.n, change.base, change.tuned, change.interval.estimate) == (2, 0.5, 0.5, 0.0)
    (flag,) = (f for f in study.flags if f.gate == "items that a model lacks")
    assert "share 2 items and 4 others" in flag.sentence


def test_models_without_a_common_item_are_compared_by_their_means() -> None:
    scores: dict[Entry, object] = {
        ("1", BASE, None, "qa"): answers(2, 2),
        ("1", "sft", None, "qa"): answers(3, 1),
    }
    items = {("1", BASE, None, "qa"): [0, 1, 2, 3], ("1", "sft", None, "qa"): [4, 5, 6, 7]}
    change = _change(analyse(item_table(scores, items=items)))
    assert change.verdict == ""
    assert change.interval.method == "normal, unpaired"


def test_bands_of_trajectories() -> None:
    scores: dict[Entry, object] = {
        ("1", BASE, None, "qa"): answers(90, 10),
        ("1", "sft", 1, "qa"): answers(80, 20),
        ("1", "sft", 2, "qa"): answers(84, 16),
        ("1", BASE, None, "graded"): [0.25, 0.75] * 50,
    }
    study = analyse(item_table(scores))
    points = {(t.tuning, t.task): t.points[0] for t in study.trajectories}
    assert points[BASE, "qa"].interval == mean_interval(answers(90, 10))
    assert (points[BASE, "qa"].seeds, points["sft", "qa"].seeds) == (0, 2)
    # sd of 100 graded scores 0.25 and 0.75 is 0.25 sqrt(100/99); t(0.975, 99) = 1.98422
    half = 1.98422 * 0.25 * np.sqrt(100 / 99) / 10
    assert points[BASE, "graded"].interval.high == pytest.approx(0.5 + half, abs=1e-6)
    # seeds 0.80 and 0.84: s^2/2 = 0.0004; t(0.975, 1) = 12.7062; wide enough to be cut at 1
    assert points["sft", "qa"].interval.high == 1.0
    se = (np.sqrt(0.8 * 0.2 / 99) + np.sqrt(0.84 * 0.16 / 99)) / 2
    low = 0.82 - 12.7062 * np.sqrt(se**2 + 0.0004)
    assert points["sft", "qa"].interval.low == pytest.approx(low, abs=1e-5)


def test_sensitivity_is_over_the_items_that_all_formats_share() -> None:
    import dataclasses

    table = item_table({("1", BASE, None, "qa"): [1.0, 1.0, 0.0, 0.0]})
    cell, scored = next(iter(table.scored.items()))
    other = dataclasses.replace(cell, format="io")
    few = dataclasses.replace(
        scored, cell=other, items=np.array([2, 0]), scores=np.array([0.0, 1.0]), mean=0.5, n=2
    )  # fmt: skip
    table = dataclasses.replace(table, formats=("default", "io"), scored={cell: scored, other: few})
    (row,) = analyse(table).sensitivities
    assert row.n == 2
    assert row.scores == (("default", 0.5), ("io", 0.5))
    assert (row.spread, row.retention) == (0.0, 1.0)


@pytest.mark.soak
@pytest.mark.parametrize("seeds", [1, 3])
def test_all_intervals_hold_together(seeds: int) -> None:
    """Six tasks, no true change of the population: any interval that leaves out 0 is an error, at most alpha."""
    rng, wrong, runs = np.random.default_rng(3), 0, 300
    for _ in range(runs):
        scores: dict[Entry, object] = {}
        for task in map(str, range(6)):
            base = rng.random(150) < 0.7
            scores["1", BASE, None, task] = base
            for seed in range(seeds):
                flips = rng.random(150) < 0.1
                scores["1", "sft", seed, task] = np.where(flips, rng.random(150) < 0.7, base)
        study = analyse(item_table(scores))
        wrong += any(c.interval.low > 0 or c.interval.high < 0 for c in study.changes)
    assert wrong / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
