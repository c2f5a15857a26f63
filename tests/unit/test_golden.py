"""Options, YAML keys, names, records, plans, tables and pages are those of the golden files.

A golden file changes only by ``python -m tests.freeze --write``. Numbers that come out of forward passes are compared
to 1e-3, other numbers to 1e-6; names, order, verdicts and sentences exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import catchment
from catchment import records
from catchment.records import from_json, to_json
from tests import freeze

KINDS = {"compare": "Comparison", "scan": "Scan", "tune": "Tune", "study": "Study"}
MEASURED = {
    "companion", "companions", "base_companion", "texts", "agreements", "weight", "kl", "curvature", "gradients",
    "loss", "losses", "loss_base", "held_out", "check", "cosine",
}  # fmt: skip
"""Fields whose numbers come out of forward passes."""
verbs = pytest.mark.parametrize("verb", list(freeze.POSITIONALS))


def differences(golden: Any, now: Any, path: str = "", near: float = 1e-6) -> Iterator[str]:
    """Where two JSON values differ, a line each."""
    if isinstance(golden, dict) and isinstance(now, dict) and golden.keys() == now.keys():
        for key, value in golden.items():
            yield from differences(value, now[key], f"{path}.{key}", 1e-3 if key in MEASURED else near)
    elif isinstance(golden, list) and isinstance(now, list) and len(golden) == len(now):
        for place, (one, two) in enumerate(zip(golden, now, strict=True)):
            yield from differences(one, two, f"{path}[{place}]", near)
    elif isinstance(golden, float) and isinstance(now, float):
        if not math.isclose(golden, now, rel_tol=near, abs_tol=near * 1e-3):
            yield f"{path}: {golden} became {now}"
    elif golden != now or type(golden) is not type(now):
        yield f"{path}: {golden!r} became {now!r}"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with freeze.place(tmp_path_factory.mktemp("golden")) as folder:
        yield folder


@pytest.fixture(scope="module")
def ran(here: Path) -> dict[str, Any]:
    """What the three commands say and leave, on tiny models."""
    return freeze.runs()


def test_differences_are_found() -> None:
    golden = {"n": 3, "low": 0.5, "loss": [0.5], "verdict": "lost"}
    assert not list(differences(golden, {**golden, "low": 0.5 + 1e-8, "loss": [0.5 + 1e-4]}))
    for change in (
        {"n": 4},
        {"n": 3.0},
        {"low": 0.5001},
        {"loss": [0.51]},
        {"loss": []},
        {"verdict": "kept"},
        {"m": 1},
    ):
        assert list(differences(golden, {**golden, **change}))
    assert list(differences(golden, {"n": 3}))


def test_options_and_their_help(here: Path) -> None:
    assert list(differences(freeze.read("commands.json"), freeze.commands())) == []


def test_yaml_keys_and_what_they_take(here: Path) -> None:
    assert list(differences(freeze.read("config.json"), freeze.config())) == []


def test_public_names(here: Path) -> None:
    golden, now = freeze.read("names.json"), freeze.names()
    assert set(golden["catchment"]) <= set(now["catchment"])
    moved = set(golden["catchment.records"]) - set(now["catchment.records"])
    assert moved <= set(KINDS.values())  # they belong to commands, and stay in catchment
    assert all(hasattr(catchment, name) for name in golden["catchment"])
    assert all(hasattr(records, name) for name in now["catchment.records"])
    for verb in freeze.POSITIONALS:
        assert golden[verb] == now[verb]


@verbs
def test_a_record(verb: str, ran: dict[str, Any]) -> None:
    assert list(differences(freeze.read(f"{verb}.json"), ran[f"{verb}.json"])) == []


@verbs
def test_plans(verb: str, ran: dict[str, Any]) -> None:
    assert freeze.read(f"{verb}-plan.txt") == ran[f"{verb}-plan.txt"]
    assert list(differences(freeze.read(f"{verb}-plans.json"), ran[f"{verb}-plans.json"])) == []


@verbs
def test_files_in_out(verb: str, ran: dict[str, Any]) -> None:
    assert freeze.read(f"{verb}-out.json") == ran[f"{verb}-out.json"]


@verbs
def test_the_file_format(verb: str) -> None:
    """An old record is read, and what is written again is the same."""
    golden = freeze.read(f"{verb}.json")
    record = from_json(getattr(catchment, KINDS[verb]), json.dumps(golden))
    assert json.loads(to_json(record)) == golden
    assert list(json.loads(to_json(record))) == list(golden)


@verbs
def test_the_table_and_the_page_of_a_record(verb: str, here: Path) -> None:
    now = freeze.rendered(verb, freeze.read(f"{verb}.json"))
    for name, text in now.items():
        assert text.splitlines() == freeze.read(name).splitlines(), name


def test_every_golden_file_is_read_here() -> None:
    parts = [f"{verb}{end}" for verb in freeze.POSITIONALS for end in freeze.OF_A_COMMAND]
    assert sorted(path.name for path in freeze.GOLDEN.iterdir()) == sorted([*parts, *freeze.OF_ALL])
