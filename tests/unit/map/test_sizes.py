"""Functions fit on a screen, files are one idea, and no function asks for more than eight things."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.map.rooms import BELOW
from tests.unit.map.sizes import LINES, MEDIAN, Function, functions, long_files, too_long, too_many_parameters

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src" / "catchment"
Tree = Callable[[dict[str, str]], Path]
TEST_FILE = 500
SETTINGS = {
    "capabilities.agreement:agreement": "how a model is asked and measured, by keyword",
    "capabilities.evaluate:evaluate": "how a model is asked and measured, by keyword",
    "capabilities.prepared:prepare": "how a model is asked, by keyword",
    "capabilities.tables:task_from_dataset": "columns of a table and options of its task, by keyword",
    "landscape.curvature:curvature": "what is measured, how exactly and where, by keyword",
    "methods.sift.core:Sift.__init__": "which entries train and how they are chosen, by keyword",
    "models.loading:card_of": "what says which model it is and how it is loaded, by keyword",
    "models.loading:load": "what says which model it is and how it is loaded, by keyword",
    "training.callbacks:CapabilityCallback.__init__": "what is measured, when and how, by keyword",
    "training.fence:Fence.__init__": "what is bounded, when it is looked at and how, by keyword",
}
"""Public functions whose keywords are the settings of a user, each with what they say."""


@pytest.fixture(scope="module")
def ours() -> list[Function]:
    return functions(SOURCE)


def test_the_median_function_is_short(ours: list[Function]) -> None:
    assert statistics.median(f.lines for f in ours) <= MEDIAN


def test_no_function_is_long(ours: list[Function]) -> None:
    assert too_long(ours) == {}


def test_no_short_function_says_why_it_is_long(ours: list[Function]) -> None:
    assert [f.name for f in ours if f.reason and f.lines <= LINES] == []


def test_no_function_has_many_parameters(ours: list[Function]) -> None:
    assert {name: number for name, number in too_many_parameters(ours).items() if name not in SETTINGS} == {}


def test_what_may_have_many_parameters_is_public_and_has_them(ours: list[Function]) -> None:
    assert too_many_parameters(ours).keys() >= SETTINGS.keys()
    for name in SETTINGS:
        room, public = name.split(".")[0], name.split(":")[1].split(".")[0]
        assert room in BELOW
        assert f'"{public}"' in (SOURCE / room / "__init__.py").read_text("utf-8").partition("__all__ = ")[2]


def test_no_file_is_long() -> None:
    assert long_files(SOURCE) == {}


@pytest.mark.parametrize("folder", ["proofs", "benchmarks"])
def test_proofs_and_benchmarks_keep_the_same_limits(folder: str) -> None:
    theirs = functions(ROOT / folder)
    assert too_long(theirs) == too_many_parameters(theirs) == {}
    assert long_files(ROOT / folder) == {}


def test_no_file_of_tests_is_very_long() -> None:
    assert long_files(ROOT / "tests", TEST_FILE) == {}


def lines(number: int, head: str = "def f():", inside: str = "    pass") -> str:
    return "\n".join([head, *[inside] * (number - 1)]) + "\n"


def test_a_long_function_is_told(tree: Tree) -> None:
    inner = f"class C:\n    {lines(70, 'def m(self):', '        pass')}"
    source = tree({"short.py": lines(60), "long.py": lines(61), "room/inner.py": inner})
    assert too_long(functions(source)) == {"long:f": 61, "room.inner:C.m": 70}


@pytest.mark.parametrize("where", ["def f():  # long: one table", "# long: one table\ndef f():",
                                   "# long: one table\n@cache\ndef f():"])  # fmt: skip
def test_a_long_function_may_say_why(tree: Tree, where: str) -> None:
    assert too_long(functions(tree({"a.py": lines(70, where)}))) == {}


def test_a_reason_counts_for_one_function(tree: Tree) -> None:
    source = tree({"a.py": lines(70, "# long: one table\ndef f():") + lines(70, "def g():")})
    assert too_long(functions(source)) == {"a:g": 70}


@pytest.mark.parametrize(
    ("head", "number"),
    [
        ("def f(a, b, c, d, e, f, g, h, i):", 9),
        ("def f(a, b, c, d, e, /, f, g, *, h, i):", 9),
        ("def f(a, b, c, d, e, f, g, *h, **i):", 9),
        ("async def f(self, a, b, c, d, e, f, g, h, i):", 9),
        ("def f(self, a, b, c, d, e, f, g, h):", 0),
        ("def f(a, b, c, d, e, f, g, h):", 0),
    ],
)
def test_nine_parameters_are_told(tree: Tree, head: str, number: int) -> None:
    assert too_many_parameters(functions(tree({"a.py": lines(2, head)}))) == ({"a:f": number} if number else {})


def test_a_file_of_401_lines_is_told(tree: Tree) -> None:
    assert long_files(tree({"room/a.py": "x = 1\n" * 401, "b.py": "x = 1\n" * 400})) == {"room/a.py": 401}
