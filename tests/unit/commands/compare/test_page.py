from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from catchment import pages
from catchment.commands.compare import words as compare_words
from catchment.commands.compare.page import notebook_html, page_html, write_page
from catchment.errors import StoreError
from catchment.records import Drift, DriftRow, Interval
from tests.samples import HOSTILE, sample_comparison

VOID = {"meta", "input", "link", "img", "br", "hr", "wbr", "col"}


class Outline(HTMLParser):
    """Tags, ids and headings of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "action", "srcset", "xlink:href"):
                self.links.append(value)
            if name.startswith("on") or name == "style":
                self.handlers.append(name)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


@pytest.fixture(scope="module")
def html():
    return page_html(sample_comparison())


def test_hostile_text_stays_text(html):
    assert Outline(html).tags["script"] == 1
    assert Outline(html).tags["img"] == 0
    assert "&lt;script&gt;document.title" in html
    assert HOSTILE not in html
    assert "<script" not in notebook_html(sample_comparison())


def test_every_text_of_the_record_is_escaped():
    sample = sample_comparison()
    bad = "<b id=evil>&'\""
    drift = Drift(
        4, 2.0, 1.0, 0.5, 4, (DriftRow("w", 0, bad, 4, 2.0, 1.0, 4), DriftRow("v", None, bad, 4, 2.0, 1.0, 4))
    )
    task = replace(sample.tasks[0], task=bad, reason=bad, warnings=(bad,), scorer=bad)
    formats = tuple(replace(result, name=bad) for result in task.formats)
    companion = replace(task.companion, name=bad) if task.companion else None
    task = replace(task, formats=formats, companion=companion)
    recovered = replace(sample.recovered, path=bad, recipe=bad, tasks=(task,), candidates=({bad: bad},))
    record = replace(
        sample,
        base=replace(sample.base, name=bad),
        tuned=replace(sample.tuned, name=bad, architecture=bad),
        tasks=(task,),
        verdict=bad,
        flips=(replace(sample.flips[0], task=bad, expected=bad, tuned_answer=bad),),
        texts=(replace(sample.texts[0], name=bad),),
        agreements=(replace(sample.agreements[0], name=bad),),
        drift=drift,
        recovered=recovered,
        conditions={bad: [bad, {bad: bad}], "list": [{bad: 1}]},
        plan={bad: bad},
        warnings=(bad,),
        created=bad,
    )
    for text in (page_html(record), notebook_html(record)):
        assert "evil" in text
        assert "evil" not in Outline(text).ids


def test_nothing_points_outside(html):
    outline = Outline(html)
    assert all(link.startswith("#") for link in outline.links)
    assert outline.handlers == []
    assert set(outline.tags) & {"link", "iframe", "object", "base", "img"} == set()
    css = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css


def test_links_lead_somewhere_and_ids_are_unique(html):
    outline = Outline(html)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert max(Counter(outline.ids).values()) == 1


def test_headings_descend_one_step_at_a_time(html):
    headings = Outline(html).headings
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_the_policy_allows_exactly_the_inlined_style_and_script(html):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_a_record_with_20000_long_flips_stays_under_a_megabyte():
    sample = sample_comparison()
    long = tuple(replace(sample.flips[i % 64], item=str(i), prompt=f"{i} & " * 900) for i in range(20_000))
    text = page_html(replace(sample, flips=long))
    assert 300_000 < len(text.encode()) < 1_000_000
    assert "20,000 are in" in text


def test_a_deep_model_stays_under_a_megabyte():
    kinds = [f"attention.part{i}" for i in range(14)]
    rows = tuple(DriftRow("t", i, kind, 100, 2.0, 0.1, 9) for i in range(126) for kind in kinds)
    text = page_html(sample_comparison(flip_count=400, drift=Drift(1, 1.0, 1.0, 1.0, 1, rows)))
    assert len(text.encode()) < 1_000_000


def test_a_record_with_nothing_optional_still_makes_a_page():
    bare = sample_comparison(
        flips=(), texts=(), agreements=(), drift=None, recovered=None, conditions={}, plan={}, warnings=()
    )
    tasks = (replace(bare.tasks[0], companion=None, formats=(), flips_lost=0, flips_gained=0),)
    text = page_html(replace(bare, tasks=tasks))
    assert "No item flipped." in text
    sections = [name for name in Outline(text).ids if not name.startswith("i-")]
    assert sections == ["main", "tasks", "tasks-title", "flips", "flips-title", "conditions", "conditions-title"]


def test_every_verdict_is_a_word_beside_its_symbol(html):
    badges = re.findall(r'<span class="badge v-[a-z-]+"><svg .*?</svg>([^<]*)</span>', html)
    assert {"gained", "lost", "kept", "undecided", "not measurable"} == set(badges)
    assert html.count('<span class="badge') == len(badges)


def test_contradicting_formats_are_named():
    task = sample_comparison().tasks[0]
    up, down = Interval(0.1, 0.05, 0.15, 0.95, "t"), Interval(-0.1, -0.15, -0.05, 0.95, "t")
    formats = tuple(replace(task.formats[0], difference=d) for d in (up, down))
    expected = "Difference from -10.0 to +10.0 points over 2 formats. The formats contradict each other."
    assert compare_words.format_note(replace(task, formats=formats)) == expected
    assert "contradict" not in compare_words.format_note(task)


def test_text_is_readable_in_both_schemes():
    css = pages.asset("catchment.pages/page.css")
    tokens = {name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", css)}
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent", "lost", "gained") for ground in ("bg", "surface")]
    pairs += [(name, f"{name}-tint") for name in ("gained", "lost", "kept", "undecided", "unmeasured")]
    pairs += [("ink", "undecided-tint"), ("surface", "accent")]
    for scheme in (0, 1):
        for ink, ground in pairs:
            assert contrast(tokens[ink][scheme], tokens[ground][scheme]) >= 4.5, (ink, ground, scheme)
        assert contrast(tokens["control"][scheme], tokens["bg"][scheme]) >= 3.0


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two hex colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_write_page_replaces_the_file_and_leaves_nothing_beside(tmp_path):
    target = tmp_path / "new" / "report.html"
    assert write_page(sample_comparison(warnings=("first version",)), target) == target
    write_page(sample_comparison(), str(target))
    assert "first version" not in target.read_text(encoding="utf-8")
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_write_page_into_a_file_is_a_store_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot write the page to '.*report\.html'"):
        write_page(sample_comparison(), tmp_path / "taken" / "report.html")


def test_a_full_disk_is_a_store_error_and_keeps_the_old_page(tmp_path, monkeypatch):
    target = write_page(sample_comparison(), tmp_path / "report.html")
    before = target.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_page(sample_comparison(seed=1), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_notebook_shows_verdict_table_and_three_flips():
    sample = sample_comparison()
    text = notebook_html(sample)
    outline = Outline(text)
    assert outline.tags["tr"] == 1 + len(sample.tasks)
    assert outline.tags["details"] == 3
    assert "Gained arithmetic, lost recall" in text
    css = pages.asset("catchment.commands.compare/notebook.css")
    assert all(rule.strip().startswith(".catchment-card") for rule in re.findall(r"(?:^|})([^{}]+){", css))
