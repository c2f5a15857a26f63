from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import fields, replace
from itertools import pairwise

import pytest

from catchment.commands.study import words
from catchment.commands.study.page import study_html, telling, write_page
from catchment.commands.study.record import (
    BASE,
    Cell,
    Change,
    Checkpoint,
    Flag,
    Gap,
    Matrix,
    Point,
    Study,
    Trajectory,
    TuningCard,
)
from catchment.errors import StoreError
from catchment.records import Interval
from tests.samples import HOSTILE
from tests.unit.commands.compare.test_page import Outline
from tests.unit.commands.study.sample import MODEL, empty_study, interval, one_checkpoint, sample_study

NAMES = ["trajectories", "forgetting", "gain", "formats", "contrasts", "noise", "scans", "missing"]


@pytest.fixture(scope="module")
def html() -> str:
    return study_html(sample_study())


@pytest.fixture(scope="module")
def one() -> str:
    return study_html(one_checkpoint())


def section(text: str, name: str) -> str:
    return text[text.index(f'<section id="{name}"') :].partition("</section>")[0]


def test_the_page_is_one_self_contained_document(html: str, one: str) -> None:
    for text in (html, one, study_html(empty_study())):
        outline = Outline(text)
        local = [link for link in outline.links if not link.startswith("#")]
        assert local == ["cells.csv", "cells.parquet"]
        assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
        assert len(outline.ids) == len(set(outline.ids))
        assert outline.handlers == []
        assert set(outline.tags) & {"link", "iframe", "object", "base", "img"} == set()
        assert outline.tags["script"] == 1
        assert outline.headings[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(outline.headings))


def test_the_policy_allows_exactly_the_inlined_style_and_script(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html) or pytest.fail("no policy")
    assert "default-src 'none'" in policy[1]
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) or pytest.fail(f"no {tag}")
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def hostile(value: object, text: str) -> object:
    """The same record with every name in it replaced."""
    if isinstance(value, str):
        return text if value and value not in (BASE, "done", "missing", "failed", "refused", "incomplete") else value
    if isinstance(value, tuple):
        return tuple(hostile(one, text) for one in value)
    if isinstance(value, dict):
        return {key: hostile(one, text) for key, one in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        skipped = ("verdict", "revision", "method", "headline")
        return replace(value, **{  # type: ignore[type-var]
            f.name: hostile(getattr(value, f.name), text) for f in fields(value) if f.name not in skipped  # type: ignore[arg-type]
        })  # fmt: skip
    return value


@pytest.mark.parametrize("study", [sample_study(tokens=False), one_checkpoint()])
def test_every_text_of_the_record_is_escaped(study: Study) -> None:
    bad = "<b id=evil>&'\"_/</b>"
    text = study_html(hostile(study, bad))  # type: ignore[arg-type]
    assert text.count("evil") > 60
    assert "evil" not in Outline(text).ids
    assert "<b id" not in text
    assert HOSTILE not in study_html(hostile(study, HOSTILE))  # type: ignore[arg-type]
    assert "\x1b" not in study_html(hostile(study, "\x1b[31mred"))  # type: ignore[arg-type]


def test_sections_stand_in_their_order_and_only_with_data(html: str, one: str) -> None:
    assert re.findall(r'<a href="#(\w+)">', html) == [*NAMES, "conditions"]
    assert [name for name in Outline(html).ids if name in NAMES] == NAMES
    assert re.findall(r'<a href="#(\w+)">', one)[0] == "choice"
    assert re.findall(r'<a href="#(\w+)">', study_html(empty_study())) == ["conditions"]


@pytest.mark.parametrize(
    ("field", "name"),
    [("trajectories", "trajectories"), ("matrices", "forgetting"), ("changes", "gain"), ("sensitivities", "formats"),
     ("contrasts", "contrasts"), ("noise", "noise"), ("scans", "scans"), ("gaps", "missing")],
)  # fmt: skip
def test_a_section_without_data_is_absent(field: str, name: str) -> None:
    text = study_html(replace(sample_study(), **{field: ()}))  # type: ignore[arg-type]
    assert f'id="{name}"' not in text
    assert f'href="#{name}"' not in text
    assert all(f'<section id="{other}"' in text for other in NAMES if other != name)


def test_an_empty_study_says_that_nothing_is_measured() -> None:
    text = study_html(empty_study())
    assert "<h1>Nothing is measured yet</h1>" in text
    assert "The grid has no cell." in text


def test_every_figure_has_a_title_and_a_description(html: str, one: str) -> None:
    for text in (html, one):
        figures = re.findall(r'<svg[^>]*role="img"[^>]*>\s*(<title>[^<]+</title><desc>[^<]+</desc>)?', text)
        assert len(figures) > 20
        assert all(figures)


def test_a_value_that_is_no_number_is_never_printed() -> None:
    nan = float("nan")
    study = sample_study()
    bad = Interval(nan, nan, nan, 0.95, "bootstrap")
    changes = tuple(replace(c, interval=bad, base=nan) if i % 5 == 0 else c for i, c in enumerate(study.changes))
    lines = tuple(
        replace(t, points=tuple(replace(p, interval=bad) if i == 3 else p for i, p in enumerate(t.points)))
        for t in study.trajectories
    )
    some = replace(study.sensitivities[0], spread=nan, scores=(("default", nan), ("io", 0.4)), retention=nan)
    matrix = replace(study.matrices[-1], values=((nan,) * 6,) * 3, transfer=(nan, None, 0.1))
    gain = replace(study.contrasts[0], by_checkpoint=(("step1000", nan), ("step2000", math.inf)))
    noise = (replace(study.noise[0], seeds=nan, items=nan, signal_to_noise=nan), *study.noise[1:])
    text = study_html(
        replace(
            study, changes=changes, trajectories=lines, sensitivities=(some, *study.sensitivities[1:]),
            matrices=(matrix,), contrasts=(gain,), noise=noise, scans=({"task": "a", "sigma_low": nan, "trace": nan},),
        )
    )  # fmt: skip
    body = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    assert re.findall(r"\b(?:nan|inf)\b|>None<", body.replace("default-src 'none'", ""), re.IGNORECASE) == []


def test_gates_that_refuse_stand_first_and_say_what_they_exclude(html: str) -> None:
    refused, raised = html.index('class="warnings refused"'), html.index("1 gate raised")
    assert html.index("</header>\n  <section") < refused < raised < html.index('<section id="trajectories"')
    assert "1 gate refused cells: they are left out of every number that concludes" in html
    assert "every gold label is −1" in html[refused:raised]
    many = tuple(Flag("near zero", f"place {i}", "why", True) for i in range(300))
    text = study_html(sample_study(flags=many))
    assert "1 gate in 300 places refused cells" in text
    assert "100 more stand in <code>study.json</code>" in text


def test_trajectories_name_axis_intervals_and_n(html: str) -> None:
    text = section(html, "trajectories")
    assert "against tokens that the model had seen, logarithmic" in text
    assert "n = 500 items, 3 training seeds, 95% intervals" in text
    assert text.count('<svg class="chart"') == 6
    assert text.count('class="curve c-noise"') == 6
    assert "mnli stops rising at 1.6T tokens (700B to 2.2T, 95% intervals)" in text
    assert re.findall(r'<text class="beside-line c-(\w+)"[^>]*>mnli<', text) == ["t0"] * 6
    assert "No plateau: base: the interval of the change-point holds both ends." in text


def test_checkpoints_without_tokens_stand_in_their_order() -> None:
    text = section(study_html(sample_study(tokens=False)), "trajectories")
    assert "against checkpoints in their order, because the tokens are not known" in text
    assert "step1000<" in text
    assert "stops rising at" not in text


def test_one_checkpoint_is_drawn_as_dots(one: str) -> None:
    text = section(one, "trajectories")
    assert '<svg class="chart"' not in text
    assert text.count('<table class="dots"') == 6
    assert text.count('<tr class="c-base">') == 6


def test_the_matrix_has_a_number_in_each_cell_and_says_what_is_missing(html: str) -> None:
    text = section(html, "forgetting")
    first = text[text.index('<table class="matrix">') : text.index("</table>")]
    study = sample_study()
    last = study.matrices[-1]
    cells = re.findall(r'<td class="([^"]*)" title="(\w+) on (\w+): [^"]*">([^<]+)</td>', first)
    assert len(cells) == 18
    for classes, tuning, task, shown in cells:
        value = last.values[last.tunings.index(tuning)][last.tasks.index(task)]
        assert shown == ("missing" if value is None else words.pts(value))
        assert ("inside" in classes) == (task in {"mnli": "mnli_m", "paws": "paws", "xsum": "xsum"}[tuning])
    assert [c[0] for c in cells if c[3] == "missing"] == ["absent"]
    assert "7 earlier checkpoints" in text
    assert text.count('<table class="matrix">') == 8


def test_shapes_say_whether_the_base_had_learned_the_task(html: str) -> None:
    study = sample_study()
    text = section(html, "gain")
    assert text.count('class="spot learned"') == sum(c.learned is True for c in study.changes)
    assert text.count('class="spot unlearned"') == sum(c.learned is False for c in study.changes)
    assert 'class="span"' in text
    assert 'class="span"' not in section(study_html(sample_study(changes=study.changes[-6:])), "gain")


def test_cells_that_a_gate_refused_are_shown_as_refused_and_count_for_nothing() -> None:
    study = sample_study()
    changes = tuple(replace(c, refused=c.task == "paws") for c in study.changes)
    matrices = tuple(
        replace(m, tasks=m.tasks[:1] + m.tasks[2:], values=tuple(row[:1] + row[2:] for row in m.values))
        for m in study.matrices
    )
    text = study_html(replace(study, changes=changes, matrices=matrices, sentence=""))
    assert "<h1>2 gained, 5 lost of 14 pairs" in text
    assert section(text, "trajectories").count("refused by a gate") == 1
    assert "A gate refused paws, which is left out." in section(text, "forgetting")
    gain = section(text, "gain")
    assert "24 changes that a gate refused are not drawn." in gain
    assert "<title>paws at" not in gain


def test_an_interval_that_nothing_bounds_is_not_drawn() -> None:
    study = sample_study()
    whole = Interval(0.5, 0.0, 1.0, 0.95, "unknown")
    lines = tuple(
        replace(t, points=tuple(replace(p, interval=whole) for p in t.points)) if t.task == "sciq" else t
        for t in study.trajectories
    )
    text = section(study_html(replace(study, trajectories=lines)), "trajectories")
    assert "95% intervals where errors are known" in text
    assert "50.0% (no interval)" in text
    sciq = text[text.index("sciq <small>") :].partition("</figure>")[0]
    assert sciq.count('class="spread-band"') == 1  # the noise floor


def test_contrasts_show_the_ratio_with_all_that_stands_beside_it(html: str) -> None:
    text = section(html, "contrasts")
    for told in ("−61.5%", "sd 106.0%, t = −3.28, n = 32 cells", "−80.0%", "without checkpoint step424000",
                 "−99.0%", "−69.0%",
                 "not defined: a score is 0", "−3.1", "1 base too near zero",
                 "The list names a pair twice",
                 "A gate refused socialiqa", "−61.0%"):  # fmt: skip
        assert told in text
    assert text.count('<span class="absent">missing</span>') == 1


def test_what_is_missing_has_its_price_and_its_command(html: str) -> None:
    text = section(html, "missing")
    assert "18 cells not there: about 1.5 h on this machine to fill them, without 4 cells of unknown price." in text
    assert "catchment study run amuro.yaml --hours 2" in text
    assert "not known" in text
    only = study_html(sample_study(gaps=(Gap("a", 2, "no label", "refused"),)))
    assert "Nothing is left to run" in only
    assert "catchment study run" not in only


def test_which_tune_to_take_is_a_table_of_tunings_by_tasks(one: str) -> None:
    text = section(one, "choice")
    assert "<h1>Take lora</h1>" in one
    rows = re.findall(r'<tr><th scope="row">(\w+)</th>', text)
    assert rows == ["lora", "full"]
    assert text.count('<span class="absent">missing</span>') == 1
    assert "no loss was shown" in text


def test_a_table_of_many_tunings_keeps_the_first_and_counts_the_rest() -> None:
    study = one_checkpoint()
    many = tuple(replace(study.verdicts[i % 2], tuning=f"t{i}") for i in range(230))
    text = section(study_html(replace(study, verdicts=many)), "choice")
    rows = re.findall(r'<tr><th scope="row">t(\d+)</th>', text)
    assert len(rows) == 1500 // 7
    assert all(int(row) % 2 for row in rows[:100])  # those without a loss come first
    assert "16 more tunings in <code>study.json</code>" in text


def test_a_study_of_one_cell_makes_a_page() -> None:
    cell = Cell(MODEL, "main", BASE, None, "sciq", "default", 0, "exact")
    point = Point("main", None, 0, 0, Interval(0.5, 0.5, 0.5, 0.95, "none"))
    study = replace(
        empty_study(), counts={"done": 1}, checkpoints=(Checkpoint(MODEL, "main", None, 0),), tasks=(cell.task,),
        trajectories=(Trajectory(MODEL, BASE, "sciq", "default", (point,)),),
    )  # fmt: skip
    text = study_html(study)
    assert "1 cell measured, no tuning to compare" in text
    assert "n not known" in text
    assert "50.0%" in text


def wide_study(tunings: int, checkpoints: int, tasks: int) -> Study:
    """A study of many cells whose changes grow with the number of the task."""
    points = tuple(Checkpoint(MODEL, f"step{i}", 1e9 * (i + 1), i) for i in range(checkpoints))
    labels, names = [f"data{i}" for i in range(tunings)], [f"task{i}" for i in range(tasks)]
    line = tuple(Point(c.revision, c.tokens, 500, 3, interval(0.5, 0.02)) for c in points)
    changes = tuple(
        Change(MODEL, c.revision, label, name, 0.5, 0.5 + 0.01 * i, 0.0, 500, 3, interval(0.01 * i, 0.001), 0.01 * i)
        for c in points[-3:] for label in labels for i, name in enumerate(names)
    )  # fmt: skip
    lines = [(label, name) for label in (BASE, *labels) for name in names]
    values = tuple(tuple(0.01 * i for i in range(tasks)) for _ in labels)
    return replace(
        empty_study(), checkpoints=points, tasks=tuple(names), counts={"done": len(changes)}, changes=changes,
        tunings=tuple(TuningCard(label, label, "full", "") for label in labels),
        trajectories=tuple(Trajectory(MODEL, label, name, "default", line) for label, name in lines),
        matrices=tuple(
            Matrix(MODEL, c.revision, tuple(labels), tuple(names), values, (0.0,) * tunings) for c in points
        ),
    )  # fmt: skip


def test_a_large_study_shows_the_largest_changes_and_says_what_it_leaves_out() -> None:
    study = wide_study(10, 42, 26)
    assert telling(study)[:2] == ["task25", "task24"]
    text = study_html(study)
    assert len(text.encode()) < 2_500_000
    trajectories = section(text, "trajectories")
    assert trajectories.count('<svg class="chart"') == 24
    assert "task0 <small>" not in trajectories
    assert "2 tasks with smaller changes are not drawn" in trajectories
    assert "40 of 42 checkpoints are drawn" in trajectories
    assert trajectories.count("2 tunings not drawn") == 24
    assert "more matrices" in section(text, "forgetting")
    assert "4 tunings with smaller changes not drawn" in section(text, "gain")


@pytest.mark.soak
def test_the_page_of_a_hundred_thousand_cells_stays_small() -> None:
    assert len(study_html(wide_study(30, 150, 22)).encode()) < 4_000_000


def test_a_page_that_cannot_be_written_is_told(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert write_page(empty_study(), tmp_path / "out" / "report.html").read_text("utf-8").startswith("<!doctype html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the page"):
        write_page(empty_study(), tmp_path / "file" / "report.html")
