"""What proofs leave: one schema, a rule beside every result, and results that the documents name are there."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from catchment.commands.study.calls import read_calls
from catchment.commands.study.settings import StudySettings
from catchment.errors import InputError
from catchment.options import read_config

ROOT = Path(__file__).parents[2]
PROOFS = ROOT / "proofs"
CLAIMS = sorted(path.parent.name for path in PROOFS.glob("*/prereg.md"))
RESULTS = sorted(PROOFS.glob("*/results/*.json"))
STUDIES = sorted(PROOFS.glob("*/*.yaml"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def results() -> Iterator[ModuleType]:
    yield module(PROOFS / "results.py", "results")
    del sys.modules["results"]


def short(path: Path) -> str:
    return str(path.relative_to(PROOFS))


def test_every_claim_has_a_study_and_a_rule() -> None:
    assert sorted({path.parent.name for path in STUDIES} | {path.parts[-3] for path in RESULTS}) == CLAIMS
    assert {path.parents[0].name for path in STUDIES if path.stem == "study"} == set(CLAIMS)


@pytest.mark.parametrize("path", RESULTS, ids=short)
def test_a_committed_result_has_the_schema_and_is_there_for_people(path: Path, results: ModuleType) -> None:
    result = results.read(path)
    results.check(result)
    assert (result.claim, result.date) == (path.parts[-3], path.stem)
    assert path.with_suffix(".md").is_file()


@pytest.mark.parametrize(
    "change",
    [{"n": 0}, {"n": {"a": 3, "b": 0}}, {"values": {}}, {"status": "skipped"}, {"status": "missing"}],
    ids=str,
)
def test_a_cell_without_n_values_or_reason_is_refused(change: dict[str, object], results: ModuleType) -> None:
    cell = results.Cell("a", 3, values={"score": 1.0})
    whole = results.Result("2026-11-29", "claim", "make", {"cpu": "x"}, (cell,), {"agree": 1}, "It holds.")
    results.check(whole)
    with pytest.raises(InputError, match="expected n and values"):
        results.check(dataclasses.replace(whole, cells=(dataclasses.replace(cell, **change),)))
    with pytest.raises(InputError, match="each name once"):
        results.check(dataclasses.replace(whole, cells=(cell, cell)))


@pytest.mark.parametrize("path", STUDIES, ids=short)
def test_a_study_of_a_proof_asks_for_functions_that_are_there(path: Path) -> None:
    settings = StudySettings(**{**read_config(path, StudySettings), "study": path})
    calls = read_calls(settings)
    assert len({call.key for call in calls}) == len(calls)
    assert calls or settings.models


def test_results_that_the_documents_name_are_there() -> None:
    named = [
        document.parent / target
        for document in DOCUMENTS
        for target in re.findall(r"\]\(((?:\.\./)?proofs[^)#]*)\)", document.read_text(encoding="utf-8"))
    ]
    assert len(named) > 5
    assert [str(path) for path in named if not path.exists()] == []


def test_the_tables_for_people_are_those_of_the_numbers(results: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made again from the JSON file: every row of a table that was committed."""
    folder = PROOFS / "scans"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    text = module(folder / "claim.py", "scans_claim").tables(results.read(folder / "results/2026-11-25.json"))
    for name in ("scans_claim", "measured", "words"):
        del sys.modules[name]
    committed = (folder / "results/2026-11-25.md").read_text(encoding="utf-8")
    rows = [line for line in committed.splitlines() if line.startswith("|")]
    assert len(rows) > 100
    assert [row for row in rows if row not in text.splitlines()] == []
