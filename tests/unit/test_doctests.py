"""Every example in a docstring of the package holds."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
EXAMPLE = re.compile(r"^ *>>> ", re.MULTILINE)


def modules_with_examples() -> dict[str, int]:
    """Examples per module of the package, counted in its text."""
    counted = {}
    for path in sorted((SOURCE / "catchment").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        counted[name] = len(EXAMPLE.findall(path.read_text(encoding="utf-8")))
    return {name: number for name, number in counted.items() if number}


@pytest.mark.parametrize(("name", "number"), modules_with_examples().items())
def test_examples_hold(name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    for test in tests:
        runner.run(test, out=told.append)
    assert not told, "".join(told)
    assert sum(len(test.examples) for test in tests) == number, "examples stand where doctest does not look"


def test_an_example_that_does_not_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parametrised test on a module of two lines whose example is wrong, and on one that doctest does not see."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "example_wrong.py").write_text('"""\n>>> 1 + 1\n3\n"""\n')
    (tmp_path / "example_unseen.py").write_text('X = 1\n"""\n>>> 1 + 1\n3\n"""\n')
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        test_examples_hold("example_wrong", 1, tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="where doctest does not look"):
        test_examples_hold("example_unseen", 1, tmp_path, monkeypatch)
