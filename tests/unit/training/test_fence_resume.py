"""A guarded training that is killed and goes on, and one of several processes: the same looks, the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.errors import InputError
from tests.unit.training.test_fence import Loop, Toy, fenced

torch.set_num_threads(1)


@pytest.mark.parametrize("kill", [5, 8, 13, 20])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, kill: int) -> None:
    """Saved at step ``kill``, killed 6 steps later: same looks, same factors, same end, bit for bit."""

    def start(folder: Path) -> Loop:
        toy = Toy(t=lambda x: x, u=lambda x: x * x)
        return Loop(fenced(toy, slow=0.5, output_dir=folder), toy, steps=30, rate=0.02)

    alone = start(tmp_path / "alone").begin().run()
    first = start(tmp_path / "killed").begin().run(until=kill)
    saved = (first.toy.x, first.optimizer.state_dict(), first.scheduler.state_dict())
    saved = json.loads(json.dumps(saved, default=lambda _: None))
    first.run(until=kill + 6)
    again = start(tmp_path / "killed")
    again.state.global_step, again.toy.x = kill, saved[0]
    again.optimizer.load_state_dict(saved[1])
    again.scheduler.load_state_dict({k: v for k, v in saved[2].items() if k != "lr_lambdas"} | {"lr_lambdas": [None]})
    again.begin()
    assert again.toy.scored == []  # the base is read, not measured
    again.run()
    assert again.fence.history == alone.fence.history
    assert again.toy.x == alone.toy.x
    assert any(look.factor < 1 for look in alone.fence.history)
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    for name in names:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_resume_needs_its_base(tmp_path: Path) -> None:
    toy = Toy()
    with pytest.raises(InputError, match="the base's scores are not in output_dir"):
        Loop(fenced(toy), toy, global_step=3).begin()
    with pytest.raises(InputError, match="start anew"):
        Loop(fenced(toy, output_dir=tmp_path), toy, global_step=3).begin()
    Loop(fenced(toy, output_dir=tmp_path), toy).begin()
    with pytest.raises(InputError, match="holds the base's scores under"):
        Loop(fenced(toy, output_dir=tmp_path, seed=1), toy, global_step=3).begin()


def test_a_new_training_forgets_the_looks_of_an_earlier_one(tmp_path: Path) -> None:
    for until in (12, 3):
        toy = Toy()
        Loop(fenced(toy, output_dir=tmp_path), toy).begin().run(until=until)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["fence-00000001", "fence-00000002", "fence-base"]


def test_a_stopped_training_stays_stopped(tmp_path: Path) -> None:
    toy = Toy(t=lambda x: 0.5 if x > 1e-9 else 0.0)
    with pytest.warns(UserWarning, match="stopped the training"):
        loop = Loop(fenced(toy, output_dir=tmp_path), toy).begin().run()
    again = fenced(toy, output_dir=tmp_path)
    with pytest.warns(UserWarning, match="the fence stopped the training: step 2"):
        resumed = Loop(again, toy, global_step=loop.state.global_step).begin()
    assert resumed.control.should_training_stop
    toy.scored = []
    resumed.run()  # the last look was taken before the kill
    assert toy.scored == []
    assert again.stopped == loop.fence.stopped
    assert again.history == loop.fence.history
    assert [look.factor for look in again.history] == [0.0, 0.0]


def test_other_processes_resume_as_the_main_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would look once more at the end, or take a step, while the main one does not."""
    from catchment.training import fence as module

    toy = Toy(t=lambda x: 0.5 if x > 1e-9 else 0.0)
    with pytest.warns(UserWarning, match="stopped the training"):
        loop = Loop(fenced(toy, output_dir=tmp_path), toy).begin().run()
    sent: list[Any] = []
    monkeypatch.setattr(module.processes, "agreed", lambda value: sent.append(value) or value if not sent else sent[0])
    step = loop.state.global_step
    with pytest.warns(UserWarning, match="stopped the training"):
        Loop(fenced(toy, output_dir=tmp_path), toy, global_step=step).begin()
    other = fenced(Toy())
    second = Loop(other, Toy(), global_step=step, is_world_process_zero=False).begin()
    assert second.control.should_training_stop
    assert (other.history, other.stopped) == (loop.fence.history, loop.fence.stopped)


def test_other_processes_do_as_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """They score nothing, and multiply by the same numbers in the same order: the same bits."""
    from catchment.training import fence as module

    sent: list[Any] = []
    main, other = Toy(), Toy()
    first, second = fenced(main), fenced(other)
    loops = [
        Loop(first, main, rate=0.013).begin(),
        Loop(second, other, rate=0.013, is_world_process_zero=False).begin(),
    ]
    monkeypatch.setattr(
        module.processes, "agreed", lambda action: sent.append(action) or action if action else sent[-1]
    )
    for _ in range(40):
        for loop in loops:
            loop.step()
    assert other.scored == []
    assert other.x == main.x
    assert any(look.factor < 1 for look in first.history)
    assert first.history == second.history


def test_a_resume_asks_as_the_base_was_asked(tmp_path: Path) -> None:
    """Guard scores under another prompt are no base to measure drops from."""
    path, moved = tmp_path / "chat.jinja", tmp_path / "moved.jinja"
    path.write_text("{{ messages[0].content }}")
    toy = Toy()
    given: dict[str, Any] = {"chat_template": str(path), "system": "Be brief.", "output_dir": tmp_path / "fence"}
    Loop(fenced(toy, **given), toy).begin()
    Loop(fenced(toy, **given), toy, global_step=3).begin()
    path.rename(moved)
    Loop(fenced(toy, **{**given, "chat_template": str(moved)}), toy, global_step=3).begin()  # the same text
    path.write_text("{{ messages[0].content | trim }}")
    for other in ({"system": None}, {"system": "Be kind."}, {"chat_template": "none"}, {"chat_template": str(path)}):
        with pytest.raises(InputError, match="holds the base's scores under"):
            Loop(fenced(toy, **{**given, **other}), toy, global_step=3).begin()
