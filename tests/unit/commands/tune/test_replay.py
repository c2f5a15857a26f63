"""What holds a tune to its base: texts that fit, from items that nothing else uses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.commands.tune.replay import fitting, make_replay
from catchment.errors import InputError
from tests import tiny
from tests.unit.commands.tune.test_opening import opened, preferred


def chats(*questions: str) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "Rome"}], "cut": False}
        for q in questions
    ]


def test_texts_of_the_base_that_do_not_fit_are_left_out() -> None:
    job = opened(tokenizer=tiny.tiny_tokenizer(chat=True), max_length=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replay = fitting(job, chats("hello", "Paris and " * 60, "and"))
    assert [str(w.message) for w in caught] == [
        "1 of 3 texts of the base are not replayed: their prompts fill max-length 64"
    ]
    assert len(replay) == 2
    assert all(len(e["input_ids"]) == len(e["labels"]) <= 64 for e in replay)


@pytest.mark.parametrize("rows", [[], chats("Paris and " * 60)], ids=["none", "too long"])
def test_a_base_without_a_text_that_fits(rows: list[dict[str, Any]]) -> None:
    job = opened(tokenizer=tiny.tiny_tokenizer(chat=True), max_length=64)
    with pytest.raises(InputError, match=r"none of the base's \d texts leaves a token .* or use --replay 0"):
        fitting(job, rows)


def test_what_is_replayed_is_from_items_that_nothing_else_uses(tmp_path: Path) -> None:
    job = opened(
        tokenizer=tiny.tiny_tokenizer(chat=True), max_length=128, out=tmp_path, protect=(preferred("echo", 240),),
        replay=0.5, replay_weight=3.0, batch_size=4, max_steps=3,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as first:
        warnings.simplefilter("always")
        replay = make_replay(job)
    assert any("are not replayed" in str(w.message) for w in first)  # some texts of a tiny model are too long
    (echo,) = job.protected
    used = {item.id for part in (echo.guard, echo.judged) for item in part.items}
    assert not used & {item.id for item in echo.replayed.items}
    assert {item.id for item in echo.pilot.items} <= {item.id for item in echo.replayed.items}
    rows = [json.loads(line) for line in (tmp_path / "replay.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row for row in rows if row["task"] == "echo"]
    assert len(answers) == 3 * len(echo.replayed.items)  # three choices each
    assert len(rows) > len(answers)
    assert (replay.per_batch, replay.weight, len(replay.examples)) == (4, 3.0, len(rows))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = make_replay(job)  # from the file
    assert sorted(str(w.message) for w in caught) == sorted(str(w.message) for w in first)
    assert again.examples == replay.examples
    for ours, theirs in zip(replay._base, again._base, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
