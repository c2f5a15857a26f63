"""How long functions and files are, and how many parameters a function has."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.unit.map.source import Module, read

MEDIAN, LINES, FILE_LINES, PARAMETERS = 8, 60, 400, 8
REASON = "# long: "
"""Starts the comment, at the end of the ``def`` line or right above it, that says why a function is long."""


@dataclass(frozen=True)
class Function:
    """``name`` says where it is: ``runs.store:Store.append``. ``lines`` count from ``def``, the docstring included;
    ``parameters`` leave out ``self`` and ``cls``, and count ``*args`` and ``**kwargs`` as one each."""

    name: str
    lines: int
    parameters: int
    reason: bool


def functions(source: Path) -> list[Function]:
    """All functions of a tree, methods and inner ones too."""
    return [function for module in read(source).values() for function in _within(module, module.tree, "")]


def _within(module: Module, node: ast.AST, scope: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        name = f"{scope}{getattr(child, 'name', '')}"
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _function(module, child, name, scope)
        inner = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _within(module, child, f"{name}." if inner else scope)


def _function(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, scope: str) -> Function:
    lines = module.text.splitlines()
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    near = lines[max(first - 2, 0) : node.lineno]
    assert node.end_lineno is not None
    where = f"{module.name}:{name}"
    return Function(where, node.end_lineno - node.lineno + 1, _parameters(node), any(REASON in line for line in near))


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = node.args
    named = [arg.arg for arg in (*a.posonlyargs, *a.args)]
    own = named[:1] in (["self"], ["cls"])
    return len(named) - own + len(a.kwonlyargs) + (a.vararg is not None) + (a.kwarg is not None)


def too_long(functions: Iterable[Function]) -> dict[str, int]:
    """Lines of the functions that are too long and do not say why."""
    return {f.name: f.lines for f in functions if f.lines > LINES and not f.reason}


def too_many_parameters(functions: Iterable[Function]) -> dict[str, int]:
    return {f.name: f.parameters for f in functions if f.parameters > PARAMETERS}


def long_files(source: Path, limit: int = FILE_LINES) -> dict[str, int]:
    counted = {str(p.relative_to(source)): len(p.read_text("utf-8").splitlines()) for p in source.rglob("*.py")}
    return {name: number for name, number in counted.items() if number > limit}
