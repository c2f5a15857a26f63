from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from catchment.commands.study.plan import Plan
from catchment.commands.study.record import Flag, Gap, Study
from catchment.commands.study.table import print_plan, print_record
from tests.unit.commands.study.sample import empty_study, one_checkpoint, sample_study


def printed(study: Study, width: int = 100, page: str | None = None) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_record(study, console, page)
    return console.export_text()


def test_a_row_has_a_mark_and_a_number_for_each_tuning() -> None:
    text = printed(sample_study(), page="out/report.html")
    row = next(line for line in text.splitlines() if line.startswith("mnli_m"))
    assert row.split() == ["mnli_m", "+", "+46.0", "-", "-6.2", "?", "-1.0"]
    assert next(line for line in text.splitlines() if line.startswith("sciq")).split()[-1] == "missing"
    assert "page: out/report.html" in text


def test_verdicts_are_shown_instead_of_changes_where_there_are_any() -> None:
    text = printed(one_checkpoint())
    assert text.index("lora") < text.index("full")
    assert "change in points" not in text
    assert "Take lora: gained arithmetic (+31.0); no loss was shown" in text.replace("\n", " ")


def test_refused_gates_gaps_and_warnings_are_printed_and_their_rest_counted() -> None:
    flags = tuple(Flag("near zero", f"place {i}", "why", refused=True) for i in range(12))
    text = printed(replace(sample_study(), flags=flags))
    assert "refused: near zero, place 5: why" in text
    assert "place 6" not in text
    assert "6 more in the record" in text
    assert "failed: paws, seed 3, 4 cells: out of memory" in text
    assert "catchment study run amuro.yaml --hours 2" in text
    assert "warning: 2 prompts were cut" in text


@pytest.mark.parametrize("study", [empty_study(), sample_study(changes=()), sample_study(gaps=(), flags=())])
def test_any_study_is_printed(study: Study) -> None:
    assert study.name in printed(study)


def test_names_are_no_markup_and_hold_no_control_characters() -> None:
    text = printed(replace(sample_study(), name="[red]x\x1b[31m", warnings=("[bold]w",)))
    assert "[red]x\ufffd[31m" in text
    assert "warning: [bold]w" in text


def test_a_plan_is_printed_line_by_line() -> None:
    counts = {"cells": 9, "done": 4, "missing": 5, "failed": 0, "refused": 0, "to train": 1, "trainings": 2}
    gaps = (Gap("a on b", 5, "not run", "missing", 60.0),)
    plan = Plan("grid", counts, 7200.0, False, 2e9, 5e6, (("a", "b"),), gaps, ("[qa] 9 items",), ("pythia",))
    console = Console(width=40, record=True, file=io.StringIO())
    print_plan(plan, console)
    lines = console.export_text().splitlines()
    assert lines[0] == "grid: 9 cells: 4 done, 5 missing, 0 failed, 0 refused; 1 of 2 trainings to come"
    assert "about 2.0 h of one worker, estimated" in lines[1]
    assert {"  pythia", "  [qa] 9 items", "  a on b: 5 missing, about 60 s: not run"} <= set(lines)
