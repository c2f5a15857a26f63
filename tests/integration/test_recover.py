"""``--recover``: its points are those of the room, what is saved is what was judged, and the base is left alone."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import catchment
from catchment import landscape
from catchment.capabilities import Task
from catchment.commands.compare import recover as recovery
from catchment.commands.compare.recover import CANDIDATES, TUNED, Candidate, halves
from tests import tiny
from tests.integration.test_compare import home, make_task
from tests.integration.test_rooms import moved
from tests.integration.test_scan import forwards, solved

__all__ = ["forwards", "home"]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task() -> Task:
    return solved(tiny.tiny_llama(), make_task(n=160))


def compare(base: Any, tuned: Any, task: Task, **options: Any) -> Any:
    options = {"text": "none", "formats": 1, "tokenizer": tiny.tiny_tokenizer(), **options}
    return catchment.compare(base, tuned, tasks=[task], **options)


@pytest.mark.parametrize("first", ["room", "recover"])
def test_points_of_the_room_are_measured_once(
    first: str, task: Task, tmp_path: Path, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room measures all items at 1/4, 1/2 and 3/4 of the way, and recovery the rest: truncations on the choosing
    half, and the chosen one on the judging half. Whichever comes first, the other finds the rows of the same points."""
    monkeypatch.setattr(recovery, "choose", lambda *_: Candidate("truncation", 0.5))
    base, tuned = tiny.tiny_llama(), moved(0.1)
    choosing, judging = halves(task, dict.fromkeys(item.id for item in task.items), 0)  # type: ignore[arg-type]
    own = 3 * len(choosing) + len(judging)
    room = compare(copy.deepcopy(base), copy.deepcopy(tuned), task, store=tmp_path / "alone")
    alone = forwards["rows"]
    assert {0.25, 0.5, 0.75} <= {node.scale for node in room.rooms[0].nodes}
    forwards.clear()
    if first == "recover":
        compare(base, tuned, task, recover=tmp_path / "early", room=False)
        assert forwards["rows"] == 2 * 160 + 3 * len(choosing) + own
    both = compare(base, tuned, task, recover=tmp_path / "out")
    again = 3 * len(choosing) if first == "recover" else 0  # the room measures a point on all its items, or not at all
    assert forwards["rows"] == alone + own + again
    assert both.rooms == room.rooms
    forwards.clear()
    compare(base, tuned, task, recover=tmp_path / "out")
    assert forwards["rows"] == 0


@pytest.mark.parametrize("candidate", [*CANDIDATES, TUNED], ids=lambda candidate: candidate.name)
def test_what_is_saved_is_the_point_that_was_judged(
    candidate: Candidate, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and the base is as it was, its config included."""
    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(recovery, "choose", lambda *_: candidate)
    real = recovery._judged

    def judged(search: Any, best: Any) -> Any:
        result = real(search, best)
        model = search.evaluator.mover.model
        seen.update({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return result

    monkeypatch.setattr(recovery, "_judged", judged)
    base, tuned = tiny.tiny_llama(), moved(0.1)
    before = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    config = copy.deepcopy(base.config.to_dict())
    comparison = compare(base, tuned, task, recover=tmp_path / "out", room=False)
    assert (comparison.recovered.recipe, comparison.recovered.strength) == (candidate.recipe, candidate.strength)
    saved = dict(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    way = landscape.towards(base, tuned)
    direction, t = candidate.on(way)
    with landscape.displaced(base, direction, t * direction.alpha):
        for name, weight in base.named_parameters():
            assert torch.equal(weight, saved[name])
            assert torch.equal(seen[name], saved[name])
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters())
    assert base.config.to_dict() == config
