"""How a model is asked (chat template, system message and the rest) goes from function to function in one object."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.unit.map.rooms import allowed
from tests.unit.map.source import Module, read

SOURCE = Path(__file__).parents[3] / "src" / "catchment"
MODULES = {name: module for name, module in read(SOURCE).items() if name.split(".")[0] in allowed("cli")}
OF_PROMPT_OPTIONS = {"of", "_read_template"}
MAY_NAME_THEM = {"apply_chat_template", "replace", "Task"}


def takes_part_of_it(modules: Mapping[str, Module]) -> Iterator[str]:
    """Functions that take a chat template without a system message."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and node.name not in OF_PROMPT_OPTIONS:
                names = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
                if "chat_template" in names and not {"system", "prompt_options"} <= names:
                    yield f"{module.name}:{node.name}"


def hands_on_parts(modules: Mapping[str, Module]) -> Iterator[str]:
    """Calls that pass a chat template or a system message by its own keyword."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and {w.arg for w in node.keywords} & {"chat_template", "system"}:
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called not in MAY_NAME_THEM:
                    yield f"{module.name}:{node.lineno}"


def test_who_takes_a_chat_template_takes_all_of_how_a_model_is_asked() -> None:
    assert list(takes_part_of_it(MODULES)) == []


def test_how_a_model_is_asked_is_handed_on_in_one_object() -> None:
    assert list(hands_on_parts(MODULES)) == []


def test_parts_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(chat_template): ...\nf(chat_template='x')\n")
    assert list(takes_part_of_it(read(tmp_path))) == ["a:f"]
    assert list(hands_on_parts(read(tmp_path))) == ["a:2"]
