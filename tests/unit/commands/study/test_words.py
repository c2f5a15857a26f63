from __future__ import annotations

from dataclasses import replace

import pytest

from catchment.commands.study import choice, words
from catchment.commands.study.record import Change, Flag, Gap, Verdicts
from tests.samples import sample_comparison
from tests.unit.commands.study.sample import MODEL, empty_study, interval, one_checkpoint, sample_study

TASK = sample_comparison().tasks[0]


def verdicts(name: str, **changes: float) -> Verdicts:
    """One task per verdict, named as it, with this change."""
    tasks = tuple(
        replace(TASK, task=verdict, verdict=verdict.replace("_", " "), difference=interval(change, 0.01))  # type: ignore[arg-type]
        for verdict, change in changes.items()
    )
    return Verdicts(name, "open", "", tasks)


def test_the_sentence_says_what_was_gained_and_lost_and_how_much_is_there() -> None:
    text = words.sentence(sample_study())
    assert text.startswith("At the last checkpoint (step757000), 3 of 17 pairs of tuning and task gained and 5 lost ")
    assert "5 lost (7 undecided and 2 kept): the largest gain is" in text
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


def test_without_a_loss_the_largest_sum_of_gains_is_taken() -> None:
    some = [verdicts("a", gained=0.9, lost=-0.1), verdicts("b", gained=0.2, kept=0.0), verdicts("c", gained=0.3)]
    assert choice.choice(some) == (
        "Take c: gained gained (+30.0); no loss was shown. Next is b: gained gained (+20.0); no loss was shown."
    )
    assert choice.choice_title(some) == "Take c"
    assert [one.tuning for one in choice.ranked(some)] == ["c", "b", "a"]


def test_tunings_whose_intervals_overlap_are_named_together() -> None:
    some = [verdicts("a", gained=0.200), verdicts("b", gained=0.201), verdicts("c", gained=0.5, lost=-0.1)]
    assert "a cannot be told from it: the intervals overlap on every task." in choice.choice(some)
    assert choice.choice_title(some) == "Take b or a"


def test_no_tuning_is_taken_without_a_gain_or_with_a_loss() -> None:
    none = [verdicts("a", kept=0.0, undecided=0.0), verdicts("b", lost=-0.2)]
    assert choice.choice(none) == "No tuning was shown to gain anything."
    assert choice.choice_title(none) == "No tuning was shown to gain"
    mixed = [verdicts("a", kept=0.0), verdicts("b", lost=-0.1, gained=0.3)]
    assert choice.choice(mixed).endswith("b gained, and lost elsewhere: which to take depends on the task.")
    assert choice.choice_title(mixed) == "No tuning to take without a loss"
    lost = [verdicts("a", lost=-0.3), verdicts("b", lost=-0.1, gained=0.3)]
    assert choice.choice(lost).startswith("Every tuning lost something. b has the largest sum of changes:")
    assert choice.choice(()) == ""


def test_what_is_not_decided_is_counted_and_never_called_kept() -> None:
    text = choice.outcome(verdicts("a", undecided=0.0, not_measurable=0.0, kept=0.0))
    assert text == "no gain was shown; no loss was shown; 2 tasks not decided"


def test_the_title_of_one_checkpoint_is_which_tuning_to_take() -> None:
    assert words.title(one_checkpoint()) == "Take lora"
    assert words.title(empty_study()) == "Nothing is measured yet"
    assert words.title(sample_study()) == "3 gained, 5 lost of 17 pairs of tuning and task"


def test_the_cost_names_what_has_no_price_and_leaves_out_what_was_refused() -> None:
    gaps = [Gap("a", 3, "", "missing", 60.0), Gap("b", 2, "", "failed"), Gap("c", 9, "", "refused", 9e9)]
    assert (
        words.gap_cost(gaps)
        == "5 cells not there: about 60 s on this machine to fill them, without 2 cells of unknown price."
    )
    assert words.gap_cost(gaps[1:2]) == "2 cells not there; what they cost is not known."


def test_the_command_is_quoted_or_that_of_the_study() -> None:
    study = replace(sample_study(), name="my study; rm", gaps=(Gap("a", 1, "", "missing", 7300.0),))
    assert words.fill_command(replace(study, conditions={})) == ""
    assert words.fill_command(study) == "catchment study run 'my study; rm.yaml' --hours 3"
    assert words.fill_command(replace(study, conditions={"command": "run it"})) == "run it"


def test_gates_are_counted_with_their_places() -> None:
    assert words.gates([Flag("a", "x", ""), Flag("a", "y", ""), Flag("b", "z", "")]) == "2 gates in 3 places"
    assert words.gates([Flag("a", "x", "")]) == "1 gate"


def test_intervals_say_their_level_and_how_many_hold_together() -> None:
    assert words.levels([interval(0.1, 0.1, 18)]) == "95% intervals each, corrected for 18 together"
    assert words.levels([interval(0.1, 0.1, 18)], 0.1) == "90% intervals for 18 together"
    unknown = replace(interval(0.5, 0.5), method="unknown")
    assert words.levels([unknown]) == "no intervals, because the table gives no errors"
    assert words.levels([interval(0.1, 0.1), unknown]) == "95% intervals where errors are known (1 of 2)"
    assert words.levels([]) == ""
