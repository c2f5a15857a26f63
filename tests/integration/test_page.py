"""The page in headless Chromium: nothing on the console, every figure drawn, usable at each size and scheme."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from catchment.commands.compare.page import write_page
from tests.integration.browser import CHROMIUM, Browser, chromium
from tests.samples import sample_comparison

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="needs headless Chromium (chromium on PATH)"),
]

BOXES = """[...document.querySelectorAll("svg[role=img]")].map((svg) => {
  const parts = [...svg.querySelectorAll("rect, circle, line")].map((part) => part.getBoundingClientRect());
  const box = svg.getBoundingClientRect();
  return {title: svg.querySelector("title").textContent, desc: svg.querySelector("desc").textContent,
          width: box.width, height: box.height,
          left: Math.min(...parts.map((p) => p.left)) - box.left,
          right: Math.max(...parts.map((p) => p.right)) - box.left,
          drawn: parts.filter((p) => p.width + p.height > 0).length};
})"""
WIDE = """[...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.right > visualViewport.width + 0.5 && !element.closest(".scroll, .sr, svg")
         && !element.closest(".cards thead");
}).map((element) => element.outerHTML.slice(0, 120))"""
LOW_CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                             return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const luminance = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => { for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor); if (colour[3] === 255) return colour; }
    return [255, 255, 255, 255]; };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("script, style, .sr, title, desc")) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element.closest("svg") ? style.fill : style.color);
    const [high, low] = [luminance(ink), luminance(ground(element))].sort((a, b) => b - a);
    if ((high + 0.05) / (low + 0.05) < 4.5) bad.push(element.outerHTML.slice(0, 120));
  }
  return bad;
})()"""
SHOWN = """[...document.querySelectorAll(".flips > li")].filter((item) => item.checkVisibility())
  .map((item) => item.dataset.direction + " " + item.dataset.task)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(sample_comparison(), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(autouse=True)
def _no_complaints(browser: Browser) -> Iterator[None]:
    browser.problems.clear()
    yield
    assert browser.problems == []


@pytest.mark.parametrize("width", [360, 380, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_figures_are_drawn_and_nothing_overflows(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark, phone=width < 500)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    figures = browser.run(BOXES)
    sample = sample_comparison()
    formats = sum(len(task.formats) for task in sample.tasks)
    assert len(figures) == 7 + 3 + len(sample.texts) + len(sample.agreements) + formats + 2
    for figure in figures:
        assert figure["width"] > 60, figure
        assert figure["height"] > 10, figure
        assert figure["drawn"] >= 3, figure
        assert -8 <= figure["left"] <= figure["right"] <= figure["width"] + 8, figure
        assert figure["title"], figure
        assert figure["desc"], figure
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(WIDE) == []
    assert browser.run(LOW_CONTRAST) == []


def test_dots_stand_where_the_axis_says(browser: Browser, page: Path) -> None:
    browser.open(page)
    centres = browser.run(
        """[...document.querySelectorAll("#tasks .forest")].map((svg) => {
             const middle = (part) => { const b = part.getBoundingClientRect(); return (b.left + b.right) / 2; };
             return [middle(svg.querySelector(".zero")), middle(svg.querySelector(".dot"))];
           })"""
    )
    labels = browser.run(
        """Object.fromEntries([...document.querySelectorAll("#tasks thead .axis text")].map((text) => {
             const b = text.getBoundingClientRect(); return [text.textContent, (b.left + b.right) / 2]; }))"""
    )
    scale = (labels["20"] - labels["0"]) / 0.20
    estimates = [task.difference.estimate for task in sample_comparison().tasks]
    for (zero, dot), estimate in zip(centres, estimates, strict=True):
        assert zero == pytest.approx(labels["0"], abs=1.0)
        assert dot - zero == pytest.approx(scale * estimate, abs=1.5)


def test_hostile_prompts_do_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.title").startswith("Gained arithmetic")
    assert browser.run("document.querySelector('.flips pre').textContent").startswith("<script>document.title")


def test_flips_are_filtered_by_task_direction_and_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    flips = sample_comparison().flips
    assert len(browser.run(SHOWN)) == 12
    browser.run("document.querySelector('button.more').click()")
    assert len(browser.run(SHOWN)) == 36

    def choose(script: str) -> list[str]:
        browser.run(f"{{const f = document.querySelector('.filters').elements; {script};"
                    "f.text.dispatchEvent(new Event('input', {bubbles: true}))}")  # fmt: skip
        return list(browser.run(SHOWN))

    lost_sums = sum(flip.task == "arithmetic" and flip.direction == "lost" for flip in flips)
    assert choose("f.task.value = 'arithmetic'; f.direction[1].checked = true") == ["lost arithmetic"] * lost_sums
    assert set(choose("f.task.value = 'arithmetic'; f.direction[2].checked = true")) == {"gained arithmetic"}
    assert choose("f.task.value = ''; f.direction[0].checked = true; f.text.value = '<SCRIPT> key'") == ["lost recall"]
    assert "1 of 1 that match" in browser.run("document.querySelector('.count').textContent")
    assert choose("f.text.value = 'no such words'") == []
    assert browser.run("document.querySelector('.count').textContent") == "No flipped item matches."


def test_everything_is_reached_and_opened_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = []
    for _ in range(40):
        browser.key("Tab")
        seen.append(browser.run("document.activeElement.tagName + '.' + document.activeElement.className"))
        ring = browser.run(
            """(() => { const a = document.activeElement;
                 const s = getComputedStyle(a.matches(".segments input") ? a.nextElementSibling : a);
                 return parseFloat(s.outlineWidth) > 0 && s.outlineStyle !== "none"; })()"""
        )
        assert ring, seen[-1]
        if browser.run("!!document.activeElement.closest('.flips')"):
            break
    assert seen[0] == "A.skip"
    assert {"BUTTON.theme", "SELECT.", "INPUT.", "SUMMARY."} <= set(seen)
    assert browser.run("document.activeElement.closest('details').open") is False
    browser.key("Enter", "\r")
    assert browser.run("document.activeElement.closest('details').open") is True


def test_the_theme_follows_the_system_and_the_button(browser: Browser, page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(page, dark=True)
    dark = browser.run(ground)
    browser.open(page)
    light = browser.run(ground)
    assert dark != light
    browser.run("document.querySelector('button.theme').click()")
    assert browser.run(ground) == dark
    browser.open(page)
    assert browser.run(ground) == dark
    browser.run("document.querySelector('button.theme').click(); localStorage.clear()")
    assert browser.run(ground) == light


def test_print_opens_what_is_folded_and_hides_controls(browser: Browser, page: Path) -> None:
    browser.open(page, width=794)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    controls = "[...document.querySelectorAll('button, select, input')].filter((c) => c.checkVisibility()).length"
    assert browser.run(controls) == 0
    assert browser.run(LOW_CONTRAST) == []
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    browser.call("Emulation.setEmulatedMedia", media="")


def test_without_script_every_flip_is_a_plain_list(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert len(browser.run(SHOWN)) == len(sample_comparison().flips)
        assert browser.run("document.querySelector('.filters').checkVisibility()") is False
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_long_names_and_words_do_not_break_the_phone(browser: Browser, tmp_path: Path) -> None:
    sample = sample_comparison()
    word = "averyveryverylongunbrokenname" * 4
    tasks = (replace(sample.tasks[0], task=word), *(replace(task, formats=()) for task in sample.tasks[1:]))
    flips = tuple(replace(flip, task=word, prompt=word * 9, base_answer=word) for flip in sample.flips[:5])
    tuned = replace(sample.tuned, name=word)
    long = replace(sample, tasks=tasks, flips=flips, tuned=tuned, verdict=word, warnings=(word,))
    browser.open(write_page(long, tmp_path / "report.html"), width=380, phone=True)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert browser.run(WIDE) == []
    assert browser.run("document.documentElement.scrollWidth") == 380
