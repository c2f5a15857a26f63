"""What is said of the ruler, of scales without one, of edges below the number format, and of drift."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from catchment import measuring, pages
from catchment.commands.compare import drift as drifted
from catchment.commands.compare.page import page_html
from catchment.commands.scan import words as scan_words
from catchment.commands.scan.page import scan_html
from catchment.commands.scan.record import Scan
from catchment.commands.scan.table import print_record as print_scan
from catchment.commands.scan.words import scan_sentence
from catchment.commands.tune.record import Tune
from catchment.records import Drift, DriftRow, Interval, Ruler, from_json, to_json
from tests.samples import RULER, drift, sample_comparison, sample_scan, subspace_card
from tests.unit.commands.tune.test_page import whole

CROSSED = Interval(0.061, 0.0, 0.49, 0.95, "bootstrap")


def lost(floor: str = "bfloat16") -> Scan:
    """A scan whose every rung is outside, with the estimate that older versions drew."""
    scan = sample_scan()
    basin = replace(scan.basins[0], task="chat", low=0.0, high=0.00015, estimate=CROSSED, nodes=(), floor=floor)
    return replace(scan, basins=(basin,), worst=())


def test_no_estimate_is_shown_where_nothing_brackets_it() -> None:
    """Neither on the page nor on its axis, nor in the order of the basins."""
    scan = lost()
    section = scan_html(scan).split('id="basins"')[1].split("</section>")[0]
    assert not [text for text in ("0.061", "0.49", "est.", "Estimate") if text in section]
    assert measuring.middle(scan.basins[0]) < 0.00015
    both = replace(scan.basins[0], low=0.05, high=0.07)
    assert "est. 0.061" in scan_html(replace(scan, basins=(both,)))
    for low, high in ((0.0, 0.07), (0.05, None), (0.07, 0.08), (0.01, 0.05)):
        assert "est. 0.061" not in scan_html(replace(scan, basins=(replace(both, low=low, high=high),)))


def test_outside_down_to_the_number_format_is_said_everywhere() -> None:
    scan = lost()
    said = "outside down to the smallest step that bfloat16 can hold (1.5e-4)"
    assert said in scan_sentence(scan.basins, (), scan.subspace)
    assert said[1:].replace("e-4", "e−4") in scan_html(scan), "it begins with a capital there"
    console = Console(record=True, width=160)
    print_scan(scan, console)
    assert said in " ".join(console.export_text().split())
    assert "can hold" not in scan_sentence(lost("").basins, (), scan.subspace)


def test_what_was_left_out_is_named() -> None:
    names = tuple(f"model.layers.{k}.odd" for k in range(9))
    card = subspace_card(ruler=Ruler(0.04, "matrices", 0.6, names))
    scan = sample_scan(subspace=card)
    sentence = scan_sentence(scan.basins, scan.worst, card)
    for text in (sentence, scan_html(scan), pages.ruler_note(card.ruler)):
        assert "model.layers.0.odd" in text
        assert "more" in text
    assert "60% of the weights" in pages.ruler_note(card.ruler)
    assert "leaves out" not in scan_sentence(scan.basins, scan.worst, subspace_card())


def test_vectors_are_not_comparable_with_matrices() -> None:
    scan = sample_scan(subspace=subspace_card(ruler=Ruler(1.2, "vectors", 1.0)))
    for text in (scan_html(scan), scan_sentence(scan.basins, scan.worst, scan.subspace)):
        assert "RMS of these vectors; not comparable with matrices" in text
        assert "RMS of the matrices" not in text


def test_wider_needs_both() -> None:
    page = scan_html(sample_scan())
    assert "needs both, a larger σ and a larger percentage" in page
    assert "makes two models comparable" not in page


def test_an_old_scan_loads_and_has_no_percentages() -> None:
    """Its RMS is over all weights: a percentage of it would be the wrong one."""
    content = json.loads(to_json(sample_scan()))
    del content["subspace"]["ruler"]
    for basin in content["basins"]:
        del basin["floor"]
    old = from_json(Scan, json.dumps(content))
    assert scan_words.of_rms(0.001, old.subspace) == ""
    assert all(scan_words.between_of_rms(basin, old.subspace) == "" for basin in old.basins)
    assert "without the RMS of the matrices" in scan_html(old)
    assert "%" not in scan_words._size(old.basins[0], old.subspace, full=True)
    console = Console(record=True, width=120)
    print_scan(old, console)
    assert "without the RMS of the matrices" in " ".join(console.export_text().split())


def test_the_total_drift_is_relative_to_the_matrices() -> None:
    """A norm that holds most of the norm and did not move hides nothing."""
    rows = (
        DriftRow("q", 0, "attention", 100, 0.4, 0.2, 100, True),
        DriftRow("norm", 0, "norm", 10, 40.0, 0.0, 0, False),
    )
    rms = 0.2 / math.sqrt(110)
    found = Drift(110, 40.0, 0.2, rms, 100, rows, Ruler(0.04, "matrices", 100 / 110))
    assert found.relative == pytest.approx(rms / 0.04)
    assert found.relative > 40 * 0.2 / 40.0, "relative to all weights it would be 0.5%"
    grid, _ = drifted.heats(found) or pytest.fail("a layer is there")
    whole, attention, norm = (row.values[0] for row in grid.rows)
    assert whole == pytest.approx(rms / 0.04)
    assert (attention, norm) == (0.5, 0.0)
    page = page_html(sample_comparison(drift=found))
    assert f"{pages.share(rms / 0.04)} of the RMS of the matrices of the base" in page


def test_an_old_drift_shows_no_share_of_groups() -> None:
    content = json.loads(to_json(drift()))
    del content["ruler"]
    for row in content["tensors"]:
        del row["matrix"]
    old = from_json(Drift, json.dumps(content))
    assert old.relative is None
    assert drifted.together("", old.tensors[1:4]).relative is None
    assert drifted.together("", old.tensors[1:2]).relative == old.tensors[1].relative
    assert "of the RMS of the matrices of the base" not in page_html(sample_comparison(drift=old))
    assert drift().ruler == RULER


def test_an_old_tune_loads() -> None:
    content = json.loads(to_json(whole()))
    for room in content["rooms"]:
        del room["below"], room["random_below"]
    assert from_json(Tune, json.dumps(content)).rooms == whole().rooms
