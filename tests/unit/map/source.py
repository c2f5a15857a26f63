"""A tree of Python files as data: its modules, and what each of them imports, read from the text alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One file. ``name`` is dotted, from the root of the tree: ``catchment.runs``, ``catchment.runs.cells``."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        """What a relative import starts from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def read(root: Path, prefix: str = "") -> dict[str, Module]:
    """Every module under a folder by its dotted name; ``prefix`` is the name of the folder itself."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join([prefix] * bool(prefix) + list(parts))
        modules[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return modules


def imports(module: Module) -> Iterator[str]:
    """Every dotted name that a module imports, wherever the statement stands: in a function, under TYPE_CHECKING.

    ``from a.b import c`` gives ``a.b.c``, whether ``c`` is a module or a name in ``a.b``. Each use of what is bound
    gives one more: ``from a import b`` and ``b.c`` give ``a.b`` and ``a.b.c``.
    """
    tree = module.tree
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            bound |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            tops = {alias.name.partition(".")[0] for alias in node.names if not alias.asname}
            bound |= {top: top for top in tops} | {alias.asname: alias.name for alias in node.names if alias.asname}
            yield from (alias.name for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = _dotted(node)
            if first in bound and rest:
                yield ".".join([bound[first], *rest])


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    start = parts[: len(parts) - node.level + 1]
    return ".".join([*start, *([node.module] if node.module else [])])


def _dotted(node: ast.Attribute) -> list[str]:
    """``a.b.c`` as a list; empty first where it does not begin with a name."""
    parts: list[str] = []
    at: ast.expr = node
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    return [at.id if isinstance(at, ast.Name) else "", *reversed(parts)]


def graph(modules: Mapping[str, Module]) -> Graph:
    """Which modules of the tree each module imports: the longest part of a dotted name that is a module."""
    return {name: {m for i in imports(module) if (m := owner(i, modules))} for name, module in modules.items()}


def owner(dotted: str, modules: Mapping[str, Module]) -> str:
    """The module that a dotted name is in, or is; empty where it is of another tree."""
    while dotted and dotted not in modules:
        dotted = dotted.rpartition(".")[0]
    return dotted
