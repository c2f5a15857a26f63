from __future__ import annotations

from dataclasses import replace

from catchment.commands.compare import flips
from tests.samples import sample_comparison
from tests.samples import task_result as result

SAMPLE = sample_comparison()


def test_losses_come_first_and_the_last_place_is_a_gain():
    chosen = flips.most_telling(SAMPLE)
    assert [flip.direction for flip in chosen] == ["lost", "lost", "gained"]
    gains = [flip.weight for flip in SAMPLE.flips if flip.direction == "gained"]
    assert chosen[-1].weight == max(gains)


def test_without_gains_all_places_are_losses():
    only_lost = replace(SAMPLE, flips=tuple(flip for flip in SAMPLE.flips if flip.direction == "lost"))
    assert [flip.direction for flip in flips.most_telling(only_lost)] == ["lost"] * 3
    assert flips.most_telling(replace(SAMPLE, flips=())) == []


def test_a_loss_in_a_lost_task_tells_more_than_a_heavier_one_in_a_kept_task():
    heavy = replace(SAMPLE.flips[5], task="language", direction="lost", weight=1.0)
    order = flips.ranked(replace(SAMPLE, flips=(heavy, *SAMPLE.flips)))
    assert order[0].task == "recall"
    assert order.index(heavy) > max(i for i, flip in enumerate(order) if flip.task == "recall")


def test_a_small_budget_still_shows_every_task():
    budget = 12 * 2500
    shown = flips.fitting(sample_comparison(flip_count=400), budget)
    assert 6 <= len(shown.flips) < 40
    assert {flip.task for flip in shown.flips} == {"recall", "arithmetic"}
    assert {flip.direction for flip in shown.flips} == {"lost", "gained"}
    assert shown.recorded == 400
    assert list(shown.flips) == [
        flip for flip in flips.ranked(sample_comparison(flip_count=400)) if flip in shown.flips
    ]


def test_totals_are_those_of_all_items_not_of_the_recorded_ones():
    tasks = (result("recall", "exact", 1000, 0.0, 0.9, 0.2, 0.1, "lost"),)
    shown = flips.fitting(replace(SAMPLE, tasks=tasks), 10_000)
    assert (shown.lost, shown.gained, shown.recorded) == (200, 100, 64)


def test_a_long_prompt_keeps_both_ends_and_says_what_is_left_out():
    prompt = "START" + "x" * 10_000 + "END"
    long = replace(SAMPLE, flips=(replace(SAMPLE.flips[0], prompt=prompt),))
    text = flips.fitting(long, 100_000).flips[0].prompt
    assert text.startswith("START")
    assert text.endswith("END")
    assert "6,008 characters left out" in text
    assert text.count("x") == 4000 - len("STARTEND")
