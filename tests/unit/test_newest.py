"""What ``make test-newest`` calls fatal, and that the tests it lists exist."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import newest

CASES = {
    "tests.unit.models.test_loading": "loading",
    "tests.unit.capabilities.test_engine": "evaluation",
    "tests.integration.test_tune": "tuning",
    "tests.integration.test_compare": "comparing",
    "tests.integration.test_scan": "scanning",
}


def report_of(folder: Path, broken: str, how: str, named: str = "classname") -> Path:
    """JUnit's XML of one test for each group, of which the one in ``broken`` fails; with ``name`` it was not
    collected."""
    cases = [
        f'<testcase classname="" name="{broken}"><{how}/></testcase>'
        if file == broken and named == "name"
        else f'<testcase classname="{file}" name="test_a">{f"<{how}/>" if file == broken else ""}</testcase>'
        for file in CASES
    ]
    path = folder / "report.xml"
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


@pytest.mark.parametrize("how", ["failure", "error", "skipped"])
@pytest.mark.parametrize("named", ["classname", "name"])
@pytest.mark.parametrize("broken", CASES)
def test_only_loading_evaluation_and_tuning_are_fatal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str, how: str, named: str
) -> None:
    fatal = how != "skipped" and CASES[broken] in ("loading", "evaluation", "tuning")
    assert newest.judged(report_of(tmp_path, broken, how, named)) == int(fatal)
    said = capsys.readouterr().out
    count = int(how != "skipped")
    assert f"newest: {CASES[broken]}: 0 fine, {count} broken{' (fatal)' if fatal else ''}\n" in said
    assert said.count(": 1 fine, 0 broken\n") == len(CASES) - 1


@pytest.mark.parametrize("groups", ["CORE", "MORE"])
def test_a_file_that_cannot_be_imported_is_fatal_in_the_core_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], groups: str
) -> None:
    """pytest then runs no test at all, as one of them is named."""
    (tmp_path / "test_a.py").write_text("import not_there\n")
    (tmp_path / "test_b.py").write_text("def test_b(): pass\n")
    chosen = {"comparing": ("test_b.py", "test_a.py::test_a")}
    monkeypatch.setattr(newest, "ROOT", tmp_path)
    monkeypatch.setattr(newest, groups, chosen)
    assert newest.run(Path(sys.executable), chosen, tmp_path / "report.xml") == int(groups == "CORE")
    fatal = " (fatal)" if groups == "CORE" else ""
    assert f"newest: comparing: pytest ended with 4, the tests did not run{fatal}\n" in capsys.readouterr().out


def test_every_listed_test_exists() -> None:
    for tests in (newest.CORE | newest.MORE).values():
        for test in tests:
            file, _, name = test.partition("::")
            text = (newest.ROOT / file).read_text(encoding="utf-8")
            assert not name or f"def {name.partition('[')[0]}(" in text
