"""What is imported to print a help text: nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.unit.map.rooms import COMMANDS

HEAVY = ("torch", "transformers", "ray", "peft", "accelerate", "datasets", "scipy.stats")
LIGHT = ("catchment", "catchment.errors", "catchment.options", "catchment.records", "catchment.statistics",
         "catchment.cli", *(f"catchment.commands.{name}.settings" for name in COMMANDS))  # fmt: skip
VERBS = ("", *COMMANDS, "report", "tasks")
ASK = """
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {0}
print(json.dumps([name for name in {1} if name in sys.modules]))
"""


def loaded(statement: str) -> list[str]:
    """Heavy modules that a statement loads in a new process."""
    code = ASK.format(statement, HEAVY)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(out.stdout)


@pytest.mark.parametrize("name", LIGHT)
def test_an_import_is_light(name: str) -> None:
    assert loaded(f"import {name}") == []


@pytest.mark.parametrize("verb", ["", *COMMANDS, "report"])
def test_help_is_light(verb: str) -> None:
    arguments = [*([verb] if verb else []), "--help"]
    assert loaded(f"from catchment.cli import main; main({arguments})") == []


def test_what_is_heavy_is_told() -> None:
    assert loaded("import scipy.stats") == ["scipy.stats"]
