"""The room in ``compare``: where a tune stands on its own ray, the barrier on it, and what a second run measures."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import catchment
from catchment.capabilities import Task
from catchment.commands.compare.record import Comparison
from catchment.landscape import Mover
from catchment.records import Room, from_json
from tests import tiny
from tests.integration.test_compare import Cli, home, make_task, run_cli, write_task
from tests.integration.test_scan import forwards, solved

__all__ = ["forwards", "home", "run_cli"]
torch.set_num_threads(1)


def moved(distance: float, seed: int = 1) -> Any:
    """The tiny model, every weight moved by ``distance`` along one fixed random direction."""
    model = tiny.tiny_llama()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(distance * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def task() -> Task:
    return solved(tiny.tiny_llama(), make_task(n=160))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    for name, model in (("base", tiny.tiny_llama()), ("far", moved(0.1))):
        model.save_pretrained(root / name)
        tiny.tiny_tokenizer().save_pretrained(root / name)
    write_task(root / "echo.jsonl", task)
    return root


def compare(base: Any, tuned: Any, task: Task, **options: Any) -> Comparison:
    tokenizer = None if isinstance(base, str) else tiny.tiny_tokenizer()
    return catchment.compare(base, tuned, tasks=[task], text="none", formats=1, tokenizer=tokenizer, **options)


def honest(room: Room) -> None:
    """Ends are nodes that were decided as they say, and t lies between them."""
    outcomes = {node.scale: node.outcome for node in room.nodes}
    assert room.low == 0 or all(outcomes[t] == "inside" for t in outcomes if t <= room.low)
    assert room.high is None or outcomes[room.high] == "outside"
    if room.t is not None:
        assert room.t <= room.reach
        assert room.t >= room.low
        assert room.high is None or room.t <= room.high


def test_a_tune_that_went_too_far(pair: Path, task: Task, tmp_path: Path) -> None:
    comparison = compare(str(pair / "base"), str(pair / "far"), task, out=tmp_path / "out")
    assert comparison["echo"].verdict == "lost"
    (room,) = comparison.rooms
    honest(room)
    assert room.t is not None
    assert room.high is not None
    assert room.t < 1
    assert room.high <= 1
    own = next(node for node in room.nodes if node.scale == 1.0)
    assert own.drop.estimate == pytest.approx(-comparison["echo"].difference.estimate)
    assert own.outcome == "outside"
    assert room.barrier is not None
    assert 0 < room.barrier.at < 1
    assert room.typical is not None  # as far as random moves of its size
    assert room.typical[0] < 1
    assert room.worst is not None
    assert room.worst < room.high  # who looks for harm needs a smaller move
    assert room.alpha == pytest.approx(0.1, rel=0.02)
    norm = sum(float(w.detach().double().square().sum()) for w in tiny.tiny_llama().parameters()) ** 0.5
    assert room.subspace.norm == pytest.approx(norm)  # of the base, wherever the model stood meanwhile
    assert from_json(Comparison, (tmp_path / "out/comparison.json").read_text()).rooms == comparison.rooms
    assert "room" in (tmp_path / "out/report.html").read_text().lower()


def test_a_tune_with_room_to_spare(task: Task) -> None:
    """A small part of the same way is harmless, and the record says how much further it could have gone."""
    base, tuned = tiny.tiny_llama(), moved(0.1 / 256)
    comparison = compare(base, tuned, task)
    assert comparison["echo"].verdict == "kept"
    (room,) = comparison.rooms
    honest(room)
    assert room.low >= 1
    assert room.t is None or room.t > 1
    assert room.reach == 4.0
    assert room.typical is not None
    assert room.typical[0] > 1


def test_the_ends_of_the_ray_are_the_two_models(task: Task) -> None:
    """At alpha the mover makes the tuned model: the same rows, bit for bit, as the tuned model's own."""
    base, tuned = tiny.tiny_llama(), moved(0.1)
    way = catchment.towards(base, tuned)
    options: dict[str, Any] = {"tokenizer": tiny.tiny_tokenizer(), "batch_tokens": 1024}
    own = catchment.evaluate(tuned, task, **options)
    with Mover(base, way.subspace) as mover:
        mover.place((way, way.alpha))
        there = catchment.evaluate(base, task, **options)
        mover.place((way, 0.5 * way.alpha))
        between = catchment.evaluate(base, task, **options)
    assert there.rows == own.rows
    assert between.rows != own.rows
    assert catchment.evaluate(base, task, **options).mean == 1
    room = compare(tiny.tiny_llama(), moved(0.1), task).rooms[0]
    half = next(node for node in room.nodes if node.scale == 0.5)
    assert half.drop.estimate == pytest.approx(1 - between.mean)


def test_a_second_run_takes_no_forward_pass(pair: Path, task: Task, tmp_path: Path, forwards: Counter[str]) -> None:
    first = compare(str(pair / "base"), str(pair / "far"), task, out=tmp_path / "out")
    assert forwards["rows"] > 1000
    forwards.clear()
    again = compare(str(pair / "base"), str(pair / "far"), task, out=tmp_path / "out")
    assert forwards["rows"] == 0
    assert again.rooms == first.rooms
    other = compare(str(pair / "base"), str(pair / "far"), task, out=tmp_path / "other")  # from the store alone
    assert forwards["rows"] == 0
    assert other.rooms == first.rooms


def test_a_cut_room_stays_as_it_was(
    pair: Path, task: Task, tmp_path: Path, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget that ends on the ray leaves a wider room, and a second run does not go on with it."""
    from catchment.commands.compare import room as rooms

    looks = iter([False, False])
    with monkeypatch.context() as patch:
        patch.setattr(rooms, "over", lambda pair, began: next(looks, True))
        first = compare(str(pair / "base"), str(pair / "far"), task, out=tmp_path / "out", budget="10m")
    (room,) = first.rooms
    honest(room)
    assert [node.scale for node in room.nodes] == [0.25, 0.5, 1.0]
    assert (room.typical, room.worst) == (None, None)
    forwards.clear()
    again = compare(str(pair / "base"), str(pair / "far"), task, out=tmp_path / "out", budget="10m")
    assert forwards["rows"] == 0
    assert again.rooms == first.rooms


def test_a_room_that_was_interrupted_goes_on_within_its_share(
    pair: Path, task: Task, tmp_path: Path, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from catchment.commands.compare import room as rooms

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"out": tmp_path / "out", "budget": "10m"}
    with monkeypatch.context() as patch:
        patch.setattr(rooms, "_typical", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(str(pair / "base"), str(pair / "far"), task, **options)
    assert forwards["rows"] >= 5 * 160  # both models, and three points of the ray
    forwards.clear()
    with monkeypatch.context() as patch:
        patch.setattr(rooms, "ROOM_SHARE", -1.0)
        patch.setattr(
            rooms, "accept", lambda pair, state, plan: dataclasses.replace(state, plan=plan)
        )  # as if it were killed once more
        cut = compare(str(pair / "base"), str(pair / "far"), task, **options)
    assert forwards["rows"] == 0
    assert [node.scale for node in cut.rooms[0].nodes] == [1.0]
    whole = compare(str(pair / "base"), str(pair / "far"), task, **options)
    assert len(whole.rooms[0].nodes) >= 4
    assert whole.rooms[0].typical is not None
    assert 0 < forwards["rows"] < 8 * 6 * 2 * 8 + 5 * 64 + 1  # random moves and attacks, and not the ray again


def test_a_budget_is_kept_with_the_room_in_it(pair: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is a hundred times slower than it is, the clock ends the room soon after the budget."""
    from catchment.capabilities import Pace
    from catchment.commands.compare import prices as timing
    from catchment.commands.compare import room as rooms
    from catchment.measuring import clock

    spent = 0.0
    fresh = rooms.Evaluator.fresh

    def slow(self: Any, task: str, items: Any) -> Any:
        nonlocal spent
        spent += 0.02 * len(items)
        return fresh(self, task, items)

    monkeypatch.setattr(rooms.Evaluator, "fresh", slow)
    monkeypatch.setattr(timing, "measure_pace", lambda engine, patience: Pace(0.00005))
    monkeypatch.setattr(rooms, "over", lambda pair, began: pair.clock.elapsed + spent > 20.0 - clock.reserve(20.0))
    comparison = compare(str(pair / "base"), str(pair / "far"), task, budget="20s")
    (room,) = comparison.rooms
    honest(room)
    largest = 0.02 * 160 + 2
    assert spent < 20 - clock.reserve(20.0) + largest
    assert room.worst is None


def test_without_a_room(pair: Path, tmp_path: Path, run_cli: Cli, forwards: Counter[str]) -> None:
    arguments = ("compare", pair / "base", pair / "far", "--tasks", pair / "echo.jsonl", "--text", "none")
    result = run_cli(*arguments, "--formats", "1", "--no-room", "--out", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    comparison = from_json(Comparison, result.stdout)
    assert comparison.rooms == ()
    assert comparison["echo"].verdict == "lost"
    assert forwards["rows"] == 2 * 160


def test_an_increment_moves_its_own_entries_only(pair: Path, task: Task, tmp_path: Path) -> None:
    """A sparse tune's room, and the random moves beside it, lie in the entries that it changed."""
    base, tuned = tiny.tiny_llama(), tiny.tiny_llama()
    with torch.no_grad():
        for layer in tuned.model.layers:
            layer.mlp.down_proj.weight[::4] += 1.0
    catchment.make_increment(base, tuned, tmp_path / "inc.safetensors")
    spec = f"{pair / 'base'}+{tmp_path / 'inc.safetensors'}"
    comparison = compare(str(pair / "base"), spec, task)
    (room,) = comparison.rooms
    honest(room)
    assert room.subspace.kind == "sparse"
    assert room.subspace.size == 2 * 8 * 48
    assert room.alpha == pytest.approx(1.0)
    assert room.typical is not None


def test_models_that_have_no_way_between_them(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another shape, or a base under an adapter: no room, and a warning that says so."""
    from peft import LoraConfig, get_peft_model

    small = task.with_items(task.items[:64])
    wide = compare(tiny.tiny_llama(), tiny.tiny_llama(intermediate_size=64), small)
    assert wide.rooms == ()
    if wide["echo"].verdict in ("lost", "kept"):
        assert any("no room" in warning for warning in wide.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            tiny.tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=True, task_type="CAUSAL_LM")
        ).eval()
        found = compare(adapted, moved(0.1), small)
    assert found["echo"].verdict == "lost"
    assert found.rooms == ()
    assert any("stands under an adapter" in warning for warning in found.warnings)


def test_a_tune_with_an_adapter_has_a_room(task: Task) -> None:
    """Its way leads to what the adapter merges to."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        tuned = get_peft_model(
            tiny.tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, lora_alpha=64)
        ).eval()
        comparison = compare(tiny.tiny_llama(), tuned, task)
    (room,) = comparison.rooms
    honest(room)
    assert room.subspace.size == pytest.approx(2 * 32 * 32, rel=0.01)  # both query projections, and nothing else


def test_a_task_that_is_undecided_has_none(task: Task) -> None:
    few = dataclasses.replace(task, items=task.items[:24])
    comparison = compare(tiny.tiny_llama(), moved(0.005), few)
    assert comparison["echo"].verdict == "undecided"
    assert comparison.rooms == ()


@pytest.mark.parametrize("place", ["batches_of", "worst", "scout"])
def test_a_room_that_fails_does_not_cost_the_comparison(
    task: Task, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The ray is there when only the attack fails; the verdict is there in any case."""
    from catchment import landscape

    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(landscape, place, fails)
    comparison = compare(tiny.tiny_llama(), moved(0.1), task)
    assert comparison["echo"].verdict == "lost"
    assert any("room" in warning and "memory ran out" in warning for warning in comparison.warnings)
    assert len(comparison.rooms) == (0 if place == "scout" else 1)
    assert all(room.worst is None for room in comparison.rooms)


def test_a_room_without_memory_for_an_attack(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    from catchment import landscape

    monkeypatch.setattr(landscape, "free_memory", lambda device: 1e5)
    comparison = compare(tiny.tiny_llama(), moved(0.1), task)
    (room,) = comparison.rooms
    assert room.worst is None
    assert room.typical is not None
    assert any("GB of free memory" in warning for warning in comparison.warnings)
