from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from catchment.commands.scan.table import print_record as print_scan
from tests.samples import sample_scan, self_check


def printed(scan, width=80):
    console = Console(file=io.StringIO(), width=width)
    print_scan(scan, console, "out/report.html")
    return console.file.getvalue()


def row(text, task):
    return next(line.split() for line in text.splitlines() if line.split()[1:2] == [task])


@pytest.mark.parametrize("width", [80, 120])
def test_everything_fits(width):
    assert max(map(len, printed(sample_scan(), width).splitlines())) <= width


def test_a_row_holds_rank_n_base_tolerance_brackets_and_the_bound():
    text = printed(sample_scan())
    assert row(text, "recall") == [
        "2-3", "recall", "7,680", "87.1%", "8.7", "0.0011", "to", "0.0016", "1-1.5%", "<=3.1e-5",
    ]  # fmt: skip
    assert row(text, "language")[-5:] == ["above", "0.0064", ">5.8%", "not", "found"]
    assert row(text, "knowledge")[-1] == "0.73-2.9%"


def test_order_is_table_sentence_refused_warnings_offers_path():
    text = " ".join(printed(sample_scan()).split())
    order = [
        "most case",
        "Under random moves",
        "x refusal is not measurable",
        "warning:",
        "not bought: Curvature",
        "page:",
    ]
    assert sorted(order, key=text.index) == order
    assert "about 3 min more; run again with --budget 13m" in text


def test_what_is_undecided_is_said_under_the_table():
    text = printed(sample_scan())
    assert "knowledge: undecided at 0.0016." in text
    assert "recall: " not in text


def test_a_failed_check_is_loud_and_its_notes_are_shown():
    text = printed(sample_scan(check=self_check(ok=False, notes=("the model was not put back",))))
    assert "The self-check FAILED" in text
    assert "warning: the model was not put back" in text
    assert "FAILED" not in printed(sample_scan())


def test_texts_are_neither_markup_nor_terminal_commands():
    scan = sample_scan(sentence="[bold]x[/nope] \x1b[2J")
    text = printed(replace(scan, basins=(replace(scan.basins[0], task="[red]a"),)))
    assert "[bold]x[/nope]" in text
    assert "[red]a" in text
    assert "\x1b" not in text


def test_without_basins_there_is_no_table():
    assert "most case" not in printed(sample_scan(basins=()))
