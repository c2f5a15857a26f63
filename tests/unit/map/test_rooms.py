"""Every folder stands in the map, imports point one way, and rooms import only each other's public names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.map.rooms import BELOW, COMMANDS, INNER, PARTS, allowed, missing_parts, strangers, trespasses

SOURCE = Path(__file__).parents[3] / "src" / "catchment"
Tree = Callable[[dict[str, str]], Path]


def test_every_room_stands_in_the_map() -> None:
    assert not strangers(SOURCE)


def test_every_command_has_the_same_files() -> None:
    assert not missing_parts(SOURCE)


def test_rooms_import_the_public_names_of_rooms_below() -> None:
    faults = trespasses(SOURCE)
    assert not faults, "\n".join(faults)


def test_the_map_is_ordered() -> None:
    """Each room stands after those that it may import, so that there is no circle of rooms."""
    for table in (BELOW, COMMANDS):
        order = list(table)
        assert all(order.index(below) < order.index(room) for room in table for below in table[room])


def test_pages_know_no_model() -> None:
    assert allowed("pages") == {"errors", "options", "records", "statistics", "runs"}
    assert {room for room in BELOW if "pages" in allowed(room)} == {"measuring", "commands", "cli", "demo"}


def test_a_file_that_a_command_lacks_is_told(tree: Tree) -> None:
    files = {f"commands/{name}/{part}.py": "" for name in COMMANDS for part in PARTS}
    source = tree(files)
    assert missing_parts(source) == []
    (source / "commands" / "scan" / "page.py").unlink()
    assert missing_parts(source) == ["scan has no page.py"]


def package(**files: str) -> dict[str, str]:
    """A package with all rooms, where ``methods.Method`` is public, and other files by path."""
    rooms = dict.fromkeys(("errors.py", "options.py", "__init__.py"), "")
    rooms |= {f"{room}/__init__.py": "__all__: list[str] = []\n" for room in BELOW if f"{room}.py" not in rooms}
    rooms |= {f"{name.replace('.', '/')}/__init__.py": "" for name in (*INNER, *(f"commands.{c}" for c in COMMANDS))}
    rooms["methods/__init__.py"] = "from catchment.methods.protocol import Method\n__all__ = ['Method']\n"
    rooms["methods/protocol.py"] = "class Method: ...\n"
    return rooms | files


def test_the_made_package_is_in_order(tree: Tree) -> None:
    source = tree(package())
    assert strangers(source) == []
    assert trespasses(source) == []


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("attic/__init__.py", "attic is not in the map"),
        ("attic/notes.py", "attic is not in the map"),
        ("attic.py", "attic is not in the map"),
        ("runs/attic/notes.py", "runs.attic is not in the map"),
        ("commands/rank/__init__.py", "commands.rank is not in the map"),
        ("runs.py", "runs is a file and a folder"),
    ],
)
def test_a_new_folder_or_file_does_not_escape(tree: Tree, path: str, told: str) -> None:
    assert strangers(tree(package(**{path: ""}))) == [told]


def test_a_room_of_the_map_that_is_gone_is_told(tree: Tree) -> None:
    source = tree(package())
    (source / "pages" / "__init__.py").unlink()
    assert strangers(source) == ["pages of the map is not there"]


LAZY = "def late():\n    from catchment.methods import Method\n"
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from catchment.methods import Method\n"


UPWARDS = "catchment.models.core: models may not import methods"


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("models/core.py", LAZY, UPWARDS),
        ("models/core.py", TYPES, UPWARDS),
        ("models/core.py", "import catchment.methods\n", UPWARDS),
        ("models/core.py", "from .. import methods\n", UPWARDS),
        ("models/core.py", "from ..methods import Method\n", UPWARDS),
        ("models/core.py", "import catchment\ncatchment.methods\n", UPWARDS),
        ("pages/charts.py", "from catchment import models\n", "catchment.pages.charts: pages may not import models"),
        ("options.py", "from catchment.records import Row\n", "catchment.options: options may not import records"),
        ("cli/main.py", "import catchment.demo\n", "catchment.cli.main: cli may not import demo"),
        ("runs/cells.py", "from catchment import compare\n",
         "catchment.runs.cells: runs imports compare of the package that shows it"),
    ],
)  # fmt: skip
def test_an_import_upwards_is_told(tree: Tree, path: str, text: str, told: str) -> None:
    assert trespasses(tree(package(**{path: text}))) == [told]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from catchment.methods.protocol import Method\n", "protocol"),
        ("from catchment.methods import protocol\n", "protocol"),
        ("import catchment.methods.protocol\n", "protocol"),
        ("from catchment import methods\nmethods.protocol.Method\n", "protocol"),
        ("from catchment import methods as m\nm.hidden\n", "hidden"),
        ("from catchment.methods import *\n", "*"),
    ],
)
def test_a_reach_into_a_room_is_told(tree: Tree, text: str, name: str) -> None:
    told = f"catchment.measuring.fill: imports {name}, which is not public in catchment.methods"
    assert trespasses(tree(package(**{"measuring/fill.py": text}))) == [told]


@pytest.mark.parametrize(
    "text", ["from catchment.methods import Method\n", "from catchment import methods\nmethods.Method\n", LAZY, TYPES]
)
def test_public_names_of_rooms_below_may_be_imported(tree: Tree, text: str) -> None:
    assert trespasses(tree(package(**{"measuring/fill.py": text}))) == []


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("commands/scan/run.py", "from catchment.commands.compare.record import Comparison\n",
         ["catchment.commands.scan.run: scan may not import compare"]),
        ("commands/tune/run.py", "from catchment.commands.compare.record import Comparison\n", []),
        ("commands/tune/run.py", "from catchment.commands.compare import record\n", []),
        ("commands/tune/run.py", "from catchment.commands.compare.record import _inner\n",
         ["catchment.commands.tune.run: imports _inner, which is not public in catchment.commands.compare.record"]),
        ("commands/__init__.py", "import catchment.commands.compare.record\n",
         ["catchment.commands: commands may not import compare"]),
        ("cli/main.py", "from catchment.commands.compare import record\n", []),
        ("measuring/fill.py", "from catchment.commands.compare import record\n",
         ["catchment.measuring.fill: measuring may not import commands"]),
    ],
)  # fmt: skip
def test_files_of_commands(tree: Tree, path: str, text: str, told: list[str]) -> None:
    source = tree(package(**{"commands/compare/record.py": "class Comparison: ...\n", path: text}))
    assert trespasses(source) == told
