from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from catchment import measuring
from catchment.commands.compare import words as compare_words
from catchment.commands.compare.page import page_html
from catchment.commands.compare.table import print_record as print_comparison
from catchment.records import Barrier, Interval, Room
from tests.samples import rooms, sample_comparison
from tests.unit.commands.compare.test_page import Outline

ROOM = rooms()[0]


def room(low: float, high: float | None, reach: float = 3.0) -> Room:
    return replace(ROOM, low=low, high=high, reach=reach)


@pytest.mark.parametrize(
    ("found", "state", "text"),
    [
        (room(0.4, 0.5), "used up", "the tolerance was used up after 40% to 50% of the way"),
        (room(0.0, 0.25), "used up", "the tolerance was used up within the first 25% of the way"),
        (room(0.5, 1.0), "used up", "the tolerance was used up after 50% to 100% of the way"),
        (room(1.0, 1.5), "inside", "the tolerance ends between 1 and 1.5 times the move"),
        (room(3.0, None), "inside", "no crossing was shown up to 3 times the move"),
        (
            room(1.5, None),
            "inside",
            "the tolerance holds up to 1.5 times the move; no crossing was shown up to 3 times the move",
        ),
        (
            room(0.5, None),
            "undecided",
            "the tolerance holds up to 0.5 times the move; no crossing was shown up to 3 times the move",
        ),
        (room(0.0, None), "undecided", "nothing was shown to hold; no crossing was shown up to 3 times the move"),
        (
            room(0.0, 1.5),
            "undecided",
            "the tolerance ends below 1.5 times the move: before or after the tuned model is not decided",
        ),
    ],
)
def test_the_reading_of_a_bracket(found, state, text):
    assert measuring.room_state(found) == state
    assert compare_words.room_words(found) == text


def test_no_estimate_changes_a_reading():
    assert measuring.room_state(replace(room(0.75, 1.25), t=0.8)) == "undecided"
    assert measuring.room_state(replace(room(0.75, 1.25), t=1.2, typical=(40.0, None), worst=30.0)) == "undecided"


def test_a_barrier_is_claimed_only_above_zero():
    assert compare_words.barrier_words(Barrier("a", Interval(0.1, 0.05, 0.15, 0.95, "t"), 0.5, 7)).startswith(
        "at t = 0.5 (10.0"
    )
    assert compare_words.barrier_words(Barrier("a", Interval(0.1, -0.01, 0.2, 0.95, "t"), 0.5, 7)).startswith(
        "none shown ("
    )
    assert compare_words.barrier_words(None) == "–"


def test_the_page_shows_rooms_and_says_that_nothing_rests_on_what_stands_beside():
    html = page_html(sample_comparison(rooms=rooms()))
    section = html[html.index('<section id="room"') : html.index('<section id="flips"')]
    assert "No verdict rests on these numbers" in section
    assert "0.375 to 0.5" in section
    assert "4.1 to 6" in section
    assert "0.11" in section
    assert re.findall(r"</svg>(used up|inside|undecided)</span>", section) == [
        "used up",
        "inside",
        "undecided",
        "inside",
    ]
    assert 'href="#room"' in html
    assert len(Outline(html).ids) == len(set(Outline(html).ids))


def test_the_mark_of_the_tuned_model_stands_at_one_on_the_axis():
    html = page_html(sample_comparison(rooms=rooms()))
    section = html[html.index('<section id="room"') : html.index('class="beside"')]
    labels = {text: float(at) for at, text in re.findall(r'<text x="([\d.]+)%" y="11">([^<]+)</text>', section)}
    (mark,) = {float(x) for x in re.findall(r'class="tuned-at" x1="([\d.]+)%"', section)}
    assert mark == pytest.approx(labels["1"])
    left = float(next(iter(re.findall(r'class="bracket" x="([\d.]+)%"', section))))
    assert left == pytest.approx(labels["0"] + 0.375 * (labels["1"] - labels["0"]), abs=0.01)


def test_without_rooms_there_is_no_section():
    html = page_html(sample_comparison())
    assert 'id="room"' not in html
    assert 'href="#room"' not in html


def test_the_texts_of_a_room_are_escaped():
    bad = "<b id=evil>"
    made = replace(ROOM, task=bad, note=bad, subspace=replace(ROOM.subspace, what=bad))
    assert "evil" not in Outline(page_html(sample_comparison(rooms=(made,)))).ids


def test_the_terminal_has_a_small_table_and_one_line_each():
    console = Console(file=io.StringIO(), width=80)
    print_comparison(sample_comparison(rooms=rooms(), flips=()), console)
    text = console.file.getvalue()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    recall = next(line.split() for line in lines if line.startswith("recall    ") and "used up" in line)
    assert recall == ["recall", "8.7", "0.42", "0.375", "to", "0.5", "used", "up", "4.1", "to", "6", "0.11"]
    assert "recall: the tolerance was used up after 38% to 50% of the way." in text
    assert "arithmetic: a barrier of 9.4 points (+5.1 to +13.7) lies at t = 0.625." in text
    assert "recall: a barrier" not in text
