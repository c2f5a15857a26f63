from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from catchment.commands.study.record import Flag, Study
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
    assert "Take lora: gained arithmetic; no loss was shown" in text.replace("\n", " ")


def test_refused_gates_gaps_and_warnings_are_printed_and_their_rest_counted() -> None:
    flags = tuple(Flag("near zero", f"place {i}", "why", refused=True) for i in range(12))
    text = printed(replace(sample_study(), flags=flags))
    assert "refused: near zero, place 7: why" in text
    assert "place 8" not in text
    assert "4 more in the record" in text
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
    console = Console(width=40, record=True, file=io.StringIO())
    print_plan(["432 cells", "[x] 3 h"], console)
    assert console.export_text() == "432 cells\n[x] 3 h\n"
