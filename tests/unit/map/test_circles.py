"""No files import each other in a circle; lazy imports and imports for type checking count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.map.circles import circles
from tests.unit.map.source import graph, read

ROOT = Path(__file__).parents[3]
Tree = Callable[[dict[str, str]], Path]


def found(folder: Path, prefix: str = "") -> list[str]:
    return circles(graph(read(folder, prefix)))


def test_no_circle_in_the_package() -> None:
    assert found(ROOT / "src" / "catchment", "catchment") == []


CLAIMS = sorted(f"proofs/{path.parent.name}" for path in (ROOT / "proofs").glob("*/claim.py"))


@pytest.mark.parametrize(
    ("folder", "prefix"), [*((claim, "") for claim in CLAIMS), ("proofs", ""), ("benchmarks", ""), ("tests", "tests")]
)
def test_no_circle_beside_the_package(folder: str, prefix: str) -> None:
    assert found(ROOT / folder, prefix) == []


PLAIN = "from p import {}\n"
LAZY = "def late():\n    from p import {}\n"
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.{} import name\n"


@pytest.mark.parametrize("back", [PLAIN, LAZY, TYPES, "import p.{}\n", "from . import {}\n", "from .{} import name\n"])
def test_a_circle_of_two_is_told(tree: Tree, back: str) -> None:
    files = {"__init__.py": "", "a.py": "from p.b import name\n", "b.py": back.format("a")}
    assert found(tree(files), "p") == ["p.a -> p.b -> p.a"]


def test_a_longer_circle_is_told_once_and_in_order(tree: Tree) -> None:
    files = {"a.py": "import b\n", "b.py": "import c\n", "c.py": "import a\n", "d.py": "import a\n"}
    assert found(tree(files)) == ["a -> b -> c -> a"]


def test_a_file_that_asks_its_own_room_is_on_a_circle(tree: Tree) -> None:
    files = {"__init__.py": "from p.a import name\n", "a.py": "from p import other\n"}
    assert found(tree(files), "p") == ["p -> p.a -> p"]


def test_a_module_of_the_room_is_not_the_room(tree: Tree) -> None:
    files = {"__init__.py": "from p.a import name\n", "a.py": "from p import b\n", "b.py": ""}
    assert found(tree(files), "p") == []
