from __future__ import annotations

import math
from dataclasses import replace

import pytest

from catchment import measuring
from catchment.commands.scan import words as scan_words
from catchment.commands.scan.words import scan_sentence
from catchment.records import Basin, Interval, Node, Outcome, Panel, Ruler
from tests.samples import sample_scan, subspace_card, worst_case

WHERE = subspace_card(rms=7.0, ruler=Ruler(0.1, "matrices", 1.0))


def made(task: str, low: float, high: float | None, undecided: tuple[float, ...] = (), **changes) -> Basin:  # type: ignore[no-untyped-def]
    def node(scale: float, outcome: Outcome) -> Node:
        return Node(scale, outcome, Interval(0.1, 0.0, 0.2, 0.99, "betting"), 24, 480)

    nodes = [node(scale, "undecided") for scale in undecided]
    nodes += [node(low, "inside")] * (low > 0) + [node(high or 0.0, "outside")] * (high is not None)
    basin = Basin(task, 0.8, 0.0, 0.08, low, high, None, tuple(nodes), "no", 0.975, "items", 480, 9000)
    return replace(basin, **changes)


def test_only_disjoint_brackets_rank():
    a, b, c = made("a", 0.001, 0.002), made("b", 0.002, 0.004), made("c", 0.003, 0.008)
    assert [(r.basin.task, r.rank) for r in measuring.ranked([c, a, b])] == [
        ("a", "1"),
        ("b", "2 to 3"),
        ("c", "2 to 3"),
    ]
    assert scan_words.scan_title([c, a, b]) == "Narrowest: a"


def test_overlapping_brackets_are_never_called_narrower():
    text = scan_sentence([made("a", 0.001, 0.0021), made("b", 0.002, 0.004)], [], WHERE)
    assert "no capability is shown to have the narrowest basin" in text
    assert "has the narrowest" not in text
    assert "The widest is" not in text


def test_an_earlier_crossing_of_the_wider_one_takes_its_rank_away():
    a, b = made("a", 0.001, 0.002), made("b", 0.004, 0.008, earlier="yes")
    assert not measuring.narrower(a, b)
    assert "An earlier crossing was seen for b" in scan_sentence([a, b], [], WHERE)


def test_an_open_end_is_never_narrower_and_an_unknown_low_end_never_wider():
    assert not measuring.narrower(made("a", 0.001, None), made("b", 0.004, 0.008))
    assert not measuring.narrower(made("a", 0.001, 0.002), made("b", 0.0, 0.008))


def test_sizes_are_said_in_scales_and_in_percent_of_the_weights():
    text = scan_sentence([made("recall", 0.001, 0.002), made("language", 0.005, None)], [], WHERE)
    assert (
        "recall has the narrowest of 2 basins: the model keeps recall up to between 0.001 and 0.002 RMS per weight"
        in text
    )
    assert "(1% to 2% of the RMS of the matrices)" in text
    assert "The widest is that of language: the model keeps language up to 0.005 at least (above 5%)." in text
    assert "hold together with at least 95% confidence" in text


def test_weights_that_are_all_zero_have_no_percent():
    text = scan_sentence([made("recall", 0.001, 0.002)], [], subspace_card(ruler=Ruler(0.0, "matrices", 1.0)))
    assert "0.001 and 0.002 RMS per weight." in text


@pytest.mark.parametrize(
    ("basin", "state", "words"),
    [
        (made("a", 0.001, 0.002), "bracketed", "both ends decided"),
        (made("a", 0.001, 0.008, (0.002, 0.004)), "undecided", "undecided from 0.002 to 0.004"),
        (made("a", 0.001, 0.004, (0.002,)), "undecided", "undecided at 0.002"),
        (made("a", 0.001, 0.002, (0.004,)), "bracketed", "both ends decided"),
        (made("a", 0.0, 0.002), "open below", "shown to hold at no scale that was tried"),
        (made("a", 0.001, None), "open above", "shown to break at no scale that was tried"),
        (made("a", 0.0, None, (0.001,)), "open", "undecided at every scale that was tried"),
    ],
)
def test_what_is_open_is_said_in_words(basin, state, words):
    assert measuring.state_of(basin) == state
    assert scan_words.reading(basin) == words


def test_undecided_scales_stand_in_the_sentence():
    text = scan_sentence([made("a", 0.001, 0.008, (0.002, 0.004)), made("b", 0.01, 0.02, (0.015,))], [], WHERE)
    assert "Undecided within the directions that were allowed: a from 0.002 to 0.004 and b at 0.015." in text


def test_an_attack_is_an_upper_bound_and_none_proves_nothing():
    found, none = worst_case("a", 0.08, 3e-5, 1e-5), worst_case("b", 0.08, None, 2e-4)
    text = scan_sentence([made("a", 0.001, 0.002)], [found, none], WHERE)
    assert "broke a at 3e-5 (0.03%): upper bounds" in text
    assert "For b (tried up to 2e-4) no attack was found, which proves nothing." in text


def test_what_is_not_measurable_is_named():
    scan = sample_scan()
    text = scan_sentence(scan.basins, scan.worst, scan.subspace, scan.admissions)
    assert "Not measurable on this model: refusal." in text
    assert "Not measurable" not in scan_sentence(scan.basins, scan.worst, scan.subspace)


def test_no_basin_is_said():
    assert scan_sentence([], [], WHERE) == "No basin was measured."
    assert scan_words.scan_title([]) == "No basin could be measured"


def test_twenty_tasks_are_counted_not_listed():
    text = scan_sentence([made(f"t{i:02d}", 0.001, 0.002) for i in range(20)], [], WHERE)
    assert "16 more (see the table)" in text
    assert "t07" not in text


def test_brackets_hold_together_by_the_union_bound():
    assert measuring.together([made(str(i), 0.1, 0.2, level=0.9875) for i in range(4)]) == 0.95
    assert measuring.together([made(str(i), 0.1, 0.2, level=0.9) for i in range(11)]) == 0.0


def test_places_are_ordered_only_by_disjoint_brackets():
    inside, known = made("a", 0.001, 0.002, place="inside"), made("b", 0.003, 0.004, place="outside")
    text = scan_words.place_sentence([known, inside])
    assert text == "Shown by disjoint brackets: reading the answer off the prompt breaks before knowing the answer."
    overlap = scan_words.place_sentence([inside, made("b", 0.0015, 0.004, place="outside")])
    assert overlap.startswith("Not ordered, as brackets overlap:")
    assert "breaks before" not in overlap
    assert "needs tasks of another kind" in scan_words.place_sentence([inside])


def test_a_place_with_nothing_but_open_brackets_stands_last():
    groups = scan_words.by_place([made("a", 0.0, None, place="prompt"), made("b", 0.5, 0.6, place="outside")])
    assert [place for place, _ in groups] == ["outside", "prompt"]
    assert math.isinf(measuring.middle(groups[1][1][0]))


def test_an_offer_names_the_price_and_the_budget_that_buys_it():
    spent, plane = Panel("basins", "Basins", True, 420.0), Panel("plane", "Plane", False, 0.0, 181.0)
    assert scan_words.offer(plane, [spent, plane], {}) == "about 3 min more; run again with --budget 11m"
    assert scan_words.offer(plane, [spent, plane], {"budget_seconds": 600}).endswith("--budget 14m")
    assert "not known" in scan_words.offer(replace(plane, price=None), [spent], {})
    refused = replace(plane, price=None, note="it needs about 40 GB of free memory")
    assert scan_words.offer(refused, [spent], {}) == "no budget buys it here"
