"""Each gate of the analysis is raised by the table that needs it, and not by its neighbour."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.foreign_table import TableSettings, read_scores
from catchment.commands.study.record import BASE, CellResult, Flag, Study
from catchment.commands.study.scores import Pairs
from tests.unit.commands.study.tables import Entry, answers, item_table

RNG = np.random.default_rng(11)


def _table(folder: Path, rows: str, **settings: Any) -> Study:
    path = folder / "scores.csv"
    path.write_text("checkpoint,train,eval,score,se\n" + rows, encoding="utf-8")
    return analyse(read_scores(path, settings=TableSettings(**settings)))


def _raised(study: Study, gate: str) -> list[Flag]:
    return [flag for flag in study.flags if flag.gate == gate]


def test_a_perfect_base_at_the_first_checkpoint_is_refused(tmp_path: Path) -> None:
    study = _table(tmp_path, "1,BASE,qa,1.0,0.001\n2,BASE,qa,0.9,0.01\n2,sft,qa,0.5,0.01\n")
    assert [f.refused for f in _raised(study, "unlabelled or constant gold")] == [True]
    assert [c.refused for c in study.changes] == [True]


def test_a_base_that_becomes_perfect_is_only_flagged(tmp_path: Path) -> None:
    study = _table(tmp_path, "1,BASE,qa,0.7,0.01\n2,BASE,qa,1.0,0.001\n2,sft,qa,0.5,0.01\n")
    assert [f.refused for f in _raised(study, "unlabelled or constant gold")] == [False]
    assert [c.refused for c in study.changes] == [False]


def test_a_perfect_base_of_labelled_items_is_none() -> None:
    study = analyse(item_table({("1", BASE, None, "qa"): answers(20, 0), ("2", BASE, None, "qa"): answers(15, 5)}))
    assert _raised(study, "unlabelled or constant gold") == []
    assert [f.where for f in _raised(study, "degenerate")] == ["qa"]


def test_a_task_that_the_study_declares_unlabelled_is_refused(tmp_path: Path) -> None:
    flag = Flag("unlabelled", "qa", "its test set has no labels.", refused=True)
    rows = "1,BASE,qa,0.7,0.01\n1,sft,qa,0.5,0.01\n1,BASE,ok,0.7,0.01\n1,sft,ok,0.6,0.01\n"
    study = _table(tmp_path, rows, flags=[flag], contrasts=[Pairs("both", (("sft", "qa"), ("sft", "ok")))])
    assert study.flags[0] == flag
    assert {c.task: (c.refused, c.interval.family) for c in study.changes} == {"qa": (True, 1), "ok": (False, 1)}
    assert study.matrices[0].tasks == ("ok",)
    assert [n.task for n in study.noise] == ["ok"]
    assert study.contrasts[0].refused == ("qa",)
    assert [f.where for f in _raised(study, "refused tasks in a contrast")] == ["contrast both"]


def test_near_checkpoints_that_differ_by_many_standard_errors(tmp_path: Path) -> None:
    rows = "100,BASE,qa,0.5,0.01\n110,BASE,qa,0.51,0.01\n100,sft,qa,0.5,0.01\n110,sft,qa,0.6,0.01\n"
    (flag,) = _raised(_table(tmp_path, rows), "training noise")
    assert flag.tuning == "sft"
    assert flag.sentence.startswith("qa 0.500 at 100, 0.600 at 110 (7 times the standard error).")
    assert not _raised(_table(tmp_path, rows.replace("110", "900")), "training noise")


def test_a_base_with_one_score_at_many_checkpoints(tmp_path: Path) -> None:
    same = "".join(f"{step},BASE,qa,{0.55 + 0.0001 * step},0.005\n" for step in range(1, 5))
    assert [f.task for f in _raised(_table(tmp_path, same), "constant predictor")] == ["qa"]
    moving = "".join(f"{step},BASE,qa,{0.55 + 0.01 * step},0.005\n" for step in range(1, 5))
    assert not _raised(_table(tmp_path, moving), "constant predictor")


WRONG_WEIGHTS = """342,tulu,mmlu,0.26734,
342,tulu,truthful,0.40147,
342,tulu,toxigen,0.62829,
342,tulu,arc,0.58,
505,tulu,mmlu,0.26734,
505,tulu,truthful,0.40147,
505,tulu,toxigen,0.62829,
505,tulu,arc,0.60,
592,tulu,mmlu,0.27,
592,tulu,truthful,0.41,
592,tulu,toxigen,0.63,
592,tulu,arc,0.59,
"""


def test_two_checkpoints_with_the_scores_of_one_model(tmp_path: Path) -> None:
    """What the released table of another paper holds: the tuned 342k and 505k share three scores to five digits."""
    bases = "".join(f"{step},BASE,{task},0.5,\n" for step in (342, 505, 592) for task in ("mmlu", "arc"))
    study = _table(tmp_path, bases + WRONG_WEIGHTS)
    flags = _raised(study, "identical outputs")
    assert [(f.revision, f.tuning, f.refused) for f in flags] == [("342", "tulu", True), ("505", "tulu", True)]
    assert all(task in flags[0].sentence for task in ("mmlu", "truthful", "toxigen"))
    assert "are those of 505" in flags[0].sentence
    assert {c.revision: c.refused for c in study.changes if c.task == "mmlu"} == {
        "342": True,
        "505": True,
        "592": False,
    }


def test_identical_item_scores_of_two_checkpoints_unless_they_share_bytes() -> None:
    scores = (RNG.random(250) < 0.5).astype(float)
    other = (RNG.random(250) < 0.5).astype(float)
    cells: dict[Entry, Any] = {("1", BASE, None, "qa"): scores, ("2", BASE, None, "qa"): scores.copy()}
    table = item_table({**cells, ("3", BASE, None, "qa"): other})
    assert [f.revision for f in _raised(analyse(table), "identical outputs")] == ["1", "2"]
    aliases = tuple(dataclasses.replace(c, weights_hash="a") for c in table.checkpoints)
    assert not _raised(analyse(dataclasses.replace(table, checkpoints=aliases)), "identical outputs")
    few = item_table({key: value[:100] for key, value in cells.items()})
    assert not _raised(analyse(few), "identical outputs")


def test_a_tuning_that_changed_nothing() -> None:
    scores = (RNG.random(250) < 0.5).astype(float)
    study = analyse(item_table({("1", BASE, None, "qa"): scores, ("1", "sft", 0, "qa"): scores.copy()}))
    (flag,) = _raised(study, "identical outputs")
    assert "those of the base" in flag.sentence
    assert not flag.refused


def test_a_base_of_zero_has_no_ratio(tmp_path: Path) -> None:
    rows = "1,BASE,qa,0,\n1,sft,qa,0.5,\n2,BASE,qa,0.5,\n2,sft,qa,0.6,\n"
    study = _table(tmp_path, rows, contrasts=[Pairs("c", (("sft", "qa"),))])
    ratio = study.contrasts[0].ratio
    assert ratio is not None
    assert (ratio.mean, ratio.median, ratio.log_ratio) == (None, None, None)
    assert ratio.raw == pytest.approx(0.3)
    assert ratio.pooled == pytest.approx(0.6 / 0.5)
    assert "not defined" in _raised(study, "near-zero denominator")[0].sentence
    assert [c.near_zero for c in study.changes] == [True, False]


def test_a_contrast_with_a_missing_pair_has_no_mean_there(tmp_path: Path) -> None:
    rows = "1,BASE,a,0.5,\n1,sft,a,0.6,\n1,BASE,b,0.5,\n2,BASE,a,0.5,\n2,sft,a,0.7,\n2,BASE,b,0.5,\n2,sft,b,0.9,\n"
    (c,) = _table(tmp_path, rows, contrasts=[Pairs("c", (("sft", "a"), ("sft", "b")))]).contrasts
    assert [(r, v if v is None else round(v, 9)) for r, v in c.by_checkpoint] == [("1", None), ("2", 0.3)]
    assert c.missing == ("sft -> b at 1: no tuned score",)
    assert c.mean == pytest.approx((0.1 + 0.2 + 0.4) / 3)


def test_forgetting_matrix_and_transfer(tmp_path: Path) -> None:
    rows = "1,BASE,a,0.5,\n1,BASE,b,0.5,\n1,BASE,c,0.5,\n1,x,a,0.75,\n1,x,b,0.25,\n1,x,c,0.375,\n1,y,a,0.25,\n"
    (matrix,) = _table(tmp_path, rows, in_domain={"x": ["a"], "y": ["c"]}).matrices
    assert matrix.tunings == ("x", "y")
    assert matrix.values == ((0.25, -0.25, -0.125), (-0.25, None, None))
    assert matrix.transfer == (-0.1875, -0.25)
    assert matrix.missing == 2


def test_noise_floor_of_seeds() -> None:
    cells: dict[Entry, Any] = {("1", BASE, None, "qa"): answers(50, 50)}
    cells |= {("1", "sft", seed, "qa"): answers(right, 100 - right) for seed, right in enumerate((60, 70, 80))}
    (noise,) = analyse(item_table(cells)).noise
    assert noise.seeds == pytest.approx(0.1)
    assert noise.checkpoints is None
    assert noise.floor == noise.seeds


def test_failed_cells_are_rows_with_their_reason_and_price() -> None:
    table = item_table({("1", BASE, None, "qa"): answers(5, 5), ("1", "sft", 0, "qa"): answers(5, 5)})
    base, tuned = (result.cell for result in table.cells)
    failed = [
        CellResult(dataclasses.replace(tuned, revision=str(i)), "failed", reason="CUDA out of memory", seconds=2.0)
        for i in (2, 3)
    ]
    refused = CellResult(dataclasses.replace(base, task="x"), "refused", reason="no labels")
    study = analyse(dataclasses.replace(table, cells=(*table.cells, *failed, refused), tasks=("qa", "x")))
    assert study.counts == {"cells": 5, "done": 2, "missing": 0, "failed": 2, "refused": 1}
    assert [(g.cells, g.reason, g.status, g.seconds) for g in study.gaps] == [
        (2, "CUDA out of memory", "failed", 4.0),
        (1, "no labels", "refused", None),
    ]
    assert study.headline == "incomplete"
