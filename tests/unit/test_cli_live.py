"""What a watched run prints: the plan, where it stands, and the time that is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from catchment.cli.live import LiveProgress
from tests.samples import sample_comparison


def printed(terminal: bool, left: float | None) -> str:
    out = io.StringIO()
    with LiveProgress(Console(file=out, force_terminal=terminal, width=120)) as progress:
        progress.clock(lambda: left)
        progress.plan("512 items over 4 tasks")
        progress.status("recall [1] · base")
        progress.row(sample_comparison().tasks[0], final=True)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_of_a_budget_is_shown(terminal: bool) -> None:
    text = printed(terminal, 75.0)
    assert "512 items over 4 tasks" in text
    assert "1:15 left of the budget" in text
    assert "recall [1] · base" in text


def test_every_plain_line_says_the_time_left() -> None:
    lines = printed(False, 75.0).splitlines()
    assert len(lines) == 3
    assert all("1:15 left of the budget" in line for line in lines)


def test_without_a_budget_no_time_is_made_up() -> None:
    assert "left" not in printed(False, None)
