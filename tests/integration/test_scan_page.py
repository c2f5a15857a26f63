"""The page of a scan, and the room on the page of a comparison, in headless Chromium."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from catchment.commands.compare.page import write_page
from catchment.commands.scan.page import write_page as write_scan_page
from tests.integration.browser import CHROMIUM, Browser, chromium
from tests.integration.test_page import BOXES, LOW_CONTRAST, WIDE
from tests.samples import curvature, gradients, rooms, sample_comparison, sample_scan

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="needs headless Chromium (chromium on PATH)"),
]

READOUT = "document.querySelector('.readout').textContent"
DRAWN = """(() => { const c = document.querySelector("canvas"), copy = document.createElement("canvas");
  copy.width = c.width; copy.height = c.height;
  const p = copy.getContext("2d", {willReadFrequently: true});
  p.drawImage(c, 0, 0);
  const data = p.getImageData(0, 0, c.width, c.height).data;
  const seen = new Set(); let hash = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) {
    seen.add((data[i] >> 4) * 256 + (data[i + 1] >> 4) * 16 + (data[i + 2] >> 4));
    hash = (hash * 31 + data[i] + i) | 0;
  }
  return {colours: seen.size, hash}; })()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scan = sample_scan(curvature=curvature(), gradients=gradients())
    return write_scan_page(scan, tmp_path_factory.mktemp("scan") / "report.html")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(sample_comparison(rooms=rooms()), tmp_path_factory.mktemp("room") / "report.html")


@pytest.fixture(autouse=True)
def _no_complaints(browser: Browser) -> Iterator[None]:
    browser.problems.clear()
    yield
    assert browser.problems == []


def key(browser: Browser, name: str, shift: bool = False) -> None:
    codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "+": 187}
    common = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name], "modifiers": 8 if shift else 0}
    browser.call("Input.dispatchKeyEvent", type="keyDown", **common)
    browser.call("Input.dispatchKeyEvent", type="keyUp", **common)


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_figures_are_drawn_and_nothing_overflows(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark, phone=width < 500)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    figures = browser.run(BOXES)
    scan = sample_scan()
    profiles = sum(2 for _ in scan.profiles)
    assert len(figures) == 2 * len(scan.basins) + len(scan.worst) + profiles + 2 + 1 + 4
    for figure in figures:
        assert figure["width"] > 100, figure
        assert figure["height"] > 10, figure
        assert figure["drawn"] >= 3, figure
        assert -12 <= figure["left"] <= figure["right"] <= figure["width"] + 12, figure
        assert figure["title"], figure
        assert figure["desc"], figure
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(WIDE) == []
    assert browser.run(LOW_CONTRAST) == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_room_is_drawn_and_nothing_overflows(browser: Browser, compared: Path, width: int, dark: bool) -> None:
    browser.open(compared, width=width, dark=dark, phone=width < 500)
    figures = [figure for figure in browser.run(BOXES) if "toleran" in figure["title"] or "crossing" in figure["title"]]
    assert len(figures) == len(rooms())
    assert all(-12 <= f["left"] <= f["right"] <= f["width"] + 12 and f["width"] > 100 for f in figures)
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(WIDE) == []
    assert browser.run(LOW_CONTRAST) == []


def test_labels_of_an_axis_do_not_run_into_each_other(browser: Browser, page: Path) -> None:
    for width in (360, 1280):
        browser.open(page, width=width, phone=width < 500)
        close = browser.run(
            """[...document.querySelectorAll("svg")].flatMap((svg) => {
                 if (svg.getBoundingClientRect().width < 100) return [];
                 const all = [...svg.querySelectorAll(":scope > text.xlab, :scope.axis > text")]
                   .map((t) => t.getBoundingClientRect()).filter((b) => b.width > 0);
                 return all.slice(1).map((b, i) => b.left - all[i].right).filter((gap) => gap < 2); })"""
        )
        assert close == [], width


def test_the_surface_is_turned_zoomed_and_switched(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('#plane').scrollIntoView({behavior: 'instant'})")
    first = browser.run(DRAWN)
    assert first["colours"] > 20
    box = browser.run("(({left, top, width, height}) => [left, top, width, height])"
                      "(document.querySelector('canvas').getBoundingClientRect())")  # fmt: skip
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    for kind, at in (("mousePressed", x), ("mouseMoved", x + 60), ("mouseReleased", x + 60)):
        browser.call("Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", buttons=1, clickCount=1)
    turned = browser.run(DRAWN)
    assert turned["hash"] != first["hash"]
    browser.run("document.querySelector('[data-zoom=\"1.25\"]').click()")
    assert browser.run(DRAWN)["hash"] != turned["hash"]
    browser.run("document.querySelector('[data-zoom=\"0\"]').click()")
    browser.run("document.querySelector('[data-show=companion]').click()")
    assert browser.run("document.querySelector('[data-show=companion]').getAttribute('aria-pressed')") == "true"
    browser.run("document.querySelector('[data-show=score]').click()")
    assert browser.run("document.querySelector('[data-show=companion]').getAttribute('aria-pressed')") == "false"


def test_the_surface_is_read_by_pointer_and_by_keyboard(browser: Browser, page: Path) -> None:
    plane = sample_scan().plane
    assert plane is not None
    browser.open(page)
    browser.run("document.querySelector('canvas').focus()")
    before = browser.run(DRAWN)["hash"]
    key(browser, "ArrowLeft")
    key(browser, "+")
    assert browser.run(DRAWN)["hash"] != before
    key(browser, "ArrowRight", shift=True)
    assert browser.run(READOUT) == f"0.000857, 0: {100 * plane.values[7][8]:.1f}%"
    key(browser, "ArrowDown", shift=True)
    assert browser.run(READOUT) == f"0.000857, −0.000857: {100 * plane.values[6][8]:.1f}%"
    browser.run("document.querySelector('[data-show=companion]').click()")
    assert browser.run(READOUT).endswith(f": {plane.companions[6][8]:.4g}")
    read = browser.run(READOUT)
    end = time.monotonic() + 20
    for nudge in itertools.cycle((0, 1)):  # the page may still be scrolling to what has the focus
        browser.run("document.querySelector('canvas').scrollIntoView({behavior: 'instant', block: 'center'})")
        box = browser.run("(({left, top, width, height}) => [left, top, width, height])"
                          "(document.querySelector('canvas').getBoundingClientRect())")  # fmt: skip
        at = {"x": box[0] + box[2] / 2 + nudge, "y": box[1] + 0.75 * box[3]}
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        if browser.run(READOUT) != read or time.monotonic() > end:
            break
        time.sleep(0.05)
    assert browser.run(READOUT) != read


def test_the_surface_follows_the_theme(browser: Browser, page: Path) -> None:
    browser.open(page)
    light = browser.run(DRAWN)["hash"]
    browser.run("document.querySelector('button.theme').click()")
    dark = browser.run(f"new Promise((done) => setTimeout(() => done({DRAWN}), 0))")["hash"]
    browser.run("document.querySelector('button.theme').click(); localStorage.clear()")
    assert dark != light


def test_without_a_script_the_plane_is_a_heat_map(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.run("document.querySelector('.surface').checkVisibility()") is False
        assert browser.run("document.querySelectorAll('.plane-map rect title').length") == 2 * 225
        assert browser.run("[...document.querySelectorAll('.plane-map')].every((map) => map.checkVisibility())") is True
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_bars_stand_where_the_axis_says(browser: Browser, page: Path) -> None:
    browser.open(page)
    labels = browser.run(
        """Object.fromEntries([...document.querySelectorAll("#basins thead .axis text")].map((text) => {
             const b = text.getBoundingClientRect(); return [text.textContent, (b.left + b.right) / 2]; }))"""
    )
    bars = browser.run(
        """[...document.querySelectorAll("#basins .forest")].map((svg) => {
             const b = svg.querySelector(".bracket").getBoundingClientRect(); return [b.left, b.right]; })"""
    )
    per_decade = labels["0.01"] - labels["0.001"]

    def at(value: float) -> float:
        return float(labels["0.001"] + per_decade * math.log10(value / 0.001))

    assert bars[1] == pytest.approx([at(0.0011), at(0.0016)], abs=1.5)
    assert bars[2] == pytest.approx([at(0.0008), at(0.0032)], abs=1.5)


def test_print_hides_the_surface_and_opens_the_tables(browser: Browser, page: Path) -> None:
    browser.open(page, width=794)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    assert browser.run("document.querySelector('.surface').checkVisibility()") is False
    assert browser.run(LOW_CONTRAST) == []
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    browser.call("Emulation.setEmulatedMedia", media="")


def test_a_long_name_does_not_break_the_phone(browser: Browser, tmp_path: Path) -> None:
    scan = sample_scan()
    word = "averyveryverylongunbrokenname" * 4
    assert scan.plane is not None
    long = replace(
        scan,
        model=replace(scan.model, name=word),
        sentence=word,
        basins=tuple(replace(basin, task=f"{word}{i}") for i, basin in enumerate(scan.basins)),
        profiles=tuple(replace(profile, task=word) for profile in scan.profiles),
        worst=tuple(replace(worst, task=word) for worst in scan.worst),
        panels=tuple(replace(panel, title=word, note=word) for panel in scan.panels),
        plane=replace(scan.plane, task=word, axes=(word, word)),
        warnings=(word,),
    )
    browser.open(write_scan_page(long, tmp_path / "report.html"), width=380, phone=True)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert browser.run(WIDE) == []
    assert browser.run("document.documentElement.scrollWidth") == 380
