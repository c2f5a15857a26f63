from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from catchment.commands.study import figures, heat, views
from catchment.commands.study.record import BASE, Checkpoint, Point, TaskNoise, Trajectory, TuningCard
from catchment.records import Interval
from tests.unit.commands.study.sample import MODEL, STEPS, checkpoints, empty_study, interval, sample_study


def line(tuning: str, *values: float, plateau: Interval | None = None) -> Trajectory:
    points = tuple(Point(f"r{i}", 10.0 ** (9 + i), 100, 0, interval(v, 0.01)) for i, v in enumerate(values))
    return Trajectory(MODEL, tuning, "task", "default", points, plateau)


def scale(number: int) -> figures.Scale:
    return figures.checkpoint_scale([Checkpoint(MODEL, f"r{i}", 10.0 ** (9 + i), i) for i in range(number)])


KINDS = {BASE: "base", "a": "t0", "b": "t1"}


def test_equal_ratios_of_tokens_are_equal_steps() -> None:
    made = scale(3)
    places = [made.axis.at(made.places[f"r{i}"]) for i in range(3)]
    assert made.logarithmic
    assert places[2] - places[1] == pytest.approx(places[1] - places[0], abs=0.01)
    assert [text for _, text in made.labels] == ["1B", "10B", "100B"]


def test_one_unknown_number_of_tokens_puts_all_checkpoints_in_their_order() -> None:
    some = [Checkpoint(MODEL, "late", 2e9, 1), Checkpoint(MODEL, "early", None, 0)]
    made = figures.checkpoint_scale(some)
    assert not made.logarithmic
    assert made.places == {"early": 0.0, "late": 1.0}


def test_a_point_may_name_the_tokens_that_the_checkpoint_does_not() -> None:
    made = figures.checkpoint_scale([Checkpoint(MODEL, "a", None, 0)], [("a", 1e9), ("b", 1e10)])
    assert made.logarithmic
    assert made.places == {"a": 1e9, "b": 1e10}


def test_a_checkpoint_before_training_stands_apart_at_the_left() -> None:
    made = figures.checkpoint_scale([Checkpoint(MODEL, "r", 0.0, 0), *checkpoints(STEPS)])
    assert made.axis.at(0.0) == 0.0
    assert made.axis.at(made.places["step1000"]) > 5.0
    assert made.labels[0] == (0.0, "0")


def test_the_noise_floor_is_a_band_around_the_base() -> None:
    panel = figures.trajectory_panel("task", [line("a", 0.7, 0.8), line(BASE, 0.5, 0.5)], scale(2), KINDS, 0.05)
    noise, base, _ = panel.chart.curves
    assert (noise.kind, base.kind) == ("noise", "base")
    heights = [float(pair.split()[1]) for pair in noise.band[1:-1].split("L")]
    base_y = base.dots[0].y
    one = (max(heights) - min(heights)) / 2
    assert base_y == pytest.approx((max(heights) + min(heights)) / 2, abs=0.1)
    tuned = panel.chart.curves[2].dots[0].y
    assert (base_y - tuned) / one == pytest.approx(0.2 / 0.05, rel=0.02)
    without = figures.trajectory_panel("task", [line(BASE, 0.5)], scale(1), KINDS, None)
    assert [curve.kind for curve in without.chart.curves] == ["base"]


def test_a_plateau_stands_on_its_line() -> None:
    found = Interval(10**9.5, 10**9.2, 10**9.8, 0.95, "change-point")
    panel = figures.trajectory_panel("task", [line("a", 0.2, 0.6, plateau=found)], scale(2), KINDS, None)
    plateau = panel.plateaus[0]
    first, last = panel.chart.curves[0].dots
    assert plateau.x == pytest.approx((first.x + last.x) / 2, abs=0.2)
    assert plateau.y == pytest.approx((first.y + last.y) / 2, abs=0.2)
    assert first.x < plateau.low < plateau.x < plateau.high < last.x


def test_names_beside_lines_do_not_run_into_each_other() -> None:
    panel = figures.trajectory_panel(
        "task", [line(BASE, 0.5, 0.5), line("a", 0.5, 0.501), line("b", 0.4, 0.499)], scale(2), KINDS, None
    )
    heights = sorted(label.y for label in panel.labels)
    assert len(heights) == 3
    assert all(b - a >= figures.LINE - 0.11 for a, b in pairwise(heights))
    assert max(heights) <= panel.chart.height


def test_names_that_would_read_the_same_when_cut_stand_in_the_legend() -> None:
    some = [line(f"a very long label {i}", 0.5, 0.5) for i in range(2)]
    panel = figures.trajectory_panel("task", some, scale(2), KINDS, None)
    assert panel.labels == ()


def test_the_base_is_never_left_out() -> None:
    some = [*(line(f"t{i}", 0.5) for i in range(20)), line(BASE, 0.5)]
    panel = figures.trajectory_panel("task", some, scale(1), KINDS, None)
    assert panel.chart.curves[0].kind == "base"
    assert len(panel.chart.curves) + panel.left_out == 21


def test_thinning_keeps_the_ends_and_the_order() -> None:
    made = figures.thinned(range(150))
    assert (len(made), made[0], made[-1]) == (40, 0, 149)
    assert made == sorted(set(made))
    assert figures.thinned(range(40)) == list(range(40))


def test_hues_repeat_with_dashes_and_the_base_is_grey() -> None:
    cards = tuple(TuningCard(f"t{i}", "", "", "") for i in range(8))
    kinds = figures.kinds(replace(empty_study(), tunings=cards))
    assert kinds[BASE] == "base"
    assert len(set(kinds.values())) == 9
    assert kinds["t6"] == "t0 dashed"


def test_colours_are_the_same_for_gains_and_losses_of_one_size() -> None:
    sizes = (0.004, 0.006, 0.03, 0.06, 0.15, 0.3, 0.9)
    assert [heat.shade(size) for size in sizes] == ["even", *(f"up{i}" for i in range(1, 7))]
    assert [heat.shade(-size) for size in sizes] == ["even", *(f"down{i}" for i in range(1, 7))]
    assert heat.shade(float("nan")) == ""


def test_the_last_matrix_comes_first_and_the_others_from_late_to_early() -> None:
    last, earlier, unshown = heat.heats(sample_study())
    assert [one.revision for one in last] == ["step757000"]
    assert [one.revision for one in earlier] == [f"step{step}" for step in reversed(STEPS[:-1])]
    assert unshown == 0


def test_all_panels_of_the_scatter_have_the_same_axes() -> None:
    study = sample_study()
    made = heat.scatters(study, ["mnli", "paws", "xsum"], figures.kinds(study))
    assert len({one.chart for one in made}) == 1
    assert sum(len(one.spots) for one in made) == len(study.changes)


def test_the_noise_floor_of_a_task_may_be_unknown() -> None:
    rows = views.noise_table([TaskNoise("a", None, None, 0.01), TaskNoise("b", 0.02, 0.01, 0.01)]).rows
    assert [one.task for one, _ in rows] == ["b", "a"]
    assert rows[1][1] is None


def test_scans_stand_by_task_and_then_by_checkpoint() -> None:
    study = sample_study()
    shuffled = replace(study, scans=(*study.scans[::-1], {"model": MODEL, "task": "a", "sigma_high": 0.01}))
    rows = views.scan_table(shuffled).rows
    assert [row.task for row in rows] == ["a", *["sciq"] * 8]
    assert [row.where for row in rows[1:]] == [f"step{step}" for step in STEPS]
    assert (rows[0].span, rows[1].span) == ("below 0.01", "above 0.004")
