"""What is imported to print a help text: nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable

from tests.unit.map.rooms import COMMANDS

HEAVY = ("torch", "transformers", "ray", "peft", "accelerate", "datasets", "scipy.stats")
LIGHT = ("catchment", "catchment.errors", "catchment.options", "catchment.records", "catchment.statistics",
         "catchment.cli", *(f"catchment.commands.{name}.settings" for name in COMMANDS))  # fmt: skip
HELP = "sys.argv[1:] = {}; import runpy; runpy.run_module('catchment', run_name='__main__')"
HELPS = ([], *([verb] for verb in (*COMMANDS, "report", "tasks")))
RUN = """
import contextlib, io, json, sys
statements, heavy = json.loads(sys.argv[1])
loaded = {}
for statement in statements:
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        exec(statement)
    loaded[statement] = [name for name in heavy if name in set(sys.modules) - before]
print(json.dumps({statement: names for statement, names in loaded.items() if names}))
"""


def loaded(statements: Iterable[str]) -> dict[str, list[str]]:
    """Heavy modules that each of some statements loads, one after the other in a new process."""
    command = [sys.executable, "-c", RUN, json.dumps([list(statements), HEAVY])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(out.stdout))


def test_imports_are_light() -> None:
    assert loaded(f"import {name}" for name in LIGHT) == {}


def test_help_is_light() -> None:
    assert loaded(HELP.format([*verb, "--help"]) for verb in HELPS) == {}


def test_what_is_heavy_is_told() -> None:
    assert loaded(["import json", "import scipy.stats"]) == {"import scipy.stats": ["scipy.stats"]}
