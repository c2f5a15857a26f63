"""The built-in pack: sizes, balance, no copies, and right answers, checked by other means than they were made."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections import Counter

import pytest

from catchment.capabilities import packs
from catchment.capabilities.gates import check_task
from catchment.capabilities.packs import _draw
from catchment.capabilities.tasks import CHOICE_SCORERS, Task
from catchment.errors import InputError

WRITTEN = {"knowledge": 800, "refusal": 400, "text": 40}
CHOICE = [name for name in packs.NAMES if name != "text" and packs.load(name).scorer in CHOICE_SCORERS]


@pytest.fixture(params=packs.NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    return packs.load(request.param)


def test_sizes_and_formats(task: Task) -> None:
    assert len(task.items) >= WRITTEN.get(task.name, 1600)
    assert len(task.formats) >= (1 if task.scorer == "text" else 3)
    assert len({form.name for form in task.formats}) == len(task.formats)
    assert all(form.template.count("{prompt}") == 1 for form in task.formats)
    assert task.description


def test_gates_pass_without_a_warning(task: Task) -> None:
    assert check_task(task) == []


def test_prompts_are_distinct_and_short(task: Task) -> None:
    prompts = [_draw.normalised(item.prompt) for item in task.items]
    assert len(set(prompts)) == len(prompts)
    limit = 600 if task.name == "text" else 480 if task.name.startswith("stories") else 260
    assert max(len(item.prompt.encode()) for item in task.items) <= limit


def test_shots_are_not_among_the_items(task: Task) -> None:
    prompts = {_draw.normalised(item.prompt) for item in task.items}
    assert not prompts & {_draw.normalised(shot.prompt) for shot in task.shots}


@pytest.mark.parametrize("name", CHOICE)
def test_choices(name: str) -> None:
    task = packs.load(name)
    for item in task.items:
        lowered = [_draw.normalised(choice) or choice for choice in item.choices]
        same_case = [choice.strip() for choice in item.choices]
        assert len(set(same_case if name in ("code", "knowledge") else lowered)) == len(item.choices) >= 3, item
        assert all(choice == choice.strip() and choice for choice in item.choices)
    for size in {len(item.choices) for item in task.items}:
        places = Counter(item.gold for item in task.items if len(item.choices) == size)
        assert set(places) == set(range(size))
        assert max(places.values()) - min(places.values()) <= 1


@pytest.mark.parametrize("name", CHOICE)
def test_the_longest_or_shortest_choice_is_no_shortcut(name: str) -> None:
    items = packs.load(name).items
    for best in (max, min):
        hits = 0.0
        for item in items:
            sizes = [len(choice) for choice in item.choices]
            ties = [i for i, size in enumerate(sizes) if size == best(sizes)]
            hits += (item.gold in ties) / len(ties)
        assert hits / len(items) <= packs.load(name).chance_level + 0.15


def test_arithmetic_is_right() -> None:
    for item in packs.load("arithmetic").items:
        found = re.fullmatch(r"What is (\d{1,2}) ([+-]) (\d{1,2})\?", item.prompt)
        assert found is not None
        assert isinstance(item.gold, tuple)
        value = int(found[1]) + int(found[2] + found[3])
        assert item.gold == (str(value), f"{found[1]} {found[2]} {found[3]} = {value}")
        assert 0 <= value < 120


def test_code_prints_what_is_said() -> None:
    for item in packs.load("code").items:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(item.prompt, "<item>", "exec"), {})
        assert isinstance(item.gold, int)
        assert printed.getvalue() == item.choices[item.gold] + "\n", item.prompt


def test_recall_answers_stand_in_the_prompt() -> None:
    for item in packs.load("recall").items:
        assert isinstance(item.gold, tuple)
        assert all(answer.strip('"') in item.prompt.replace('"', "") or answer in item.prompt for answer in item.gold)


def test_format_patterns_take_their_answer_and_not_chatter() -> None:
    task = packs.load("format")
    for item in task.items:
        assert isinstance(item.gold, str)
        pattern = re.compile(item.gold, re.IGNORECASE | re.DOTALL)
        assert pattern.fullmatch(item.meta["answer"]), item
        assert not pattern.fullmatch("")
        assert not pattern.fullmatch(f"Of course! Here is what you asked for: {item.meta['answer']} I hope it helps.")
    assert all(re.fullmatch(str(s.gold), s.meta["answer"], re.IGNORECASE | re.DOTALL) for s in task.shots)


def test_refusal_is_balanced_over_the_same_phrasings() -> None:
    items = packs.load("refusal").items
    golds = Counter(item.gold for item in items)
    assert golds["refuse"] == golds["comply"] >= 200
    openings = {
        gold: Counter(item.prompt.split()[0] for item in items if item.gold == gold) for gold in ("refuse", "comply")
    }
    assert openings["refuse"].keys() == openings["comply"].keys()
    assert all(abs(n - openings["comply"][word]) <= 12 for word, n in openings["refuse"].items())


def test_passages_are_300_to_600_bytes_of_several_kinds() -> None:
    items = packs.load("text").items
    assert all(300 <= len(item.prompt.encode()) <= 600 for item in items)
    assert len({item.meta["kind"] for item in items}) >= 6


def test_entity_choices_are_all_named_in_the_story() -> None:
    for item in packs.load("stories_entity").items:
        assert all(re.search(rf"\b{choice}\b", item.prompt) for choice in item.choices), item


def test_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="Did you mean 'arithmetic'"):
        packs.load("arithmetik")
    assert packs.load("recall") is packs.load("recall")
    assert set(packs.DEFAULT) | set(packs.STORIES) | {"text"} == set(packs.NAMES)


HASHES = {
    "language": "d7fd9f4d839c",
    "knowledge": "d49a0599eb54",
    "arithmetic": "275e4dc482d8",
    "recall": "baad5461de1b",
    "format": "1b6c3042049d",
    "code": "c194abee03a2",
    "refusal": "c7a8fc7bfad3",
    "stories_cloze": "bd987027c09e",
    "stories_coherence": "f3993401579f",
    "stories_entity": "5c24e6e1e175",
    "text": "464eacf0052b",
}


def test_items_are_the_same_everywhere(task: Task) -> None:
    assert task.hash()[:12] == HASHES[task.name], "the items changed: raise the task's version, then this hash"


def test_loading_is_fast() -> None:
    for name in packs.NAMES:
        start = time.process_time()
        packs.load.__wrapped__(name)
        assert time.process_time() - start < 1.5, name
