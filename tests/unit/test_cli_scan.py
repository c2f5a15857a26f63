"""The command line of ``scan``: what becomes a setting, what wins over what, where the output goes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from catchment.cli.arguments import default_out, parse
from catchment.cli.runner import run
from catchment.cli.table import COMMANDS
from catchment.commands.scan.settings import ScanSettings


def test_every_setting_has_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", ["--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(ScanSettings):
        assert field.name.upper() in shown if field.name == "model" else f"--{field.name.replace('_', '-')}" in shown


def test_words_become_settings() -> None:
    found = parse(COMMANDS["scan"],
        [
            "org/model", "--tasks", "recall,language", "knowledge", "--budget", "20s", "--subspace", "*.mlp.*",
            "--through", "a", "b", "--gradients", "--tau-absolute", "0.05", "--plane", "0", "--json",
        ]
    )  # fmt: skip
    assert found.model == "org/model"
    assert found.tasks == ("recall", "language", "knowledge")
    assert (found.budget, found.subspace, found.through) == ("20s", "*.mlp.*", ("a", "b"))
    assert (found.gradients, found.tau_absolute, found.plane, found.json) == (True, 0.05, 0, True)
    assert found.out == Path("catchment-out/model-scan")


def test_the_command_line_wins_over_yaml(tmp_path: Path) -> None:
    path = tmp_path / "scan.yaml"
    path.write_text("model: a\nlimit: 40\ntau: 0.2\ntasks: [recall]\nbudget: 90\nthrough: b\n")
    found = parse(COMMANDS["scan"], ["--config", str(path), "--limit", "7", "--tasks", "language,arithmetic"])
    assert (found.model, found.limit, found.tau, found.budget, found.through) == ("a", 7, 0.2, "90", ("b",))
    assert found.tasks == ("language", "arithmetic")
    found = parse(COMMANDS["scan"], [f"--config={path}", "x"])
    assert (found.model, found.limit, found.tasks) == ("x", 40, ("recall",))


@pytest.mark.parametrize(
    "line", ["limit: many", "gradients: perhaps", "tasks: 5", "through: 5", "plane: 5.5", "tau: 20%"]
)
def test_a_wrong_type_in_yaml_is_one_clear_line(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.yaml"
    path.write_text(line)
    assert run("scan", ["m", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert line.split(":")[0] in said
    assert said.startswith("catchment: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("verb", ["scan", "compare"])
@pytest.mark.parametrize(
    "option", [("--budget", "soon"), ("--alpha", "3"), ("--limit", "0"), ("--batch-tokens", "-5")], ids=lambda o: o[0]
)
def test_a_value_out_of_range_is_one_clear_line(
    verb: str, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verb, ["a", *(["b"] if verb == "compare" else []), *option]) == 2
    said = capsys.readouterr().err
    assert said.startswith("catchment: ")
    assert option[1] in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        ("org/some-model", "some-model-scan"),
        ("a b/c d.gguf", "c-d.gguf-scan"),
        (".", "model-scan"),
        ("..", "model-scan"),
    ],
)
def test_default_out(spec: str, folder: str) -> None:
    assert default_out(spec, suffix="scan").parts[0] == "catchment-out"
    assert ".." not in default_out(spec, suffix="scan").parts
    if spec.startswith(("org", "a ")):
        assert default_out(spec, suffix="scan").name == folder


def test_a_verb_without_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", []) == 2
    assert "MODEL" in capsys.readouterr().err.upper()


def test_report_of_a_folder_without_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[Any] = [str(tmp_path)]
    assert run("report", arguments) == 2
    assert "no comparison.json, scan.json, tune.json or study.json" in capsys.readouterr().err
    (tmp_path / "scan.json").write_text('{"model": 1}')
    assert run("report", arguments) == 2
    assert "is not a record of ours" in capsys.readouterr().err
