"""Reports on somebody else's scores, as the command asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from catchment.commands.study.elsewhere import read_foreign
from catchment.commands.study.settings import StudySettings
from catchment.errors import InputError
from tests.unit.commands.study.released import CSV, printed

LOGS = Path(__file__).parents[3] / "data" / "lm_eval"


def test_a_table_with_what_the_study_says_of_it() -> None:
    settings = StudySettings(
        action="report",
        csv=CSV,
        contrasts={"hurt": [{"paws": ["qqp", "stsb"]}], "once": [["mnli", "rte"]]},
        tunings=[{"data": "mnli.jsonl", "in_domain": ["mnli_matched", "mnli_mismatched"]}],
        tasks=[{"task": "rte", "unlabelled": "declared for this test."}, "paws"],
    )
    study, table = read_foreign(settings)
    assert study.name == table.name == CSV.stem
    assert [c.refused for c in study.contrasts] == [("qqp", "stsb"), ("rte",)]
    assert printed([study.contrasts[1].mean], 3) == ".182"
    assert {c.task for c in study.changes if c.tuning == "mnli" and c.in_domain} == {"mnli_matched", "mnli_mismatched"}
    assert [f.task for f in study.flags if f.gate == "unlabelled"] == ["rte"]
    assert study.created
    assert study.conditions["source"] == CSV.name


def test_logs_of_lm_eval() -> None:
    settings = StudySettings(action="report", lm_eval=LOGS, base="stories15M", metric="acc_norm", margin=0.05)
    study, table = read_foreign(settings)
    assert (study.margin, table.margin) == (0.05, 0.05)
    assert [c.task for c in study.changes] == ["story_choice", "story_word (strict)", "story_word (first-word)"]


def test_one_source_at_a_time() -> None:
    with pytest.raises(InputError, match="one of them"):
        read_foreign(StudySettings(action="report", lm_eval=LOGS, csv=CSV))
