"""Planes: every value where its coordinates say, other models where they stand."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.errors import InputError
from catchment.landscape import (
    Gaussian,
    Grid,
    Mover,
    Stored,
    Subspace,
    directions,
    filter_normalised,
    gaussian,
    orthogonal,
    plane,
    through,
    towards,
    unit,
)
from catchment.landscape.plane import cosine
from catchment.models import named_weights, weights_hash
from catchment.records import to_json
from catchment.runs import Store
from tests.tiny import tiny_llama
from tests.unit.landscape.oracles import NAMES, SUMS, Oracle, bare_ground, cells, real

module = importlib.import_module("catchment.landscape.plane")  # the package's name is the function
SIZE = 16


def slope(move: torch.Tensor, i: int) -> float:
    """0.5 + 0.1 x + 0.03 y on the plane of the first two weights, plus 0.01 for every second item."""
    if move.numel() == 1:
        return 0.5
    x, y = (move[:2] / SIZE**0.5).tolist()
    return 0.5 + 0.1 * x + 0.03 * y + 0.01 * (i % 2)


def flat(**options: Any) -> tuple[Oracle, tuple[Stored, Stored]]:
    """An evaluator, and axes along its first two weights, RMS 1."""
    seer = Oracle(SIZE, [bare_ground("t", 6, tau=0.1)], slope, **options)
    one, two = (SIZE**0.5 * torch.eye(SIZE)[k] for k in (0, 1))
    return seer, (
        Stored(seer.mover.subspace, {"theta": one}, {"axis": 1}),
        Stored(seer.mover.subspace, {"theta": two}, {"axis": 2}),
    )


def test_rows_go_up_in_y_and_columns_in_x() -> None:
    seer, axes = flat()
    before = weights_hash(seer.engine.model)
    with seer:
        found = plane(seer, "t", ("t0000", "t0001"), Grid(axes, (1.0, 2.0), 5, ("right", "up"), "own"))
    assert found is not None
    assert found.xs == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert found.ys == (-2.0, -1.0, 0.0, 1.0, 2.0)
    for j, y in enumerate(found.ys):
        for i, x in enumerate(found.xs):
            assert found.values[j][i] == pytest.approx(0.505 + 0.1 * x + 0.03 * y, abs=1e-6)
    assert found.companions == found.values
    assert (found.axes, found.items, found.cosine) == (("right", "up"), 2, 0.0)
    assert [(p.name, p.x, p.y) for p in found.models] == [("own", 0.0, 0.0)]
    assert len(seer.seen) == 25
    assert weights_hash(seer.engine.model) == before
    assert to_json(found)


def test_the_centre_is_the_models_own_score_on_these_items() -> None:
    seer = real(SUMS, NAMES)
    with seer:
        ground = seer.grounds["names"]
        axes = gaussian(seer.mover.subspace, 0, 0), gaussian(seer.mover.subspace, 0, 1)
        for items in (ground.items, ground.items[:3]):
            found = plane(seer, "names", items, Grid(axes, (0.3, 0.3), 3))
            assert found is not None
            assert found.values[1][1] == sum(ground.base[i].score for i in items) / len(items)
            own = sum(ground.base[i].companion or 0.0 for i in items) / len(items)
            assert found.companions[1][1] == pytest.approx(own, rel=1e-6)
            assert len({value for row in found.companions for value in row}) == 9
            assert abs(found.cosine) < 0.05
            assert found.comparable
            assert to_json(found)


@pytest.mark.parametrize("points", [0, 1, 2, 4, 10])
def test_a_grid_without_a_centre_is_refused(points: int) -> None:
    seer, axes = flat()
    with pytest.raises(InputError, match="odd"):
        plane(seer, "t", ("t0000",), Grid(axes, (1.0, 1.0), points))
    assert not seer.seen


def test_a_stop_and_a_frozen_replay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    seer, axes = flat(cell=cells(store))
    with seer:
        assert plane(seer, "t", ("t0000",), Grid(axes, (1.0, 1.0), 3), stop=lambda: len(seer.seen) >= 4) is None
    seer, axes = flat(cell=cells(store), frozen=True)
    assert plane(seer, "t", ("t0000",), Grid(axes, (1.0, 1.0), 3)) is None
    seer, axes = flat(cell=cells(store))
    with seer:
        found = plane(seer, "t", ("t0000",), Grid(axes, (1.0, 1.0), 3))
        assert len(seer.seen) == 5, "four points were kept"
    seer, axes = flat(cell=cells(Store(tmp_path)), frozen=True)
    assert plane(seer, "t", ("t0000",), Grid(axes, (1.0, 1.0), 3)) == found
    assert not seer.seen


def tuned(model: Any, seed: int, size: float = 0.05) -> Any:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight += size * torch.randn(weight.shape, generator=generator)
    return other


def test_through_two_models() -> None:
    model = tiny_llama()
    first, second = tuned(model, 1), tuned(model, 2, 0.1)
    with torch.no_grad():  # 0.6 of the first in the second: far from orthogonal
        for a, b, c in zip(first.parameters(), second.parameters(), model.parameters(), strict=True):
            b += 1.2 * (a - c)
    subspace = Subspace.all(model)
    ways = towards(model, first, subspace, "one"), towards(model, second, subspace, "two")
    assert cosine(Mover(model, subspace), *ways) > 0.3
    one, two, places = through(*ways)
    with Mover(model, subspace) as mover:
        assert abs(cosine(mover, one, two)) < 1e-5
        for axis in (one, two):
            kept = torch.cat([axis.delta(n) for n in subspace.shapes]).double()
            assert float(kept.square().mean().sqrt()) == pytest.approx(1, abs=1e-5)
        for place, other in zip(places, (first, second), strict=True):
            with mover.at((one, place.x), (two, place.y)):
                for name, weight in named_weights(other).items():
                    assert torch.allclose(named_weights(model)[name], weight, rtol=1e-6, atol=1e-6), name
    assert [p.name for p in places] == ["one", "two"]
    assert places[0].y == 0
    assert places[0].x == pytest.approx(ways[0].alpha)
    assert (places[1].x ** 2 + places[1].y ** 2) ** 0.5 == pytest.approx(ways[1].alpha, rel=1e-5)
    assert places[1].y > 0


def test_three_on_a_line_are_no_plane() -> None:
    model = tiny_llama()
    first, second = tuned(model, 1), copy.deepcopy(model)
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            b += -2.0 * (a - b)
    subspace = Subspace.all(model)
    for other in (second, first):
        with pytest.raises(InputError, match="one line"):
            through(towards(model, first, subspace), towards(model, other, subspace))


def test_ways_of_two_subspaces_are_no_plane() -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match="subspace"):
        through(
            towards(model, tuned(model, 1), Subspace.all(model)),
            towards(model, tuned(model, 2), Subspace.glob(model, "*.mlp.*")),
        )


def test_another_model_and_a_random_axis() -> None:
    """The axis to the other model is read off the live weights, which are displaced while the plane is measured."""
    seer = real(SUMS)
    model, subspace = seer.engine.model, seer.mover.subspace
    way = towards(model, tuned(model, 1), subspace, "other")
    across = orthogonal(way, gaussian(subspace, 4))
    kept = torch.cat([across.delta(n) for n in subspace.shapes]).double()
    assert float(kept.square().mean().sqrt()) == pytest.approx(1, abs=1e-5)
    with seer:
        assert abs(cosine(seer.mover, way, across)) < 1e-5
        found = plane(seer, "sums", seer.grounds["sums"].items, Grid((way, across), (way.alpha, way.alpha), 3))
        assert found is not None
        assert abs(found.cosine) < 1e-5
        there = seer.rows({"k": 1}, "1", {"sums": seer.grounds["sums"].items}, (way, way.alpha))["sums"]
        companions = [row.companion or 0.0 for row in there.values()]
        assert found.companions[1][2] == pytest.approx(sum(companions) / len(companions), rel=1e-5)


@dataclasses.dataclass(frozen=True, eq=False)
class Elsewhere:
    """A direction of other numbers on another device, as on a CPU and a GPU; "cpu" stands for the weights' device and
    must be named."""

    origin: Gaussian
    comparable: bool = True
    cuttable: bool = True

    @property
    def subspace(self) -> Subspace:
        return self.origin.subspace

    @property
    def address(self) -> dict[str, Any]:
        return self.origin.address

    def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "not named") -> torch.Tensor:
        assert device != "not named"
        shift = 0 if device == "cpu" else 1
        return dataclasses.replace(self.origin, seed=self.origin.seed + shift).delta(name, start, stop)


def test_directions_are_drawn_where_the_weights_are() -> None:
    model = tiny_llama()
    subspace = Subspace.all(model)
    one, two = (Elsewhere(gaussian(subspace, 0, k)) for k in (0, 1))
    with Mover(model, subspace) as mover:
        mover.place((one, 0.01))
        assert mover.realised(one, 0.01)[0] == pytest.approx(1, abs=1e-4)
        assert abs(cosine(mover, one, two)) < 0.05
        across = orthogonal(one, two, mover)
        assert abs(cosine(mover, one, across)) < 1e-5
        start = unit(one, mover)
        assert cosine(mover, one, start) == pytest.approx(1, abs=1e-6)


def test_a_mover_names_the_device_of_each_tensor() -> None:
    model = tiny_llama()
    with Mover(model, Subspace.all(model)) as mover:
        mover._devices["lm_head.weight"] = "meta"
        assert mover.device("lm_head.weight") == "meta"
        assert mover.device("model.norm.weight") == "cpu"
        asked: list[tuple[str, str]] = []

        class Asked(Elsewhere):
            def delta(self, name: str, start: int = 0, stop: int | None = None, device: str = "?") -> torch.Tensor:
                asked.append((name, device))
                return self.origin.delta(name, start, stop)

        unit(Asked(gaussian(mover.subspace, 0)), mover)
    assert ("lm_head.weight", "meta") in asked
    assert ("model.norm.weight", "cpu") in asked
    assert len(asked) == len(mover.subspace.shapes)


@pytest.mark.parametrize("filtered", [False, True])
def test_angles_are_measured_piece_by_piece(filtered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    subspace = Subspace.all(model)
    axes: list[Any] = [gaussian(subspace, 0, k) for k in (0, 1)]
    if filtered:
        axes[1] = filter_normalised(model, axes[1])
    with Mover(model, subspace) as mover:
        kept = [torch.cat([axis.delta(n) for n in subspace.shapes]).double() for axis in axes]
        truth = float(torch.nn.functional.cosine_similarity(*kept, dim=0))
        whole = orthogonal(axes[0], axes[1])
        monkeypatch.setattr(directions, "PIECE", 999)
        monkeypatch.setattr(module, "PIECE", 999)
        assert cosine(mover, *axes) == pytest.approx(truth, rel=1e-9)
        cut = orthogonal(axes[0], axes[1])
        for name in subspace.shapes:
            assert torch.allclose(cut.delta(name), whole.delta(name), rtol=1e-6)
        assert abs(cosine(mover, axes[0], cut)) < 1e-6


def test_filter_normalised_planes_say_so() -> None:
    seer = real(SUMS)
    with seer:
        axes = [filter_normalised(seer.engine.model, gaussian(seer.mover.subspace, 0, k)) for k in (0, 1)]
        found = plane(seer, "sums", seer.grounds["sums"].items, Grid((axes[0], axes[1]), (1.0, 1.0), 3))
    assert found is not None
    assert not found.comparable


def test_a_point_that_is_not_finite_is_a_zero_and_the_record_is_json() -> None:
    seer = real(SUMS)
    with seer:
        axes = gaussian(seer.mover.subspace, 0, 0), gaussian(seer.mover.subspace, 0, 1)
        found = plane(seer, "sums", seer.grounds["sums"].items, Grid(axes, (1e10, 1e10), 3))
    assert found is not None
    assert seer.broken == 8 * 3
    assert found.values[0] == (0.0, 0.0, 0.0)
    assert found.companions == ()
    assert to_json(found)
