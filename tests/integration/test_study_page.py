"""The page of a study in headless Chromium: every figure drawn, nothing overflows, readable in both themes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from catchment.commands.study.page import write_page
from tests.integration.browser import CHROMIUM, Browser, chromium
from tests.integration.test_page import BOXES, LOW_CONTRAST, WIDE
from tests.unit.commands.study.sample import one_checkpoint, sample_study

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="needs headless Chromium (chromium on PATH)"),
]

OPEN = "document.querySelectorAll('details').forEach((details) => { details.open = true; })"
CLOSE_LABELS = """[...document.querySelectorAll("svg.chart, svg.axis")].flatMap((svg) => {
  const along = (kind, start, end) => {
    const all = [...svg.querySelectorAll(kind)].map((t) => t.getBoundingClientRect()).filter((b) => b.width > 0)
      .sort((a, b) => a[start] - b[start]);
    return all.slice(1).map((b, i) => b[start] - all[i][end]).filter((gap) => gap < -2.5);
  };
  return [...along("text.beside-line", "top", "bottom"),
          ...along(":scope > text.xlab, :scope.axis > text", "left", "right")];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("study")
    long = replace(sample_study(), name="n" * 200, warnings=("w" * 300,))
    studies = {"rich": sample_study(), "one": one_checkpoint(), "long": long}
    return {name: write_page(study, folder / f"{name}.html") for name, study in studies.items()}


@pytest.fixture(autouse=True)
def _no_complaints(browser: Browser) -> Iterator[None]:
    browser.problems.clear()
    yield
    assert browser.problems == []


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("rich", 1280, False), ("long", 360, True), pytest.param("one", 1600, True, marks=pytest.mark.soak),
     ("one", 360, False), pytest.param("rich", 360, False, marks=pytest.mark.soak)],
)  # fmt: skip
def test_figures_are_drawn_and_nothing_overflows(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width=width, dark=dark, phone=width < 500)
    browser.run(OPEN)
    figures = browser.run(BOXES)
    assert len(figures) > 25
    for figure in figures:
        assert figure["width"] > 100, figure
        assert figure["height"] >= 10, figure
        assert figure["drawn"] >= 1, figure
        assert -12 <= figure["left"] <= figure["right"] <= figure["width"] + 12, figure
        assert figure["title"], figure
        assert figure["desc"], figure
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(WIDE) == []
    assert browser.run(LOW_CONTRAST) == []
    assert browser.run(CLOSE_LABELS) == []


def test_the_colours_of_the_matrix_are_told_apart_and_a_missing_place_is_hatched(
    browser: Browser, pages: dict[str, Path]
) -> None:
    for dark in (False, True):
        browser.open(pages["rich"], dark=dark)
        colours = browser.run(
            "[...document.querySelectorAll('.heat-key li')].map((l) => getComputedStyle(l).backgroundColor)"
        )
        assert len(set(colours)) == 13
        hatch = browser.run("getComputedStyle(document.querySelector('td.absent')).backgroundImage")
        assert "repeating-linear-gradient" in hatch
        assert browser.run("getComputedStyle(document.querySelector('td.inside')).outlineStyle") == "solid"


def test_lines_are_drawn_without_a_script(browser: Browser, pages: dict[str, Path]) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["rich"])
        visible = browser.run("document.querySelectorAll('.chart .line').length")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert visible > 50
