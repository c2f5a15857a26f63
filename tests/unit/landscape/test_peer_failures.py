"""What today's landscape tools were measured to get wrong, one test each: ours must not.

The whole displacement theta - theta_0 is recorded at every point, as it was for the other tools, and compared with the
grid that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from catchment.capabilities import Format, Item, Task, make_engine, prepare, run
from catchment.errors import TaskError
from catchment.landscape import Evaluator, Grid, Ground, Mover, Subspace, displaced, gaussian, plane
from catchment.models import named_weights
from tests.tiny import tiny_llama, tiny_tokenizer

MODES = ["mapped", "copy", "low"]
GRID = [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]
SCALE = 0.05
"""RMS displacement at the ends of the grid; the tiny models' matrices have RMS 0.3."""


def vector(model: Any) -> Tensor:
    return torch.cat([w.detach().double().reshape(-1) for w in named_weights(model).values()])


@contextmanager
def mover_of(model: Any, memory: str, folder: Path) -> Iterator[tuple[Mover, Subspace]]:
    model.save_pretrained(folder)
    subspace = Subspace.all(model)
    with Mover(model, subspace, memory=memory, files=sorted(folder.glob("*.safetensors"))) as mover:  # type: ignore[arg-type]
        assert mover.mode == memory
        yield mover, subspace


def line(model: Any, mover: Mover, direction: Any) -> Tensor:
    """Displacements along the grid, (points, k)."""
    start, found = vector(model), []
    for position in GRID:
        mover.place((direction, SCALE * position))
        found.append(vector(model) - start)
    return torch.stack(found)


@pytest.mark.parametrize("memory", MODES)
def test_points_are_where_the_grid_says(memory: str, tmp_path: Path) -> None:
    """Others: one-sided lines, ends at 0.933 of the coordinates returned, a distance that acts inversely."""
    model = tiny_llama()
    with mover_of(model, memory, tmp_path) as (mover, subspace):
        direction = gaussian(subspace, 3, 1)
        moved = line(model, mover, direction)
    asked = torch.tensor(GRID, dtype=torch.float64) * SCALE
    axis = asked @ moved / (asked @ asked)
    assert torch.allclose(moved, asked[:, None] * axis, atol=3e-7)
    assert abs(float(axis.norm()) / math.sqrt(subspace.size) - 1) < 5 / math.sqrt(2 * subspace.size)
    assert abs(float(moved[-1].norm() / moved[5].norm()) - 4) < 1e-4


@pytest.mark.parametrize("memory", MODES)
def test_the_centre_is_evaluated_and_is_the_model(memory: str, tmp_path: Path) -> None:
    """Others: theta_0 is never visited, and sits between the cells of the plane."""
    model = tiny_llama()
    clean = {n: w.detach().clone() for n, w in named_weights(model).items()}
    with mover_of(model, memory, tmp_path) as (mover, subspace):
        axes = gaussian(subspace, 0, 0), gaussian(subspace, 0, 1)
        for away in ((axes[0], 0.3), (axes[1], -0.1)):
            mover.place(away)
            mover.place((axes[0], 0.0), (axes[1], 0.0))
            assert all(torch.equal(clean[n], w) for n, w in named_weights(model).items())


@pytest.mark.parametrize("memory", MODES)
def test_a_plane_is_a_square_plane(memory: str, tmp_path: Path) -> None:
    """Others: axes with cosine 1 (second singular value 0.006), every odd row shifted by a step, walks away from a
    centre that is the live weights."""
    model = tiny_llama()
    start, steps = vector(model), [-1.0, -0.5, 0.0, 0.5, 1.0]
    with mover_of(model, memory, tmp_path) as (mover, subspace):
        axes = gaussian(subspace, 0, 0), gaussian(subspace, 0, 1)
        points, cells = [], []
        for y in steps:
            for x in steps:
                mover.place((axes[0], SCALE * x), (axes[1], SCALE * y))
                points.append(vector(model) - start)
                cells.append((1.0, SCALE * x, SCALE * y))
    design, moved = torch.tensor(cells, dtype=torch.float64), torch.stack(points)
    fitted = torch.linalg.pinv(design) @ moved
    assert (moved - design @ fitted).abs().max() < 1e-6
    offset, one, other = fitted
    assert offset.abs().max() < 1e-6
    assert abs(float(one @ other / (one.norm() * other.norm()))) < 5 / math.sqrt(subspace.size)
    values = torch.linalg.svdvals(torch.stack([one, other]))
    assert values[1] / values[0] > 0.95
    assert len({tuple(p[:8].tolist()) for p in moved}) == len(points)


def test_directions_are_standard_normal() -> None:
    """Others: uniform on [0, 1), every entry positive."""
    from scipy import stats

    subspace = Subspace.all(tiny_llama())
    drawn = torch.cat([gaussian(subspace, 1, 0).delta(name) for name in subspace.shapes]).double()
    k = drawn.numel()
    assert k == subspace.size
    assert abs(float(drawn.mean())) < 5 / math.sqrt(k)
    assert abs(float((drawn > 0).double().mean()) - 0.5) < 2.5 / math.sqrt(k)
    assert stats.kstest(drawn.numpy(), "norm").statistic < 2 / math.sqrt(k)  # 1.95: p = 0.001


def test_draws_are_orthogonal_up_to_chance_and_do_not_grow() -> None:
    """Others: cosine 0.75 between any two draws; "orthogonalised" ones with cosine 1 and norms up to 4e22."""
    subspace = Subspace.all(tiny_llama())
    addresses = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2**40, 0)]
    drawn = [torch.cat([gaussian(subspace, *a).delta(n) for n in subspace.shapes]).double() for a in addresses]
    gram = torch.stack(drawn) @ torch.stack(drawn).T / subspace.size
    assert (gram - torch.eye(len(drawn))).abs().max() < 7 / math.sqrt(subspace.size)


@pytest.mark.parametrize("memory", MODES)
def test_everything_is_put_back(memory: str, tmp_path: Path) -> None:
    """Others: the model is left at the last point, up to 1.0 of its norm away, with ``requires_grad`` off."""
    model = tiny_llama().train()
    first, *rest = model.parameters()
    for weight in rest[::2]:
        weight.requires_grad_(False)
    first.grad = torch.full_like(first, 0.25)
    asked = [p.requires_grad for p in model.parameters()]
    identities = [id(p) for p in model.parameters()]
    addresses = [p.data_ptr() for p in model.parameters()]
    before = {n: t.detach().clone() for n, t in model.state_dict().items()}
    with mover_of(model, memory, tmp_path) as (mover, subspace):
        line(model, mover, gaussian(subspace, 0, 0))
    after = model.state_dict()
    assert all(torch.equal(before[n].view(torch.uint8), after[n].view(torch.uint8)) for n in before)
    assert [p.requires_grad for p in model.parameters()] == asked
    assert [id(p) for p in model.parameters()] == identities
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert first.grad is not None
    assert torch.equal(first.grad, torch.full_like(first, 0.25))
    assert all(p.grad is None for p in rest)
    assert all(module.training for module in model.modules())


def test_put_back_after_a_failed_evaluation() -> None:
    model = tiny_llama()
    before, subspace = vector(model), Subspace.all(model)

    def broken() -> None:
        with displaced(model, gaussian(subspace, 0, 0), SCALE):
            assert not torch.equal(vector(model), before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert torch.equal(vector(model), before)


@pytest.mark.parametrize("memory", MODES)
def test_bf16_stays_bf16_and_does_not_drift(memory: str, tmp_path: Path) -> None:
    """Others: upcast to fp32 and left so; or walk by increments, whose roundings add up (1.4 to 7 % off the plane)."""
    model = tiny_llama().to(torch.bfloat16)
    clean = {n: w.detach().clone() for n, w in named_weights(model).items()}
    with mover_of(model, memory, tmp_path) as (mover, subspace):
        direction = gaussian(subspace, 0, 0)
        mover.place((direction, SCALE))
        first = {n: w.detach().clone() for n, w in named_weights(model).items()}
        for position in 5 * GRID:
            mover.place((direction, SCALE * position))
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        half = torch.finfo(torch.bfloat16).eps / 2
        for name, weight in named_weights(model).items():
            assert torch.equal(weight, first[name]), "the same point, whatever came before"
            moved = SCALE * direction.delta(name).double().reshape(weight.shape)
            wanted = clean[name].double() + moved
            # roundings: of the sum, of the direction, and of the scale
            bound = 1.01 * half * (wanted.abs() + 2 * moved.abs()) + 1e-9
            assert bool(((weight.double() - wanted).abs() <= bound).all())
        size, off_axis = mover.realised(direction, SCALE)
        assert abs(size - 1) < 0.01
        assert off_axis < 0.02
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(clean[n], w) for n, w in named_weights(model).items())


@pytest.mark.parametrize("memory", MODES)
def test_bf16_points_are_equally_spaced(memory: str, tmp_path: Path) -> None:
    """The scale is a number of the grid, not the nearest bf16: along the axis, roundings of the weights average out."""
    model = tiny_llama().to(torch.bfloat16)
    start = vector(model)
    with mover_of(model, memory, tmp_path) as (mover, subspace):
        direction = gaussian(subspace, 0, 0)
        drawn = torch.cat([direction.delta(name) for name in subspace.shapes]).double()
        for scale in (0.05, 0.0615, 0.073):
            mover.place((direction, scale))
            along = float((vector(model) - start) @ drawn / (drawn @ drawn))
            assert abs(along / scale - 1) < 4e-4


@pytest.mark.parametrize("memory", MODES)
def test_tied_embeddings_move_once(memory: str, tmp_path: Path) -> None:
    """Others: both keys' directions land on one tensor, which moves 1.40 times as far as the rest."""
    model = tiny_llama(tie_word_embeddings=True)
    tied = model.model.embed_tokens.weight
    assert model.lm_head.weight is tied
    before, others = tied.detach().clone(), model.model.layers[0].mlp.up_proj.weight
    beside = others.detach().clone()
    with mover_of(model, memory, tmp_path) as (mover, subspace):
        assert "lm_head.weight" not in subspace.shapes
        mover.place((gaussian(subspace, 0, 0), SCALE))
        assert model.lm_head.weight is model.model.embed_tokens.weight
        there, also = (float((a.detach() - b).square().mean().sqrt()) for a, b in ((tied, before), (others, beside)))
    assert abs(there / SCALE - 1) < 5 / math.sqrt(2 * tied.numel())
    assert abs(there / also - 1) < 0.1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_frozen_base_stays_unless_it_is_asked_for() -> None:
    """Others: all six move the frozen base under an adapter, by 0.16 to 1.0 of its norm."""
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_llama(), settings)
    weights = dict(model.named_parameters())
    clean = {n: w.detach().clone() for n, w in weights.items()}
    frozen = {n for n, w in weights.items() if not w.requires_grad}
    assert 0 < len(frozen) < len(weights)

    def moved() -> set[str]:
        return {n for n, w in weights.items() if not torch.equal(w, clean[n])}

    with displaced(model, gaussian(Subspace.all(model), 0, 0), SCALE):
        assert moved() == set(weights) - frozen
    asked = Subspace.glob(model, "*.mlp.*")
    with displaced(model, gaussian(asked, 0, 0), SCALE):
        assert moved() == {n for n in frozen if ".mlp." in n}
    assert not moved()
    assert [p.requires_grad for p in weights.values()] == [n not in frozen for n in weights]


def evaluator(model: Any) -> tuple[Evaluator, Ground]:
    asked = ((1, 2), (2, 2), (5, 3))
    items = tuple(Item(f"{a} and {b} make", (" red", " blue", " stone"), (a + b) % 3) for a, b in asked)
    task = Task("sums", items, "choice", (Format("plain", "{prompt}"),))
    tokenizer = tiny_tokenizer()
    engine, prepared = make_engine(model, tokenizer, batch_tokens=256), prepare(tokenizer, task, context=256)
    rows = {row.item: row for row in run(engine, prepared)}
    ground = Ground(prepared, rows, tuple(rows), chance=1 / 3, tau=0.1)
    return Evaluator(engine, Mover(model, Subspace.all(model), memory="copy"), [ground]), ground


def test_scores_of_a_plane_are_those_of_its_points() -> None:
    """Others: noise is added to the largest cell; every odd row holds its neighbour's scores; a constant plane."""
    model = tiny_llama()
    seer, ground = evaluator(model)
    with seer:
        subspace = seer.mover.subspace
        axes = gaussian(subspace, 0, 0), gaussian(subspace, 0, 1)
        found = plane(seer, ground.name, ground.items, Grid(axes, (0.2, 0.2), 3))
        assert found is not None
        for j, y in enumerate(found.ys):
            for i, x in enumerate(found.xs):
                with seer.mover.at((axes[0], x), (axes[1], y)):
                    rows = run(seer.engine, ground.prepared)
                own = [row.companion for row in rows if row.companion is not None]
                assert found.companions[j][i] == pytest.approx(sum(own) / len(own), rel=1e-12)
        own = [row.companion for row in ground.base.values() if row.companion is not None]
        assert found.companions[1][1] == pytest.approx(sum(own) / len(own), rel=1e-6)
    assert len({c for row in found.companions for c in row}) == 9


def test_scores_that_are_not_finite_are_never_filled_in() -> None:
    """Others: NaN and infinities become the mean and the largest value, silently. Here such a point is refused by
    name, or its rows are flagged and counted."""
    model = tiny_llama()
    seer, ground = evaluator(model)
    with seer:
        far = gaussian(seer.mover.subspace, 0, 0), 1e10
        try:
            rows = seer.rows({"far": 1}, "point", {ground.name: ground.items}, far)[ground.name]
        except TaskError as error:
            refused = "nan" in str(error)
        else:
            refused = False
            assert all("non-finite" in row.flags and row.companion is None for row in rows.values())
        assert refused or seer.broken == len(ground.items)
        rows = seer.rows({"near": 1}, "point", {ground.name: ground.items}, (far[0], 0.0))[ground.name]
        assert [r.companion for r in rows.values()] == pytest.approx([r.companion for r in ground.base.values()])
