"""The map of the rooms holds: imports point one way, rooms import only each other's public names, starts are light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "catchment"
MAY_IMPORT = {
    "errors": set(),
    "records": {"errors"},
    "options": {"errors"},
    "statistics": {"errors", "records"},
    "runs": {"errors", "records", "options", "statistics"},
    "pages": {"errors", "records", "runs", "statistics"},
    "models": {"errors", "records", "options", "statistics", "runs"},
    "capabilities": {"errors", "records", "options", "statistics", "runs", "models"},
    "landscape": {"errors", "records", "options", "statistics", "runs", "models", "capabilities"},
    "training": {"errors", "records", "options", "statistics", "runs", "models", "capabilities", "landscape"},
    "methods": {
        "errors", "records", "options", "statistics", "runs", "models", "capabilities", "landscape", "training",
    },
    "measuring": {
        "errors", "records", "options", "statistics", "runs", "models", "capabilities", "landscape", "training",
        "methods", "workflows", "pages",
    },
    "workflows": {"models"},
    "commands": {
        "errors", "records", "options", "statistics", "runs", "models", "capabilities", "landscape", "training",
        "methods", "pages", "measuring", "workflows",
    },
}  # fmt: skip
ROOMS = sorted(p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists())


def imports(path: Path) -> list[tuple[str, str]]:
    """(room, dotted rest) of every import of catchment in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "catchment" and len(parts) > 1:
                found.append((parts[1], ".".join(parts[2:])))
    return found


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = [p for p in SOURCE.rglob("*.py") if room_of(p) in MAY_IMPORT]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    for other, rest in imports(path):
        if other == room:
            continue
        assert other in MAY_IMPORT[room], f"{room} may not import {other} ({rest})"
        inside = SOURCE / other
        deep = rest.split(".")
        if other == "commands":  # a command's files are named by the file
            continue
        is_module = inside.is_dir() and len(deep) > 1 and (inside / f"{deep[0]}.py").exists()
        assert not is_module, f"{path.name} reaches into {other}.{deep[0]}; import it from the room itself"


def test_no_file_is_long() -> None:
    long = {str(p.relative_to(SOURCE)): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long


@pytest.mark.parametrize("statement", ["import catchment", "import catchment.cli", "import catchment.statistics"])
def test_nothing_heavy_is_imported(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in ('torch', 'transformers', 'scipy.stats') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def _signatures() -> list[tuple[str, set[str]]]:
    """Every function of the package with the names of its parameters."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
                found.append((f"{path.relative_to(SOURCE)}:{node.name}", names))
    return found


def test_who_takes_a_chat_template_takes_all_of_how_a_model_is_asked() -> None:
    ours = {"of", "_read_template"}  # of PromptOptions itself
    loose = {
        where
        for where, names in _signatures()
        if "chat_template" in names and not {"system", "prompt_options"} <= names and where.split(":")[1] not in ours
    }
    assert not loose


def test_how_a_model_is_asked_is_handed_on_in_one_object() -> None:
    loose = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not {w.arg for w in node.keywords} & {"chat_template", "system"}:
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called not in ("apply_chat_template", "replace", "Task"):
                loose.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not loose
