"""The page of a tune."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from catchment.cli.runner import run
from catchment.commands.tune.page import tune_html
from catchment.commands.tune.page import write_page as write_tune_page
from catchment.commands.tune.record import Tune
from catchment.records import FenceLook, Interval, PilotSteps, to_json
from tests.samples import HOSTILE
from tests.unit.commands.compare.test_page import Outline
from tests.unit.commands.tune.test_words import held_out, sample_tune, tune_run

LOOKS = (
    FenceLook(15, "recall", 128, 0.01, -0.03, 0.05, "inside", "estimated"),
    FenceLook(30, "recall", 128, 0.12, 0.06, 0.18, "broken", "shown", 0.25, 0.008),
)
ROOMS = (
    PilotSteps("recall", 48, 0.00031, 31.0, None, 0.004),
    PilotSteps("language", 48, None, None, 0.0009, 0.004),
)


def whole() -> Tune:
    """A tune with all that a page can show."""
    tune = sample_tune(rooms=ROOMS)
    fenced = replace(tune.runs[0], looks=LOOKS, held_out=held_out(-0.31), stopped="the second pull below 0.1")
    return replace(tune, runs=(fenced, tune.runs[1]))


def bare() -> Tune:
    """A tune of which nothing was measured."""
    return sample_tune(
        runs=(tune_run(loss=None),), headline="unmeasured", sentence="Nothing was compared.", protected=(), against=(),
        comparison=None, warnings=(),
    )  # fmt: skip


@pytest.mark.parametrize("tune", [whole(), bare()], ids=["whole", "bare"])
def test_the_page_is_one_self_contained_document(tune: Tune) -> None:
    html = tune_html(tune)
    outline = Outline(html)
    assert all(link.startswith("#") for link in outline.links)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.handlers == []
    assert set(outline.tags) & {"link", "iframe", "object", "base", "img"} == set()
    assert not re.search(r"https?://(?!www\.w3\.org)", html)
    assert len(html.encode()) < 1_000_000
    assert outline.headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(outline.headings))
    assert "default-src 'none'" in html


def test_the_tables_of_a_whole_tune() -> None:
    html = tune_html(whole())
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "sift on 900 rows of sums.jsonl , 100 more held out." in text
    assert "Protected: recall, with a bound of 2.0 points" in text
    assert "1,345,150 (1.0%) 120 84,000 61 2,690 2.100, 1.400" in text
    assert "2.000, 1.690, −0.310 [−0.410, −0.210]" in text
    assert "stopped: the second pull below 0.1" in text
    assert "recall protected 400 87.1% 50.0% 62.0% +12.0 [+10.0 to +14.0]" in text
    assert "arithmetic 400 33.4% 50.0% 40.0% −10.0 [−12.0 to −8.0]" in text
    assert "30 recall 128 +12.0 broken, shown 0.25 +0.8" in text
    assert "15 recall 128 +1.0 inside, estimated – –" in text
    assert "recall 48 3.1e−04 31 beyond 4.0e−03" in text
    assert "language 48 beyond 4.0e−03 – 9.0e−04" in text
    order = [name for name in Outline(html).ids if name in ("tune", "tasks", "flips", "drift", "conditions")]
    assert order == ["tune", "tasks", "flips", "drift", "conditions"]


def test_a_page_without_a_comparison() -> None:
    html = tune_html(bare())
    assert "Nothing was compared." in html
    assert "<h1>Unmeasured</h1>" in html
    assert "How it was tuned" in html
    for words in ("Protected against plain", "What the fence saw", "The room before training", 'id="tasks"'):
        assert words not in html


@pytest.mark.parametrize("tune", [whole(), bare()], ids=["whole", "bare"])
def test_a_harmful_tune_says_so_in_its_title(tune: Tune) -> None:
    sentence = "This tune is harmful: it lost recall (-12 points, -14 to -10)."
    html = tune_html(replace(tune, headline="harmful", sentence=sentence))
    title = re.search(r"<h1[^>]*>(.*?)</h1>", html, re.DOTALL) or pytest.fail("no title")
    assert title[1].strip().startswith("Harmful")
    assert "This tune is harmful: it lost recall (−12 points, −14 to −10)." in html


def test_warnings_stand_once_above_everything() -> None:
    html = tune_html(whole())
    assert html.count("12 rows were cut") == 1
    assert html.index("12 rows were cut") < html.index('<section id="tune"')


def test_every_text_of_the_record_is_escaped() -> None:
    bad = "<b id=evil>&'\""
    tune = whole()
    looks = tuple(replace(look, task=bad) for look in LOOKS)
    assert tune.comparison is not None
    for comparison in (None, replace(tune.comparison, verdict=bad)):
        html = tune_html(
            replace(
                tune, base=bad, method=bad, settings={bad: bad}, data={**tune.data, "name": bad, "kind": bad},
                runs=tuple(replace(r, name=bad, path=bad, looks=looks, stopped=bad) for r in tune.runs),
                sentence=bad, protected=(bad,), rooms=tuple(replace(room, task=bad) for room in ROOMS),
                against=tuple(replace(row, task=bad) for row in tune.against), comparison=comparison,
                conditions={bad: bad}, warnings=(bad,), created=bad,
            )
        )  # fmt: skip
        assert html.count("evil") > 10
        assert "evil" not in Outline(html).ids
    assert HOSTILE not in tune_html(sample_tune(sentence=HOSTILE, base=HOSTILE))


def test_many_looks_stay_under_a_megabyte() -> None:
    tune = whole()
    looks = tuple(replace(LOOKS[k % 2], step=k) for k in range(500))
    html = tune_html(replace(tune, runs=(replace(tune.runs[0], looks=looks), tune.runs[1])))
    assert len(html.encode()) < 1_000_000


def test_report_writes_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = whole()
    (tmp_path / "tune.json").write_text(to_json(tune))
    assert run("report", [str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == tune_html(tune)
    assert tune.sentence.split(".")[0].split("(")[0] in " ".join(capsys.readouterr().out.split())


def test_report_of_a_damaged_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tune.json").write_text(to_json(whole())[:100])
    assert run("report", [str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is not a record of ours" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_writing_makes_the_folder(tmp_path: Path) -> None:
    assert write_tune_page(bare(), tmp_path / "new/report.html").read_text(encoding="utf-8") == tune_html(bare())


def test_an_interval_of_nothing_is_drawn_all_the_same() -> None:
    tune = sample_tune()
    row = replace(tune.against[0], difference=Interval(0.0, -1.0, 1.0, 0.95, "tango"))
    assert "−100.0 to +100.0" in tune_html(replace(tune, against=(row,)))
