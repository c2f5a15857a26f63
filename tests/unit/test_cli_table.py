"""The next command is one folder and one line: a command that is made here runs like the others."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from catchment.cli import report, runner
from catchment.cli.table import COMMANDS, Command
from catchment.options import (
    AskOptions,
    BudgetOption,
    Count,
    MeasureOptions,
    ModelOptions,
    Names,
    Object,
    OutputOptions,
    checked,
)
from catchment.records import to_json

WEIGH = Command("weigh", "MODEL", "how heavy it is", "Weight")


@checked
class WeighSettings(MeasureOptions, AskOptions, ModelOptions, OutputOptions):
    """How heavy is this model?

    Attributes:
        model: What is weighed.
        most: What it may weigh.
        beside: Names of what lies beside it.
    """

    model: Object = field(kw_only=False)
    most: Count = 100
    beside: Names = ()


@checked
class TimedSettings(WeighSettings, BudgetOption):
    """The same within a budget."""


@dataclass(frozen=True)
class Weight:
    """What it weighs."""

    model: str
    grams: int
    beside: tuple[str, ...] = ()


def run(settings: Any, progress: Any, **more: Any) -> Weight:
    assert set(more) == ({"started"} if isinstance(settings, BudgetOption) else set())
    weight = Weight(settings.model, len(settings.model), settings.beside)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "weight.json").write_text(to_json(weight))
    return weight


def write_page(record: Weight, path: Path) -> Path:
    path.write_text(f"{record.grams} g")
    return path


FILES: dict[str, dict[str, Any]] = {
    "settings": {"WeighSettings": WeighSettings},
    "plan": {"plan": lambda settings, progress: ["it will be weighed"]},
    "run": {
        "run": run,
        "broken": lambda record, settings: [f"more than {settings.most} g"] * (record.grams > settings.most),
        "unproven": lambda record, settings: ["it may be heavier tomorrow"],
    },
    "record": {"FILE": "weight.json", "Weight": Weight},
    "table": {
        "print_plan": lambda plan, console: console.print(*plan),
        "print_record": lambda record, console, page: console.print(f"{record.grams} g, page: {page}"),
    },
    "page": {"write_page": write_page},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command's line and its files; the current directory is empty."""
    monkeypatch.setitem(COMMANDS, "weigh", WEIGH)
    for name, content in FILES.items():
        module = ModuleType(f"catchment.commands.weigh.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "catchment.commands.weigh", ModuleType("catchment.commands.weigh"))
    monkeypatch.setattr(runner, "quiet", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.run("weigh", ["org/abc", "--beside", "x,y", "z"]) == 0
    said = capsys.readouterr()
    assert "7 g" in said.out
    assert "page: catchment-out/abc-weigh/report.html" in " ".join(said.out.split())
    assert said.err == "catchment: it may be heavier tomorrow\n"


def test_json_and_a_broken_bound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.yaml").write_text("most: 2\nbeside: [x, 'y,z']\n")
    assert runner.run("weigh", ["abc", "--json", "--config", "c.yaml", "--out", "out"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"model": "abc", "grams": 3, "beside": ["x", "y", "z"]}
    assert said.err == "catchment: more than 2 g\n"


def test_a_plan_runs_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.run("weigh", ["abc", "--dry-run"]) == 0
    assert capsys.readouterr().out == "it will be weighed\n"
    assert list(folder.iterdir()) == []


def test_its_page_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.run("weigh", ["abc", "--out", "out"]) == 0
    assert report.main(["out"]) == 0
    assert (folder / "out" / "report.html").read_text() == "3 g"
    with pytest.raises(
        Exception, match=r"holds no comparison\.json, scan\.json, tune\.json, study\.json or weight\.json"
    ):
        report.main([str(folder)])


def test_a_command_with_a_budget_is_told_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["catchment.commands.weigh.settings"], "WeighSettings", TimedSettings)
    assert runner.run("weigh", ["abc", "--budget", "4m"]) == 0


def test_its_help_has_its_own_options_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.run("weigh", ["--help"]) == 0
    said = capsys.readouterr().out
    assert "usage: catchment weigh [-h] [OPTIONS] MODEL" in said
    order = [said.index(name) for name in ("What is weighed.", "--most", "--beside", "--tasks", "--json", "--config")]
    assert order == sorted(order)


def test_what_is_refused_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.run("weigh", ["abc", "--most", "0"]) == 2
    assert capsys.readouterr().err == "catchment: most 0: expected a whole number of at least 1.\n"
    assert runner.run("weight", []) == 2
    assert "Did you mean 'weigh'?" in capsys.readouterr().err
