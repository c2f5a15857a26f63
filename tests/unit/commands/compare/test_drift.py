from __future__ import annotations

import math
from dataclasses import replace

import pytest

from catchment import pages
from catchment.commands.compare import drift as drifted
from catchment.records import Drift, DriftRow, Interval
from tests.samples import KINDS, LAYERS, drift


@pytest.mark.parametrize("values", [[0.0, -0.02], [-1.0, 1.0], [0.0], [-0.0003, 0.0011], [5.0, 900.0], []])
def test_an_axis_holds_its_values_and_few_round_ticks(values):
    scale = pages.axis(values)
    assert all(scale.low < value < scale.high for value in values)
    assert 2 <= len(scale.ticks) <= 8
    steps = {round(b - a, 9) for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)}
    assert len(steps) == 1
    assert all(0 <= scale.at(tick) <= 100 for tick in scale.ticks)


def test_marks_stand_where_the_numbers_say():
    scale = pages.Axis(-0.5, 0.5, (0.0,))
    assert pages.mark(scale, Interval(0.0, -0.25, 0.3, 0.95, "t")) == pages.Mark(25.0, 80.0, 50.0)
    assert scale.at(7.0) == 100.0


def test_squares_add_when_tensors_are_taken_together():
    rows = [DriftRow("a", 0, "q", 9, 4.0, 3.0, 5, True), DriftRow("b", 0, "k", 16, 3.0, 4.0, 6, True)]
    moved = drifted.together("both", rows)
    assert moved == drifted.Moved("both", 25, 1.0, 1.0, 11)


def test_the_grid_has_a_row_for_the_layer_and_one_per_kind():
    relative, rms = drifted.heats(drift()) or pytest.fail("the sample has layers")
    assert [row.kind for row in relative.rows] == ["whole layer", *KINDS]
    assert all(len(row.values) == LAYERS for row in (*relative.rows, *rms.rows))
    row = next(tensor for tensor in drift().tensors if tensor.layer == 17 and tensor.kind == "ffn.down")
    assert relative.rows[-2].values[17] == pytest.approx(row.distance / row.norm)
    assert rms.rows[-2].values[17] == pytest.approx(row.distance / math.sqrt(row.size))
    assert max(relative.strength(v) for r in relative.rows for v in r.values if v is not None) == 1.0


def test_a_kind_that_a_layer_lacks_is_a_gap_not_a_zero():
    tensors = (DriftRow("a", 0, "q", 4, 2.0, 1.0, 4), DriftRow("b", 3, "bias", 4, 2.0, 0.0, 0))
    relative, _ = drifted.heats(Drift(8, 2.8, 1.0, 0.35, 4, tensors)) or pytest.fail("layers expected")
    assert relative.layers == (0, 3)
    assert {row.kind: row.values for row in relative.rows}["q"] == (0.5, None)
    assert {row.kind: row.values for row in relative.rows}["bias"] == (None, 0.0)


def test_a_model_without_layers_has_no_grid():
    flat = replace(drift(), tensors=(DriftRow("w", None, "embedding", 4, 1.0, 0.5, 4),))
    assert drifted.heats(flat) is None
    assert drifted.outside_layers(flat) == [drifted.Moved("embedding", 4, 0.5, 0.25, 4)]
