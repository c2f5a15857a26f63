from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise

import pytest

from catchment.commands.scan.page import scan_html
from catchment.commands.scan.page import write_page as write_scan_page
from catchment.errors import StoreError
from catchment.records import Admission, Interval, Panel, PlanePoint
from tests.samples import HOSTILE, curvature, gradients, sample_scan, self_check, subspace_card
from tests.unit.commands.compare.test_page import Outline


@pytest.fixture(scope="module")
def html():
    return scan_html(sample_scan(curvature=curvature(), gradients=gradients()))


def test_the_page_is_one_self_contained_document(html):
    outline = Outline(html)
    assert all(link.startswith("#") for link in outline.links)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.handlers == []
    assert set(outline.tags) & {"link", "iframe", "object", "base", "img"} == set()
    assert outline.tags["script"] == 1
    assert len(html.encode()) < 1_000_000
    assert outline.headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(outline.headings))


def test_the_policy_allows_exactly_the_inlined_style_and_script(html):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html) or pytest.fail("no policy")
    assert "default-src 'none'" in policy[1]
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) or pytest.fail(f"no {tag}")
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_every_text_of_the_record_is_escaped():
    s = sample_scan(curvature=curvature(), gradients=gradients())
    bad = "<b id=evil>&'\""
    plane = s.plane and replace(s.plane, task=bad, axes=(bad, bad), models=(PlanePoint(bad, 0.0, 0.0),))
    found = s.gradients and replace(
        s.gradients, pretrained=tuple(replace(x, name=bad, kind=bad) for x in s.gradients.pretrained)
    )
    text = scan_html(
        replace(
            s,
            model=replace(s.model, name=bad, architecture=bad),
            subspace=subspace_card(what=bad, hash=bad),
            admissions=(Admission(bad, 9, Interval(0.1, 0.0, 0.2, 0.95, bad), 0.0, False, bad),),
            basins=tuple(replace(basin, task=bad, sampling=bad, note=bad) for basin in s.basins),
            profiles=(replace(s.profiles[0], task=bad),),
            worst=(replace(s.worst[0], task=bad, note=bad),),
            sentence=bad,
            check=self_check(mode=bad, notes=(bad,), hash_before=bad, ok=False),
            panels=(Panel(bad, bad, False, 0.0, 60.0, bad), Panel("p", bad, True, 1.0, None, bad)),
            plane=plane,
            gradients=found,
            conditions={bad: [bad, {bad: bad}]},
            plan={bad: bad},
            warnings=(bad,),
            created=bad,
        )
    )
    assert text.count("evil") > 40
    assert "evil" not in Outline(text).ids
    assert HOSTILE not in scan_html(sample_scan(sentence=HOSTILE))


def test_sections_stand_in_the_order_of_the_navigation(html):
    wanted = ["basins", "places", "worst", "profiles", "plane", "curvature", "gradients", "tasks", "more", "check"]
    assert [name for name in Outline(html).ids if name in wanted] == wanted
    assert re.findall(r'<a href="#(\w+)">', html) == [*wanted, "conditions"]


def test_a_bracket_is_numbers_and_words_not_colour_alone(html):
    for words in ("0.0011 to 0.0016", "1% to 1.5%", "below 6e−4", "above 0.0064", "Undecided at 0.0016"):
        assert words in html
    assert {"bracketed", "undecided", "open below", "open above"} == set(
        re.findall(r'<span class="badge v-(?:kept|undecided)"><svg .*?</svg>((?:open|brack|undec)[^<]*)</span>', html)
    )


def test_every_figure_has_a_title_and_a_description(html):
    figures = re.findall(r'<svg[^>]*role="img"[^>]*>\s*(<title>[^<]+</title><desc>[^<]+</desc>)?', html)
    assert len(figures) > 20
    assert all(figures)


def test_the_plane_is_there_without_a_script_with_every_value():
    scan = sample_scan()
    html = scan_html(scan)
    plane = scan.plane or pytest.fail("the sample has a plane")
    for value in (plane.values[0][0], plane.values[7][7], plane.values[3][11]):
        assert f": {100 * value:.1f}%</title></rect>" in html
    figure = re.search(r'<figure class="surface" data-plane="([^"]+)" hidden>', html) or pytest.fail("no surface")
    data = json.loads(unescape(figure[1]))
    assert len(data["score"]) == len(plane.ys)
    assert data["score"][7][7] == pytest.approx(plane.values[7][7], abs=1e-5)
    assert data["models"][1] == ["out/arithmetic-tune", 0.0041, 0.0]


def test_what_was_not_bought_stays_in_its_place_with_its_price():
    html = scan_html(
        sample_scan(plane=None, panels=(Panel("plane", "Plane", False, 0.0, 178.0),), plan={"budget_seconds": 600})
    )
    section = html[html.index('<section id="plane" class="greyed"') :]
    assert "About 3 min more; run again with --budget 13m." in section[:600]
    assert 'href="#plane"' in html
    assert 'id="more"' not in html
    assert 'id="gradients"' not in html


def test_a_panel_of_no_section_stands_under_more(html):
    more = html[html.index('<section id="more"') : html.index('<section id="check"')]
    assert "More directions for knowledge" in more
    assert "Its price here is not known." in more


def test_a_failed_self_check_is_said_at_the_top():
    html = scan_html(sample_scan(check=self_check(ok=False, hash_after="f" * 64)))
    assert html.index("The self-check failed") < html.index('<section id="basins"')
    assert "CHANGED" in html
    assert "The self-check failed" not in scan_html(sample_scan())


def test_a_record_with_nothing_optional_still_makes_a_page():
    html = scan_html(
        sample_scan(
            admissions=(), basins=(), profiles=(), worst=(), panels=(), plane=None, conditions={}, plan={}, warnings=()
        )
    )
    assert "No basin could be measured" in html
    assert [name for name in Outline(html).ids if not name.startswith("i-")] == [
        "main", "check", "check-title", "conditions", "conditions-title",
    ]  # fmt: skip


def test_filter_normalised_scales_carry_their_warning(html):
    assert html.count("These scales mean nothing elsewhere") == 1


def test_an_attack_is_called_an_upper_bound(html):
    assert "at most 3.1e−5" in html
    assert "Random moves reach at least 35 times as far as the attack" in html
    assert "No attack succeeded, which proves nothing" in html


def test_a_big_scan_stays_under_a_megabyte():
    scan = sample_scan(curvature=curvature(), gradients=gradients())
    shares = tuple(replace(s, name=f"{s.name}.{i}") for i in range(300) for s in gradients().pretrained)
    many = replace(
        scan,
        basins=tuple(replace(b, task=f"{b.task}{i}") for i in range(4) for b in scan.basins),
        profiles=tuple(replace(p, task=f"{p.task}{i}") for i in range(4) for p in scan.profiles),
        gradients=replace(gradients(), pretrained=shares),
    )
    text = scan_html(many)
    assert len(text.encode()) < 1_000_000
    assert "more rows are in" in text


def test_writing_makes_the_folder_and_names_a_failure(tmp_path):
    target = tmp_path / "new" / "report.html"
    assert write_scan_page(sample_scan(), str(target)) == target
    assert target.read_text(encoding="utf-8").rstrip().endswith("</html>")
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot write the page to '.*report\.html'"):
        write_scan_page(sample_scan(), tmp_path / "taken" / "report.html")
