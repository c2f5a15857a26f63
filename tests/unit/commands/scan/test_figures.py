from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from catchment import pages
from catchment.commands.scan import figures as scan_figures
from catchment.pages import Axis
from catchment.records import Interval, Ruler
from tests.samples import plane


@pytest.mark.parametrize("values", [[1e-6, 3e-2], [0.0012], [0.001, 0.0011], [0.0, 5.0], [], [0.002, math.inf]])
def test_a_log_axis_holds_its_values_and_few_ticks_inside(values):
    scale = pages.log_axis(values)
    assert all(scale.low < value < scale.high for value in values if 0 < value < math.inf)
    assert 1 <= len(scale.ticks) <= 6
    places = [at for at, _ in scale.labels]
    assert places == sorted(places)
    assert all(0 <= at <= 100 for at in places)


def test_equal_ratios_are_equal_steps():
    scale = pages.log_axis([0.001, 0.1])
    steps = [scale.at(b) - scale.at(a) for a, b in ((0.001, 0.01), (0.01, 0.1), (0.002, 0.02))]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.01)


def test_the_relative_axis_is_the_same_stretch_in_other_units():
    scale = pages.log_axis([0.001, 0.02])
    other = pages.relative(scale, Ruler(0.1, "matrices", 1.0)) or pytest.fail("the ruler is positive")
    assert other.at(0.003 / 0.1) == pytest.approx(scale.at(0.003), abs=0.01)
    assert "5%" in [text for _, text in other.labels]
    assert pages.relative(scale, Ruler(0.0, "matrices", 1.0)) is None
    assert pages.relative(scale, None) is None


def test_a_signed_axis_is_mirrored_and_its_labels_stay_apart():
    scale = pages.scale_axis([-0.02, -0.0001, 0.0001, 0.02])
    assert scale.at(0.0) == 50.0
    assert scale.at(-0.003) == pytest.approx(100 - scale.at(0.003))
    assert scale.at(0.0001) > 55
    places = [at for at, _ in scale.labels]
    assert min(b - a for a, b in pairwise(places)) > 7


def test_a_zero_stands_apart_at_the_left_of_an_unsigned_axis():
    scale = pages.scale_axis([0.0, 0.001, 0.01])
    assert scale.at(0.0) == 0.0
    assert scale.at(0.001) == 8.0
    assert scale.at(0.01) == 100.0


def test_bars_end_where_the_bracket_ends_and_open_ends_reach_the_edge():
    scale = pages.LogAxis(0.001, 0.1, ())
    estimate = Interval(0.01, 0.001, 0.1, 0.95, "bootstrap")
    assert pages.bar(scale, 0.001, 0.01, estimate) == pages.Bar(0.0, 50.0, False, False, (0.0, 100.0, 50.0))
    assert pages.bar(scale, 0.0, 0.01) == pages.Bar(0.0, 50.0, True, False)
    assert pages.bar(scale, 0.01, None) == pages.Bar(50.0, 100.0, False, True)


def test_a_chart_places_points_bands_and_rules():
    points = ((0.001, 0.5, 0.4, 0.6, "one"), (0.1, 1.0, 1.0, 1.0, "two"))
    made = pages.chart(
        [pages.Series("score", points)],
        pages.Plot(pages.LogAxis(0.001, 0.1, (0.01,)), Axis(0.0, 1.0, (0.0, 1.0))),
        [(0.0, "k", "x")],
    )
    (curve,) = made.curves
    assert [(dot.x, dot.y, dot.title) for dot in curve.dots] == [
        (pages.LEFT, (made.top + made.bottom) / 2, "one"),
        (pages.WIDTH - pages.RIGHT, made.top, "two"),
    ]
    assert made.rules == ((made.bottom, "k", "x"),)
    assert len(re.findall("[ML]", curve.band)) == 4
    assert curve.band.endswith("Z")


def test_a_curve_without_an_interval_has_no_band():
    line = pages.Series("wave", ((0.0, 1.0, 1.0, 1.0, ""), (1.0, 2.0, 2.0, 2.0, "")))
    (curve,) = pages.chart([line], pages.Plot(Axis(0.0, 1.0, ()), Axis(0.0, 3.0, ()))).curves
    assert curve.band == ""
    assert curve.dots == ()


def test_the_heat_map_has_every_value_in_words_and_rows_go_upwards():
    sample = plane(5)
    found = scan_figures.heat_map(sample)
    assert len(found.cells) == 25
    assert found.cells[0].title == f"-0.006, -0.006: {100 * sample.values[0][0]:.1f}%"
    assert found.cells[0].y > found.cells[-1].y
    assert found.cells[0].x < found.cells[4].x
    best = max(found.cells, key=lambda cell: float(cell.title.split(": ")[1].rstrip("%")))
    assert best.fill == pages.colour(1.0)
    base = next(mark for mark in found.marks if mark[2] == "base")
    assert best.x < base[0] < best.x + best.width
    assert best.y < base[1] < best.y + best.height


def test_a_flat_plane_has_one_colour():
    flat = replace(plane(3), values=((0.5,) * 3,) * 3)
    assert len({cell.fill for cell in scan_figures.heat_map(flat).cells}) == 1


def test_colours_grow_lighter_so_that_hue_is_not_needed():
    shades = [pages.colour(i / 20) for i in range(21)]
    light = [sum(int(c[i : i + 2], 16) * w for i, w in ((1, 0.2126), (3, 0.7152), (5, 0.0722))) for c in shades]
    assert light == sorted(light)
    assert pages.colour(-1.0) == shades[0]
    assert pages.colour(2.0) == shades[-1]
