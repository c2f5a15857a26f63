"""The rooms of the package, who may import whom, and what a source tree does against it.

A room is a folder or a file directly under ``src/catchment``. It imports the rooms below it, by the names in their
``__all__``. A command is a folder of ``commands``; its files are imported by the file.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.unit.map.source import Module, imports, owner, read

PACKAGE = "catchment"
BELOW: dict[str, tuple[str, ...]] = {
    "errors": (),
    "options": ("errors",),
    "records": ("errors",),
    "statistics": ("records",),
    "runs": ("options", "statistics"),
    "pages": ("runs",),
    "models": ("runs",),
    "capabilities": ("models",),
    "landscape": ("capabilities",),
    "training": ("landscape",),
    "methods": ("training",),
    "measuring": ("methods", "pages"),
    "commands": ("measuring",),
    "cli": ("commands",),
    "demo": ("cli",),
}
"""Every room with those directly below it, which come first; it may import these and all that is below them."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "compare": (), "scan": (), "tune": ("compare", "scan"), "study": ("compare", "scan", "tune")
}  # fmt: skip
"""Every command with those it may import."""
PARTS = ("settings", "plan", "run", "record", "words", "table", "page")
"""Files that every command has."""
INNER = ("capabilities.packs", "methods.sift", "commands.study.analysis")
"""Folders within a room."""
SURFACE = ("__init__", "__main__")
"""Files directly under the package that are no room: what the package shows, imported by no room below ``cli``."""


@cache
def allowed(room: str) -> frozenset[str]:
    """The rooms that a room may import; of a command, the commands."""
    return frozenset().union(*({below} | allowed(below) for below in {**BELOW, **COMMANDS}[room]))


def strangers(source: Path) -> list[str]:
    """Folders and files that the map does not know, rooms of the map that do not exist, and names used twice."""
    files = [path.relative_to(source).with_suffix("") for path in source.rglob("*.py")]
    there = {path.parts[0] for path in files} - set(SURFACE)
    inner = {".".join(path.parent.parts) for path in files if len(path.parts) > 2}
    known = {*INNER, *(f"commands.{name}" for name in COMMANDS)}
    unknown = sorted((there - set(BELOW)) | (inner - known))
    missing = sorted((set(BELOW) - there) | (known - inner))
    twice = sorted(".".join(path.parts) for path in files if (source / path).is_dir())
    return [
        *(f"{name} is not in the map" for name in unknown),
        *(f"{name} of the map is not there" for name in missing),
        *(f"{name} is a file and a folder" for name in twice),
    ]


def missing_parts(source: Path) -> list[str]:
    """Files of commands that others of their kind have."""
    return [
        f"{name} has no {part}.py"
        for name in COMMANDS
        for part in PARTS
        if not (source / "commands" / name / f"{part}.py").is_file()
    ]


def trespasses(source: Path) -> list[str]:
    """Imports between rooms that the map does not allow."""
    modules = read(source, PACKAGE)
    told: dict[str, None] = {}
    for module in modules.values():
        for name in sorted(set(imports(module))):
            fault = _fault(module, name, modules) if name.startswith(f"{PACKAGE}.") else ""
            told |= {f"{module.name}: {fault}": None} if fault else {}
    return list(told)


def _fault(module: Module, dotted: str, modules: Mapping[str, Module]) -> str:
    """What is wrong with one import, if anything."""
    here, there = module.name.split(".")[1:], dotted.split(".")[1:]
    room, other = here[0] if here else "", there[0]
    if f"{PACKAGE}.{other}" not in modules:
        return f"{room} imports {other} of the package that shows it" if room in allowed("cli") else ""
    if room == other == "commands":
        room, other = ("".join(parts[1:2]) or room for parts in (here, there))
    if room == other:
        return ""
    if room in {**BELOW, **COMMANDS} and other not in allowed(room):
        return f"{room} may not import {other}"
    return _not_public(dotted, modules)


def _not_public(dotted: str, modules: Mapping[str, Module]) -> str:
    """A name of another room that is not public there; of a command, a name of one of its files."""
    parts = dotted.split(".")
    home = owner(dotted, modules) if parts[1] == "commands" else ".".join(parts[:2])
    name = dotted.removeprefix(home).lstrip(".").partition(".")[0]
    return "" if not name or _is_public(name, modules[home]) else f"imports {name}, which is not public in {home}"


def _is_public(name: str, module: Module) -> bool:
    """Whether it is in ``__all__``; where a file that is no room's ``__init__`` has none, whether it has no underscore
    in front."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return name in ast.literal_eval(node.value)
    return module.path.name != "__init__.py" and not name.startswith("_")
