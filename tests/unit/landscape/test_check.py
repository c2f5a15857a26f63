"""The self-check: quiet on a healthy run, and it sees each way in which one can be ill."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from catchment.errors import ModelError
from catchment.landscape import Evaluator, Mover, check, gaussian
from catchment.models import weights_hash
from catchment.records import to_json
from tests.tiny import tiny_llama
from tests.unit.landscape.oracles import NAMES, SUMS, Oracle, bare_ground, real

SCALES = (0.01, 0.3, 0.001)


def checked(seer: Evaluator, scales: Any = SCALES, before: str | None = None, **options: Any) -> Any:
    found = check(seer, scales, before or weights_hash(seer.engine.model), **options)
    assert to_json(found)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_healthy_run(dtype: torch.dtype) -> None:
    seer = real(SUMS, NAMES, model=tiny_llama().to(dtype))
    before = weights_hash(seer.engine.model)
    with seer:
        items = seer.grounds["sums"].items
        seer.rows({"k": 1}, "a", {"sums": items}, (gaussian(seer.mover.subspace, 5), 0.1))  # left displaced
        found = checked(seer, (0.1, 0.3), before, plane_cosine=0.003)
        assert weights_hash(seer.engine.model) == before, "put back"
    assert found.ok
    assert found.centre == 0
    assert found.realised == pytest.approx(1, abs=0.01)
    assert 0 <= found.off_axis < 0.05
    assert (found.cosine, found.tied, found.mode, found.notes) == (0.003, 0, "copy", ())
    assert found.hash_before == found.hash_after == before


def test_no_scales_are_nothing_amiss() -> None:
    found = checked(real(SUMS), ())
    assert found.ok
    assert (found.realised, found.off_axis) == (1.0, 0.0)


def test_tied_weights_are_counted() -> None:
    found = checked(real(SUMS, model=tiny_llama(tie_word_embeddings=True)))
    assert found.ok
    assert found.tied == 1


class Further(Mover):
    """Moves by a tenth too much."""

    def place(self, *moves: Any) -> None:
        super().place(*((direction, 1.1 * scale) for direction, scale in moves))


class Shifted(Mover):
    """Adds noise of its own: the size is hardly off, the direction is."""

    def place(self, *moves: Any) -> None:
        extra = [(gaussian(d.subspace, 99, 99), 0.3 * s) for d, s in moves if s]
        super().place(*((d, s * 0.95) for d, s in moves), *extra)


class Sticky(Mover):
    """Subtracts to restore, with an error of rounding in one weight."""

    def restore(self) -> None:
        super().restore()
        with torch.no_grad():
            next(iter(self.subspace.weights(self.model).values())).view(-1)[-1].mul_(1 + 2e-7)


class OffCentre(Mover):
    """Displaces a little where nothing was asked for."""

    def place(self, *moves: Any) -> None:
        super().place(*((direction, scale or 1e-4) for direction, scale in moves))


class Broken(Mover):
    """Leaves weights that are no numbers at the centre."""

    def place(self, *moves: Any) -> None:
        super().place(*moves)
        if all(scale == 0 for _, scale in moves):
            with torch.no_grad():
                for weight in self.subspace.weights(self.model).values():
                    weight.fill_(float("nan"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Further, "1.100 times the intended size"),
        (Shifted, "off its axis"),
        (OffCentre, "displacement 0"),
        (Broken, "displacement 0"),
    ],
)
def test_an_ill_mover_is_seen(kind: type[Mover], says: str) -> None:
    seer = real(SUMS)
    seer.mover = kind(seer.engine.model, seer.mover.subspace, memory="copy")
    found = checked(seer)
    assert not found.ok
    assert any(says in note for note in found.notes), found.notes
    if kind is Further:
        assert found.realised == pytest.approx(1.1, abs=1e-3)
        assert found.off_axis < 1e-3
    if kind is Shifted:
        assert found.off_axis == pytest.approx(0.3, abs=0.03)


def test_a_mover_that_leaves_a_rounding_error_behind_does_not_move_on_from_it() -> None:
    seer = real(SUMS)
    seer.mover = Sticky(seer.engine.model, seer.mover.subspace, memory="copy")
    with pytest.raises(ModelError, match="written to since the mover was made"):
        checked(seer)


def test_scores_that_depend_on_more_than_the_weights_are_seen() -> None:
    """What a cache of a displaced point would do: the second look at the same weights says something else."""
    calls = iter(range(100))
    seer = Oracle(8, [bare_ground("t", 3, tau=0.1)], lambda move, i: next(calls) / 100)
    found = checked(seer, ())
    assert not found.ok
    assert found.centre == pytest.approx(0.03)


def test_weights_changed_by_someone_else_are_seen() -> None:
    seer = real(SUMS)
    found = check(seer, SCALES, "0" * 64)
    assert not found.ok
    assert found.hash_before == "0" * 64


def test_bf16_is_too_coarse_for_tiny_moves_which_is_noted() -> None:
    """RMS 0.3, eps 2^-8: a move of 1e-5 is rounded away for most weights. The large scales can still be trusted."""
    seer = real(SUMS, model=tiny_llama().to(torch.bfloat16))
    found = checked(seer, (1e-5, 0.1))
    assert found.ok
    assert len(found.notes) == 1
    assert "too coarse" in found.notes[0]
    assert abs(found.realised - 1) > 0.02
    assert found.off_axis > 0.2
    alone = checked(seer, (1e-5,))
    assert not alone.ok, "no scale can be trusted"


@pytest.mark.parametrize("cosine", [0.9, -0.05])
def test_axes_that_are_not_orthogonal_are_seen(cosine: float) -> None:
    found = checked(real(SUMS), plane_cosine=cosine)
    assert not found.ok
    assert any("cosine" in note for note in found.notes)


def test_text_is_compared_by_its_bits() -> None:
    from catchment.capabilities import Item, Task

    text = Task("text", (Item("A small dog ran into the big garden."),), "text", style="continue")
    seer = real(text)
    assert checked(seer).ok
    own = seer.fresh
    rows = iter([0.0, 1e-6])

    def drifting(task: str, items: Any) -> Any:
        extra = next(rows)
        found = own(task, items)
        return {i: dataclasses.replace(r, companion=(r.companion or 0.0) + extra) for i, r in found.items()}

    seer.fresh = drifting  # type: ignore[method-assign]
    found = checked(seer)
    assert not found.ok
    assert found.centre == pytest.approx(1e-6, rel=1e-3)
