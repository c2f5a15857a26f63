"""What stands beside the package (proofs, benchmarks, recipes, examples) imports names that are there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("proofs", "benchmarks", "recipes", "examples", "docs")


def absent(text: str) -> list[str]:
    """Names of catchment that a file imports, wherever it does, and that are not there."""
    missing = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "catchment":
            missing += [f"{node.module}.{a.name}" for a in node.names if not _there(node.module or "", a.name)]
        elif isinstance(node, ast.Import):
            ours = [a.name for a in node.names if a.name.split(".")[0] == "catchment"]
            missing += [name for name in ours if not _there(*name.rpartition(".")[::2])]
    return missing


def _there(module: str, name: str) -> bool:
    try:
        if module and hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}".lstrip("."))
    except ImportError:
        return False
    return True


FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_there(path: Path) -> None:
    assert absent(path.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_told() -> None:
    text = "import catchment.nowhere\nfrom catchment import records\n"
    text += "def late():\n    from catchment.records import Row, Raw\n"
    assert absent(text) == ["catchment.nowhere", "catchment.records.Raw"]
