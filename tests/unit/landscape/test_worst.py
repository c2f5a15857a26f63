"""Attacks against a quadratic, where the worst direction and radius are known, and on a tiny model."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from catchment.errors import InputError, ModelError
from catchment.landscape import (
    Batch,
    Effort,
    Evaluator,
    Mover,
    Subspace,
    answer_batches,
    ascend,
    attack_memory,
    gaussian,
    mean_loss,
    unit,
    worst,
)
from catchment.models import weights_hash
from catchment.records import Node, to_json
from catchment.runs import Store
from catchment.statistics import mean_interval
from tests.tiny import tiny_llama
from tests.unit.landscape.oracles import NAMES, Oracle, bare_ground, cells, peak_bytes, real, real_ground

module = importlib.import_module("catchment.landscape.worst")  # the package's name is the function
SIZE, BASE, TAU = 24, 0.3, 0.05
ASCENT = [Batch(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2), 1, ("a", "b"))]


class Bowl:
    """loss = BASE + g . move + move' H move / 2, with H of a known spectrum; not finite beyond an RMS of ``limit``.

    ``points`` holds every move at which the loss was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slope: float = 0.0, limit: float = math.inf) -> None:
        generator = torch.Generator().manual_seed(5)
        basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q
        self.values = torch.cat([torch.tensor([2.0]), torch.linspace(0.5, 0.01, SIZE - 1)]).double()
        self.top = basis[:, 0]
        self.h = basis @ torch.diag(self.values) @ basis.T
        self.g = slope * basis[:, 3]
        self.limit = limit
        self.points: list[Tensor] = []
        self.seer: Oracle | None = None
        monkeypatch.setattr(module, "accumulate_gradient", self._gradient)
        monkeypatch.setattr(module, "mean_loss", self._loss)

    def loss(self, move: Tensor) -> float:
        return BASE + float(self.g @ move) + 0.5 * float(move @ self.h @ move)

    def _gradient(self, model: Any, weights: Any, batches: Any) -> tuple[float, dict[str, Tensor]]:
        value = self._loss(model, batches)
        if not math.isfinite(value):
            raise ModelError(f"the loss is {value}; expected a finite number.")
        return value, {"theta": (self.g + self.h @ self.points[-1]).float()}

    def _loss(self, model: Any, batches: Any) -> float:
        assert self.seer is not None
        self.points.append(self.seer.move)
        rms = float(self.points[-1].square().mean().sqrt())
        return self.loss(self.points[-1]) if rms <= self.limit else math.nan

    def evaluator(self, count: int = 150, **options: Any) -> Oracle:
        """Every item is lost where the loss has risen by TAU."""
        score = lambda move, i: float(move.numel() == 1 or self.loss(move) <= BASE + TAU)  # noqa: E731
        self.seer = Oracle(SIZE, [bare_ground("t", count, tau=0.1)], score, **options)
        return self.seer


def rms(direction: Any) -> float:
    kept = torch.cat([direction.delta(n) for n in direction.subspace.shapes]).double()
    return math.sqrt(float(kept.square().sum()) / direction.subspace.size)


def test_the_ascent_finds_the_top_eigenvector(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl(monkeypatch)
    seer = bowl.evaluator()
    before = weights_hash(seer.engine.model)
    starts = [unit(gaussian(seer.mover.subspace, 1, i)) for i in range(2)]
    found = ascend(seer, ASCENT, 0.2, starts, 25, {"attack": 1})
    along = found.direction.delta("theta").double()
    assert abs(float(along @ bowl.top)) / float(along.norm()) > 0.999
    assert rms(found.direction) == pytest.approx(1, abs=1e-6)
    best = BASE + 0.5 * 2.0 * 0.2**2 * SIZE
    assert 0.99 * best < found.loss <= best * (1 + 1e-6)
    assert found.loss == max(found.losses)
    assert len(found.losses) == 2
    for point in bowl.points:
        assert float(point.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-5), "on the sphere"
    assert len(bowl.points) == 2 * 26
    assert weights_hash(seer.engine.model) == before


@pytest.mark.parametrize("steps", [0, 1, 2, 8])
@pytest.mark.parametrize("slope", [0.0, 0.5, 20.0])
def test_never_below_the_loss_of_any_start(steps: int, slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """1-basins.md, 8.9."""
    bowl = Bowl(monkeypatch, slope)
    seer = bowl.evaluator()
    starts = [unit(gaussian(seer.mover.subspace, 9, i)) for i in range(6)]
    own = [bowl.loss(0.3 * start.delta("theta").double()) for start in starts]
    found = ascend(seer, ASCENT, 0.3, starts, steps, {})
    assert found.loss >= max(own) - 1e-5
    for loss, start in zip(found.losses, own, strict=True):
        assert loss >= start - 1e-5
    assert found.loss == pytest.approx(bowl.loss(0.3 * found.direction.delta("theta").double()), rel=1e-5)


def test_the_worst_radius_of_a_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """||dtheta|| = sqrt(2 tau / lambda_max), so an RMS radius of that over sqrt(k): an upper bound, and a near one."""
    bowl = Bowl(monkeypatch)
    seer = bowl.evaluator(count=600)
    found = worst(seer, seer.grounds["t"], ASCENT, Effort(2, 20, 14, 1e-4, 10.0))
    assert found is not None
    truth = math.sqrt(2 * TAU / 2.0) / math.sqrt(SIZE)
    assert found.radius is not None
    assert found.survived is not None
    assert truth <= found.radius < 1.02 * truth
    assert 0.98 * truth < found.survived < truth
    typical = math.sqrt(2 * TAU / float(bowl.values.sum()))
    assert found.radius < typical / 2
    assert found.loss_base == pytest.approx(BASE)
    assert (found.ascent_items, found.scored_items, found.restarts, found.steps) == (2, 600, 2, 20)
    scales = [node.scale for node in found.nodes]
    assert scales == sorted(scales)
    for node, loss in zip(found.nodes, found.losses, strict=True):
        assert loss == pytest.approx(BASE + 0.5 * 2.0 * node.scale**2 * SIZE, rel=0.02), (
            "losses stand beside their nodes"
        )
        assert node.outcome == ("outside" if node.scale >= truth else "inside")
    at_home = sum(not point.any() for point in bowl.points)
    assert at_home == 1, "one gradient at the model's own weights for all radii"
    assert {node.drop.family for node in found.nodes} == {2**14 - 1}, "every radius that might have been looked at"
    assert to_json(found)


def test_the_first_radius_promises_one_nat(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl(monkeypatch, slope=20.0)
    seer = bowl.evaluator()
    found = worst(seer, seer.grounds["t"], ASCENT, Effort(1, 3, 1, 1e-6, 10.0))
    assert found is not None
    assert found.nodes[0].scale == pytest.approx(1 / (20.0 * math.sqrt(SIZE)), rel=1e-5)
    assert found.losses[0] >= BASE + 1


def test_radii_stay_in_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl(monkeypatch)
    seer = bowl.evaluator()
    found = worst(seer, seer.grounds["t"], ASCENT, Effort(1, 5, 9, 1e-6, 1e-3))
    assert found is not None
    assert (found.radius, found.survived) == (None, 1e-3)
    assert all(node.scale <= 1e-3 for node in found.nodes)
    found = worst(seer, seer.grounds["t"], ASCENT, Effort(1, 5, 9, 1.0, 9.0))
    assert found is not None
    assert found.survived is None
    assert 1.0 <= (found.radius or 0) < 4.0, "the smallest in the range"


def test_items_of_the_ascent_are_never_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    seer = Bowl(monkeypatch).evaluator()
    shared = [Batch(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2), 1, ("a", "t0003"))]
    with pytest.raises(InputError, match="disjoint"):
        worst(seer, seer.grounds["t"], shared, Effort())
    assert not seer.seen


def test_a_loss_that_is_not_finite_asks_for_a_smaller_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known beyond an RMS of 0.02, below the radius at which the quadratic is lost."""
    bowl = Bowl(monkeypatch, limit=0.02)
    seer = bowl.evaluator()
    found = worst(seer, seer.grounds["t"], ASCENT, Effort(2, 5, 9, 1e-4, 10.0))
    assert found is not None
    assert found.radius is None
    assert "not finite" in found.note
    assert found.nodes
    assert all(node.scale <= 0.02 and node.outcome == "inside" for node in found.nodes)
    assert len({node.scale for node in found.nodes}) == len(found.nodes)
    assert to_json(found)


def test_some_starts_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl(monkeypatch)
    seer = bowl.evaluator()
    good = unit(gaussian(seer.mover.subspace, 0, 0))
    bad = unit(gaussian(seer.mover.subspace, 0, 1))
    real_loss = bowl.loss
    monkeypatch.setattr(
        bowl,
        "loss",
        lambda move: (
            math.nan if torch.allclose(move, 0.2 * bad.delta("theta").double(), atol=1e-5) else real_loss(move)
        ),
    )
    found = ascend(seer, ASCENT, 0.2, [bad, good], 3, {})
    assert found.losses[0] == -math.inf
    assert math.isfinite(found.loss)
    with pytest.raises(ModelError, match="not finite"):
        ascend(seer, ASCENT, 0.2, [bad], 3, {})


def test_not_finite_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl(monkeypatch, limit=1e-9)
    seer = bowl.evaluator()
    found = worst(seer, seer.grounds["t"], ASCENT, Effort(1, 2, 5, 1e-4, 1e-1))
    assert found is not None
    assert (found.nodes, found.radius, found.survived) == ((), None, None)
    assert "not finite" in found.note
    assert to_json(found)


@pytest.mark.parametrize("limit", [math.inf, 0.3, 0.02])
def test_a_frozen_replay_gives_the_same_record(limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bowl, records = Bowl(monkeypatch, limit=limit), []
    for frozen in (False, True):
        seer = bowl.evaluator(cell=cells(Store(tmp_path)), frozen=frozen)
        with seer:
            found = worst(seer, seer.grounds["t"], ASCENT, Effort(2, 5, 8, 1e-4, 10.0))
        assert found is not None
        records.append(to_json(found))
        asked = len(bowl.points)
    assert records[0] == records[1]
    assert not seer.seen
    assert asked == len(bowl.points)


def test_a_killed_hunt_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl(monkeypatch)
    seer = bowl.evaluator(cell=cells(Store(tmp_path)))
    cut = worst(seer, seer.grounds["t"], ASCENT, Effort(2, 5, 8, 1e-4, 10.0), stop=lambda: len(seer.seen) >= 3)
    assert cut is not None
    assert len(cut.nodes) == 3
    seer.flush()
    on = bowl.evaluator(cell=cells(Store(tmp_path)))
    found = worst(on, on.grounds["t"], ASCENT, Effort(2, 5, 8, 1e-4, 10.0))
    assert found is not None
    assert len(on.seen) == len(found.nodes) - 3
    assert set(cut.nodes) <= set(found.nodes)
    assert worst(on, on.grounds["t"], ASCENT, Effort(), stop=lambda: True) is None


def test_a_drop_within_tau_or_few_items_is_no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl(monkeypatch)
    seer = bowl.evaluator(count=2)
    found = worst(seer, seer.grounds["t"], ASCENT, Effort(1, 5, 3, 1e-4, 10.0))
    assert found is not None
    assert found.radius is None, "two items lost of two show nothing at this level"
    assert {node.outcome for node in found.nodes} == {"undecided"}


def test_intervals_hold_for_every_radius_that_might_have_been_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five looks with two branches each, for three tasks."""
    seer = Bowl(monkeypatch).evaluator()
    narrow = worst(seer, seer.grounds["t"], ASCENT, Effort(1, 3, 5, 1e-4, 10.0))
    wide = worst(seer, seer.grounds["t"], ASCENT, Effort(1, 3, 5, 1e-4, 10.0), family=3)
    assert narrow is not None
    assert wide is not None
    assert {node.drop.family for node in narrow.nodes} == {31}
    assert {node.drop.family for node in wide.nodes} == {93}


def test_other_judged_items_are_another_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that was kept has no move any more: rows of further items cannot be added to it."""
    bowl, found = Bowl(monkeypatch), []
    for folder, count in (("a", 60), ("a", 150), ("b", 150)):
        seer = bowl.evaluator(cell=cells(Store(tmp_path / folder)))
        with seer:
            judged = seer.grounds["t"].with_items(seer.grounds["t"].items[:count])
            found.append(worst(seer, judged, ASCENT, Effort(2, 5, 5, 1e-4, 10.0)))
        assert all(move.any() for _, _, move in seer.seen), "nothing is measured at the model's own weights"
    assert found[1] == found[2]
    assert found[0] != found[1]


def test_an_attack_whose_rows_were_damaged_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bowl, found = Bowl(monkeypatch), []
    for damaged in (False, True):
        seer = bowl.evaluator(cell=cells(Store(tmp_path)))
        if damaged:
            table = seer._table("t", module._Hunt(seer, seer.grounds["t"], ASCENT, EFFORT, 0.95, 1).family())
            for key in [key for key in table if key.endswith(":t0007")]:
                del table[key]
        with seer:
            found.append(worst(seer, seer.grounds["t"], ASCENT, EFFORT))
    assert found[0] == found[1]
    assert seer.seen
    assert all(move.any() for _, _, move in seer.seen)


EFFORT = Effort(2, 5, 5, 1e-4, 10.0)


def test_the_next_radius() -> None:
    effort = Effort(smallest=1e-6, largest=1e-1)

    def node(scale: float, outcome: Any) -> Node:
        return Node(scale, outcome, mean_interval([0.0]), 1, 1)

    step = module._next_radius
    assert step([], 1e-2, effort) == 1e-2 / 4
    assert step([node(1e-3, "inside")], math.inf, effort) == 4e-3
    assert step([node(1e-3, "inside"), node(4e-3, "outside")], math.inf, effort) == pytest.approx(2e-3)
    assert step([node(1e-3, "inside")], 4e-3, effort) == pytest.approx(2e-3)
    assert step([node(2e-6, "outside")], math.inf, effort) is None
    assert step([node(5e-2, "undecided")], math.inf, effort) is None


@pytest.fixture(scope="module")
def attacked() -> Any:
    seer = real(NAMES)
    ground = seer.grounds["names"]
    return seer, ground, answer_batches(ground.prepared, None, 64, pad=0)


@pytest.mark.parametrize("kind", ["all", "glob", "sparse", "frame"])
def test_a_real_attack_stays_in_its_subspace(kind: str, attacked: Any) -> None:
    seer, _, batches = attacked
    model = seer.engine.model
    subspace = {
        "all": lambda: Subspace.all(model),
        "glob": lambda: Subspace.glob(model, "*.up_proj.weight"),
        "sparse": lambda: Subspace.sparse(model, {"lm_head.weight": torch.arange(0, 10240, 7)}),
        "frame": lambda: Subspace.frame(model, 2, patterns=["*.up_proj.weight"]),
    }[kind]()
    before = weights_hash(model)
    radius = {"all": 0.02, "glob": 0.1, "sparse": 0.1, "frame": 0.2}[kind]
    with Mover(model, subspace) as mover:
        seer.mover = mover
        starts = [unit(gaussian(subspace, 0, i)) for i in range(2)]
        _, gradient = module._gradient(seer, batches)
        own = []
        for start in starts:
            sides = []
            for step in (1e-3, -1e-3):
                with mover.at((start, step)):
                    sides.append(mean_loss(model, batches))
            slope = sum(float(g.double() @ start.delta(n).double()) for n, g in gradient.items())
            assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(slope, rel=0.05, abs=0.02), "in these coordinates"
            with mover.at((start, radius)):
                own.append(mean_loss(model, batches))
        found = ascend(seer, batches, radius, starts, 6, {"k": 1})
        assert rms(found.direction) == pytest.approx(1, abs=1e-5)
        assert found.loss > max(own) + 0.01
        with mover.at((found.direction, radius)):
            assert mean_loss(model, batches) == pytest.approx(found.loss, rel=1e-4)
            assert mover.realised(found.direction, radius)[0] == pytest.approx(1, abs=1e-3)
    if kind == "frame":
        for name, shape in subspace.shapes.items():
            basis, delta = subspace.basis(name), found.direction.delta(name).reshape(shape)
            assert torch.allclose(basis @ (basis.T @ delta), delta, atol=1e-5)
    assert weights_hash(model) == before


def test_a_real_hunt() -> None:
    seer = real(NAMES)
    ground = seer.grounds["names"]
    prepared = ground.prepared
    part = dataclasses.replace(prepared, encoded=prepared.encoded[:2])
    judged = ground.with_items([e.item.id for e in prepared.encoded[2:]])
    before = weights_hash(seer.engine.model)
    with seer:
        found = worst(seer, judged, answer_batches(part, None, 64, pad=0), Effort(2, 2, 3))
    assert found is not None
    assert len(found.nodes) == 3
    assert all(loss > found.loss_base for loss in found.losses)
    assert (found.ascent_items, found.scored_items) == (2, 2)
    assert weights_hash(seer.engine.model) == before
    assert to_json(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["all", "sparse", "frame"])
def test_a_hunt_takes_the_memory_that_is_said(kind: str, dtype: torch.dtype) -> None:
    """However many starts there are."""
    model = tiny_llama(hidden_size=256, intermediate_size=512, num_hidden_layers=2).to(dtype)
    subspace = {
        "all": lambda: Subspace.all(model),
        "sparse": lambda: Subspace.sparse(
            model, {n: torch.arange(0, p.numel(), 9) for n, p in model.named_parameters()}
        ),
        "frame": lambda: Subspace.frame(model, 4),
    }[kind]()
    engine, ground = real_ground(model, NAMES)
    part = dataclasses.replace(ground.prepared, encoded=ground.prepared.encoded[:2])
    judged, batches = ground.with_items(ground.items[2:]), answer_batches(part, None, 64, pad=0)
    held: list[bool] = []
    with Evaluator(engine, Mover(model, subspace, memory="copy"), [ground]) as seer:
        real_gradient = module.accumulate_gradient

        def spied(*arguments: Any) -> Any:
            held.append(seer.mover._held is not None or any(part.delta is not None for part in seer.mover._parts))
            return real_gradient(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "accumulate_gradient", spied)
            used = peak_bytes(lambda: worst(seer, judged, batches, Effort(4, 2, looks=2, largest=1.0)))
    said = attack_memory(subspace)
    assert used < 1.15 * said + 2e6, f"{used / said:.2f} of what is said"
    assert used > 0.5 * said
    assert held
    assert not any(held), "no direction is held while a gradient is taken"
