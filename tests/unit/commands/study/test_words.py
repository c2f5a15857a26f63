from __future__ import annotations

from dataclasses import replace

import pytest

from catchment.commands.study import words
from catchment.commands.study.record import Change, Flag, Gap, Verdicts
from catchment.records import TaskResult
from tests.samples import sample_comparison
from tests.unit.commands.study.sample import MODEL, empty_study, interval, one_checkpoint, sample_study

TASK = sample_comparison().tasks[0]


def verdicts(name: str, *marks: str) -> Verdicts:
    tasks = tuple(replace(TASK, task=f"task{i}", verdict=mark) for i, mark in enumerate(marks))  # type: ignore[arg-type]
    return Verdicts(name, "open", "", tasks)


def test_the_sentence_says_what_was_gained_and_lost_and_how_much_is_there() -> None:
    text = words.sentence(sample_study())
    assert "At the last checkpoint (step757000), 3 of 17 pairs of tuning and task gained and 5 lost" in text
    assert "the largest gain is mnli on mnli_m (+46.0 points, 95% interval" in text
    assert "the largest loss is paws on boolq (-8.3 points" in text
    assert "Outside the domain of their tuning 5 of 14 lost." in text
    assert "Refused and left out of every conclusion: unlabelled test set." in text
    assert "412 of 432 (95%) cells of the grid are measured; 14 missing, 4 failed and 2 refused." in text


def test_only_the_last_checkpoint_of_each_model_is_counted() -> None:
    study = sample_study()
    other = tuple(replace(c, model="b", revision="end") for c in study.changes[:6])
    late = words.latest(replace(study, changes=(*study.changes, *other)))
    assert {(c.model, c.revision) for c in late} == {(MODEL, "step757000"), ("b", "end")}
    assert "At the last checkpoints of 2 models" in words.sentence(replace(study, changes=(*study.changes, *other)))


@pytest.mark.parametrize(
    ("low", "verdict", "told"),
    [(0.01, "", "gained"), (-0.11, "", "lost"), (-0.05, "", ""), (0.01, "undecided", ""), (-0.05, "lost", "lost")],
)
def test_a_direction_needs_a_verdict_or_an_interval_beside_zero(low: float, verdict: str, told: str) -> None:
    change = Change(MODEL, "a", "t", "d", 0.5, 0.5, 0.0, 9, 1, interval(low + 0.05, 0.0499), 0.0, verdict=verdict)
    assert words.direction(change) == told


@pytest.mark.parametrize(
    ("counts", "told"),
    [({"done": 5}, "complete"), ({"done": 5, "refused": 1}, "complete"), ({"done": 5, "missing": 1}, "incomplete"),
     ({"done": 5, "failed": 1}, "incomplete"), ({}, "incomplete")],
)  # fmt: skip
def test_a_grid_is_complete_where_nothing_is_missing_or_failed(counts: dict[str, int], told: str) -> None:
    assert words.headline(replace(empty_study(), counts=counts)) == told


def test_the_tuning_with_the_fewest_losses_and_then_the_most_gains_is_taken() -> None:
    some = [verdicts("a", "gained", "lost"), verdicts("b", "gained", "kept"), verdicts("c", "gained", "gained")]
    assert (
        words.choice(some)
        == "Take c: gained task0 and task1; no loss was shown. Next is b: gained task0; no loss was shown."
    )
    assert words.choice_title(some) == "Take c"


def test_a_tie_is_said_and_not_broken() -> None:
    some = [verdicts("a", "gained", "kept"), verdicts("b", "kept", "gained"), verdicts("c", "lost", "lost")]
    assert words.choice(some).startswith("a and b have as many losses and gains, so which to take depends on the task.")
    assert "c" not in words.choice_title(some).split()


def test_no_tuning_is_taken_without_a_gain() -> None:
    none = [verdicts("a", "kept", "undecided"), verdicts("b", "lost", "kept")]
    assert words.choice(none).startswith("No tuning was shown to gain anything")
    mixed = [verdicts("a", "kept", "kept"), verdicts("b", "lost", "gained")]
    assert words.choice(mixed).startswith("a has the fewest losses (no gain was shown; no loss was shown)")
    assert words.choice_title(mixed) == "a has the fewest losses"
    assert words.choice(()) == ""


def test_what_is_not_decided_is_counted_and_never_called_kept() -> None:
    text = words.outcome(verdicts("a", "undecided", "not measurable", "kept"))
    assert text == "no gain was shown; no loss was shown; 2 tasks not decided"


def test_the_title_of_one_checkpoint_is_which_tuning_to_take() -> None:
    assert words.title(one_checkpoint()) == "Take lora"
    assert words.title(empty_study()) == "Nothing is measured yet"
    assert words.title(sample_study()) == "3 gained, 5 lost of 17 pairs of tuning and task"


def test_the_cost_names_what_has_no_price_and_leaves_out_what_was_refused() -> None:
    gaps = [Gap("a", 3, "", "missing", 60.0), Gap("b", 2, "", "failed"), Gap("c", 9, "", "refused", 9e9)]
    assert words.gap_cost(gaps) == "5 cells to fill, about 60 s on this machine, without 2 cells of unknown price."
    assert words.gap_cost(gaps[1:2]) == "2 cells to fill; what they cost is not known."


def test_the_command_is_quoted_or_that_of_the_study() -> None:
    study = replace(sample_study(), name="my study; rm", gaps=(Gap("a", 1, "", "missing", 7300.0),))
    assert words.fill_command(study) == "catchment study run 'my study; rm.yaml' --hours 3"
    assert words.fill_command(replace(study, conditions={"command": "run it"})) == "run it"


def test_gates_are_counted_with_their_places() -> None:
    assert words.gates([Flag("a", "x", ""), Flag("a", "y", ""), Flag("b", "z", "")]) == "2 gates in 3 places"
    assert words.gates([Flag("a", "x", "")]) == "1 gate"


def test_intervals_say_their_level_and_how_many_hold_together() -> None:
    assert words.levels([interval(0.1, 0.1, 18)]) == "95% intervals, corrected so that 18 hold together"
    assert words.levels([]) == ""


def test_ranked_is_stable_for_equal_tunings() -> None:
    some = [verdicts("b", "kept"), verdicts("a", "kept")]
    assert [one.tuning for one in words.ranked(some)] == ["b", "a"]
    assert isinstance(some[0].tasks[0], TaskResult)
