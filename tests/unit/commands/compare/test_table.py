from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from catchment.commands.compare.table import comparison_table
from catchment.commands.compare.table import print_record as print_comparison
from tests.samples import TASKS, sample_comparison


def printed(comparison, width=80, **settings):
    console = Console(file=io.StringIO(), width=width, **settings)
    print_comparison(comparison, console, "out/report.html")
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_fits_and_no_name_is_cut(width):
    lines = printed(sample_comparison(), width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.split()[:1] and line.split()[0] in {name for name, *_ in TASKS}]
    verdicts = [row.rstrip().endswith(verdict) for row, (*_, verdict) in zip(rows, TASKS, strict=False)]
    assert len(verdicts) == len(TASKS)
    assert all(verdicts)


def test_a_row_holds_scores_difference_interval_and_n():
    text = printed(sample_comparison())
    row = next(line for line in text.splitlines() if line.startswith("recall"))
    assert row.split() == ["recall", "1,600", "87.1%", "75.1%", "-12.0", "[-14.5,", "-9.5]", "-", "lost"]


def test_order_is_table_verdict_flips_warnings_path():
    text = " ".join(printed(sample_comparison()).split())
    order = [
        "verdict",
        "This fine-tune gained",
        "3 most telling of 978",
        "- lost recall",
        "+ gained arithmetic",
        "warning:",
        "page:",
    ]
    assert sorted(order, key=text.index) == order


def test_a_task_that_is_not_measurable_shows_its_difference():
    text = printed(sample_comparison())
    row = next(line for line in text.splitlines() if line.startswith("refusal  "))
    assert row.split() == ["refusal", "400", "4.2%", "3.6%", "-0.6", "[", "-2.2,", "+1.0]", "x", "not", "measurable"]
    assert "refusal: the base scores too low." in text


def test_a_gain_on_a_task_the_base_could_not_do_shows_its_difference():
    sample = sample_comparison()
    gained = replace(sample.tasks[0], admitted=False, can_lose=False, note="the base could not do this task")
    text = printed(replace(sample, tasks=(gained,)))
    assert "+31.0" in text
    assert "arithmetic: the base could not do this task." in text


def test_answers_are_neither_markup_nor_terminal_commands():
    sample = sample_comparison()
    hostile = replace(
        sample.flips[0], prompt="[bold]x[/bold] [/nope]", base_answer="\x1b[2J\x1b]0;owned\x07", weight=1.0
    )
    text = printed(replace(sample, flips=(hostile,)), force_terminal=False)
    assert "[bold]x[/bold] [/nope]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_agreement_with_the_base_is_one_line():
    assert "Agreement with the base on own prompts: 93.1% [91.8%, 94.4%], 200 prompts." in printed(sample_comparison())


def test_no_flips_no_warnings_no_page():
    console = Console(file=io.StringIO(), width=80)
    print_comparison(sample_comparison(flip_count=1, flips=(), warnings=()), console)
    text = console.file.getvalue()
    assert "telling" not in text
    assert "warning" not in text
    assert "page:" not in text


def test_the_table_has_one_row_per_task():
    assert comparison_table(sample_comparison()).row_count == len(TASKS)
