"""Plateaus of trajectories, tasks that a base has learned, and the noise of tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.foreign_table import TableSettings, read_scores
from catchment.commands.study.record import BASE, Flag, Trajectory
from catchment.statistics import signal_to_noise
from tests.unit.commands.study.tables import Entry, answers, item_table

RIGHT = (30, 40, 50, 60, 70, 80, 81, 79, 80, 80)
"""Of 100 items, at ten checkpoints each with twice the tokens of the one before: flat from the sixth, at 32e9."""


def _curves(**fields: Any) -> dict[str, Trajectory]:
    cells: dict[Entry, Any] = {}
    for number, right in enumerate(RIGHT):
        cells[str(number), BASE, None, "flat"] = answers(right, 100 - right)
        cells[str(number), BASE, None, "rising"] = answers(20 + 7 * number, 80 - 7 * number)
    return {t.task: t for t in analyse(item_table(cells, **fields)).trajectories}


def test_a_curve_that_turns_flat_has_a_plateau_and_a_rising_one_has_none() -> None:
    curves = _curves()
    where = curves["flat"].plateau
    assert where is not None
    assert where.low < 32e9 < where.high
    assert (where.family, round(where.level, 3)) == (2, 0.975)
    assert curves["flat"].plateau_note.startswith("plateau: per doubling of the tokens +0.1")
    assert curves["rising"].plateau is None
    assert "line" in curves["rising"].plateau_note


def test_seeds_of_a_tuning_are_its_rows() -> None:
    cells: dict[Entry, Any] = {}
    for number, right in enumerate(RIGHT):
        for seed, shift in enumerate((-2, 0, 2)):
            cells[str(number), "sft", seed, "qa"] = answers(right + shift, 100 - right - shift)
    (curve,) = analyse(item_table(cells)).trajectories
    assert curve.plateau is not None
    assert curve.plateau.method.endswith("bootstrap of 3 rows")


def test_curves_that_are_not_asked_say_why() -> None:
    flag = Flag("unlabelled", "flat", "no labels.", refused=True, task="flat")
    assert _curves(flags=(flag,))["flat"].plateau_note == "a gate refused the task"
    cells = {(str(k), BASE, None, "qa"): answers(50 + k, 50 - k) for k in range(4)}
    table = item_table(cells)
    assert analyse(table).trajectories[0].plateau_note == "4 checkpoints; at least 5 show a plateau"
    unknown = tuple(dataclasses.replace(point, tokens=None) for point in table.checkpoints)
    study = analyse(dataclasses.replace(table, checkpoints=unknown))
    assert study.trajectories[0].plateau_note == "the tokens of the checkpoints are not known"


def test_a_checkpoint_before_training_is_left_out_of_the_plateau() -> None:
    cells = {(str(k), BASE, None, "qa"): answers(50 + k, 50 - k) for k in range(5)}
    table = item_table(cells)
    points = (dataclasses.replace(table.checkpoints[0], tokens=0.0), *table.checkpoints[1:])
    study = analyse(dataclasses.replace(table, checkpoints=points))
    assert study.trajectories[0].plateau_note == "4 checkpoints; at least 5 show a plateau"
    assert len(study.trajectories[0].points) == 5


def test_learned_is_a_test_with_false_discoveries_controlled() -> None:
    """p = 0.031 for 33 of 100 right at chance 0.25 alone; among three tasks at chance it is 4 x 0.045 / 1 > 0.05."""
    right = {"known": 90, "near": 33, "a": 25, "b": 24}
    cells: dict[Entry, Any] = {}
    for task, number in right.items():
        cells |= {("1", who, None, task): answers(number, 100 - number) for who in (BASE, "sft")}
    learned = {c.task: c.learned for c in analyse(item_table(cells)).changes}
    assert learned == {"known": True, "near": False, "a": False, "b": False}
    alone = {key: value for key, value in cells.items() if key[3] == "near"}
    assert [c.learned for c in analyse(item_table(alone)).changes] == [True]


def test_what_cannot_be_tested_is_not_called_unlearned() -> None:
    cells: dict[Entry, Any] = {("1", who, None, "qa"): answers(50, 50) for who in (BASE, "sft")}
    assert [c.learned for c in analyse(item_table(cells, chance=0.0)).changes] == [None]
    assert [c.learned for c in analyse(item_table(cells, chance=None)).changes] == [None]
    groups = {"qa": [k // 2 for k in range(100)]}
    assert [c.learned for c in analyse(item_table(cells, groups=groups)).changes] == [None]


def test_means_with_standard_errors_and_a_chance(tmp_path: Path) -> None:
    rows = "1,BASE,a,0.40,0.05\n1,sft,a,0.5,0.05\n1,BASE,b,0.26,0.05\n1,sft,b,0.5,0.05\n"
    (tmp_path / "t.csv").write_text("checkpoint,train,eval,score,se\n" + rows)
    table = read_scores(tmp_path / "t.csv", settings=TableSettings(chance={"a": 0.25, "b": 0.25}))
    study = analyse(table)
    assert {c.task: c.learned for c in study.changes} == {"a": True, "b": False}  # z = 3 and 0.2
    assert study.changes[0].adjusted == pytest.approx(0.1 / 0.75)


def test_signal_to_noise_is_over_tunings_against_the_last_near_checkpoints(tmp_path: Path) -> None:
    base, tuned = (0.50, 0.52, 0.51), 0.7
    rows = "".join(f"{step},BASE,qa,{score}\n" for step, score in zip((100, 110, 120), base, strict=True))
    (tmp_path / "t.csv").write_text(f"checkpoint,train,eval,score\n10,BASE,qa,0.1\n{rows}120,sft,qa,{tuned}\n")
    (noise,) = analyse(read_scores(tmp_path / "t.csv")).noise
    assert noise.signal_to_noise == pytest.approx(signal_to_noise([0.51, 0.7], base).ratio)
    # differences 0.02 and -0.01 between near checkpoints, and none from step 10 to 100
    assert noise.checkpoints == pytest.approx(1.4826 * np.median([0.02, 0.01]) / np.sqrt(2), rel=1e-4)
