"""Against closed forms and hand computations in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from catchment.errors import InputError
from catchment.training import optimizers
from catchment.training.optimizers import MasterWeights, SharpnessAware, check_number, decay_groups, pull_to_base


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def test_pull_reaches_the_minimum_of_the_penalised_quadratic() -> None:
    """min of 1/2 a (w - t)^2 + 1/2 s (w - w0)^2 is (a t + s w0) / (a + s)."""
    a, target, start, strength = 2.0, 3.0, -1.0, 0.5
    w = parameter(start)
    optimizer = torch.optim.SGD([w], lr=0.05)
    pull_to_base(optimizer, [(w, torch.tensor([start]))], strength)
    for _ in range(600):
        optimizer.zero_grad()
        (0.5 * a * (w - target) ** 2).sum().backward()
        optimizer.step()
    # Decoupled: the pull acts first and the gradient was taken before it, as in w - lr * (g + s * (w - w0)).
    assert w.item() == pytest.approx((a * target + strength * start) / (a + strength), abs=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_pull_equals_the_explicit_formula(kind: str) -> None:
    def make(w: nn.Parameter) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD([w], lr=0.1, momentum=0.9)
        return torch.optim.AdamW([w], lr=0.1, weight_decay=0.3)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one, other = make(ours), make(theirs)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (one, other)]
    handle = pull_to_base(one, [(ours, start.float())], 0.2)
    for step in range(6):
        gradient = torch.randn(5, generator=generator, dtype=torch.float64)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        if step < 4:
            with torch.no_grad():
                theirs -= 0.1 * 0.5**step * 0.2 * (theirs - start.float().double())
        else:
            handle.remove()
        one.step()
        other.step()
        for schedule in schedules:
            schedule.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def test_pull_moves_only_its_pairs_and_also_without_a_gradient() -> None:
    pulled, free = parameter(1.0), parameter(1.0)
    optimizer = torch.optim.SGD([pulled, free], lr=0.5)
    pull_to_base(optimizer, [(pulled, torch.zeros(1))], 0.5)
    optimizer.step()
    assert pulled.item() == 0.75
    assert free.item() == 1.0


def test_pull_refuses() -> None:
    w, other = parameter(1.0), parameter(1.0)
    optimizer = torch.optim.SGD([w], lr=0.1)
    with pytest.raises(InputError, match=r"strength -1.*at least 0"):
        pull_to_base(optimizer, [(w, w.detach())], -1)
    with pytest.raises(InputError, match="1 of 1 parameters"):
        pull_to_base(optimizer, [(other, w.detach())], 1)
    with pytest.raises(InputError, match=r"alpha 2.*in \[0, 1\]"):
        check_number("alpha", 2, 0, 1)
    with pytest.raises(InputError, match="rho nan"):
        check_number("rho", math.nan, 0)
    with pytest.raises(InputError, match=r"rho 0\.1: expected a finite number"):
        check_number("rho", "0.1", 0)  # type: ignore[arg-type]


def test_decay_groups() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = decay_groups([vector, matrix], 0.1)
    assert [(g["params"][0] is matrix, g["weight_decay"]) for g in groups] == [(True, 0.1), (False, 0.0)]
    assert len(decay_groups([matrix], 0.1)) == 1


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def by_hand(model: nn.Module, x: torch.Tensor, rho: float) -> list[torch.Tensor]:
    """The SAM gradient on a copy, with autograd.grad and functional weights only."""
    names = [name for name, _ in model.named_parameters()]
    here = [p.detach().clone().requires_grad_() for _, p in model.named_parameters()]

    def gradient(at: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        out = torch.func.functional_call(model, dict(zip(names, at, strict=True)), (x,))
        return torch.autograd.grad(out.square().mean(), at)

    g = gradient(here)
    norm = math.sqrt(sum(float((piece**2).sum()) for piece in g))
    return list(
        gradient([(w + rho * piece / norm).detach().requires_grad_() for w, piece in zip(here, g, strict=True)])
    )


def test_sam_equals_the_hand_computation_and_accumulates() -> None:
    """m-SAM: two micro-batches give the sum of their own SAM gradients; the weights are where they were."""
    model, rho = mlp(), 0.3
    before = copy.deepcopy(model.state_dict())
    sharp = SharpnessAware(MasterWeights(list(model.parameters())), rho)
    batches = [torch.randn(6, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2)]
    plain = [torch.autograd.grad(loss_of(model, x), list(model.parameters())) for x in batches]
    for x in batches:
        loss_of(model, x).backward()
        sharp.second_pass(lambda x=x: loss_of(model, x).backward())
    expected = [a + b for a, b in zip(*(by_hand(model, x, rho) for x in batches), strict=True)]
    for p, want, flat in zip(model.parameters(), expected, map(sum, zip(*plain, strict=True)), strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(p.grad, flat, rtol=1e-3)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_sam_on_a_quadratic() -> None:
    """f = 1/2 w' D w at w = (3, 4/2): g = D w, and the gradient at w + rho g/|g| is D w + rho D g / |g|."""
    d, w = torch.tensor([1.0, 2.0], dtype=torch.float64), parameter(3.0, 2.0)
    sharp = SharpnessAware(MasterWeights([w]), 0.5)

    def backward() -> None:
        (0.5 * d * w**2).sum().backward()

    backward()
    sharp.second_pass(backward)
    # g = (3, 4), |g| = 5: D w + 0.5 * (3, 8) / 5
    assert w.grad is not None
    torch.testing.assert_close(w.grad, torch.tensor([3.3, 4.8], dtype=torch.float64))


def test_sam_forgets_after_the_step_and_skips_what_it_cannot_climb() -> None:
    w = parameter(3.0)
    sharp = SharpnessAware(MasterWeights([w]), 0.5)
    calls: list[int] = []

    def backward(scale: float = 1.0) -> None:
        calls.append(1)
        (0.5 * scale * w**2).sum().backward()

    backward()
    sharp.second_pass(backward)
    sharp.forget()
    w.grad = None
    backward()
    sharp.second_pass(backward)
    assert w.grad is not None
    assert w.grad.item() == pytest.approx(3.5)  # not 3.5 minus what was accumulated before the step
    for scale in (0.0, float("inf")):
        sharp.forget()
        w.grad, before = None, len(calls)
        backward(scale)
        sharp.second_pass(backward)
        assert len(calls) == before + 1


def test_sam_restores_the_weights_when_the_second_pass_fails() -> None:
    w = parameter(3.0)
    w.grad = torch.ones_like(w)

    def fail() -> None:
        assert w.item() == pytest.approx(3.5)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        SharpnessAware(MasterWeights([w]), 0.5).second_pass(fail)
    assert w.item() == 3.0


def lost_updates(enabled: bool) -> float:
    """1000 steps of 8e-5 from 0.02 in bf16, where half a unit in the last place is 6.1e-5."""
    w = parameter(0.02, dtype=torch.bfloat16)
    masters = MasterWeights([w], enabled=enabled)
    optimizer = torch.optim.SGD(masters.leaves, lr=8e-5)
    masters.follow(optimizer)
    for _ in range(1000):
        (-w).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(w.detach())


def test_small_steps_arrive_in_bf16() -> None:
    assert lost_updates(True) == pytest.approx(0.1, rel=2**-8)
    assert lost_updates(False) < 0.04  # so the test can fail


def test_masters_accumulate_in_fp32_and_free_the_half_precision_gradient() -> None:
    w = parameter(1.0, dtype=torch.bfloat16)
    masters = MasterWeights([w])
    for scale in (1.0, *[2.0**-9] * 4):
        (scale * w).sum().backward()
    assert w.grad is None
    assert masters.leaves[0].grad is not None
    assert masters.leaves[0].grad.item() == 1 + 4 * 2**-9
    masters.close()
    w.sum().backward()
    assert w.grad is not None
    masters.collect()
    assert masters.leaves[0].grad.item() == 2 + 4 * 2**-9


def test_fp32_weights_are_their_own_masters() -> None:
    w, half = parameter(1.0, dtype=torch.float32), parameter(1.0, dtype=torch.float16)
    masters = MasterWeights([w, half])
    assert masters.leaves[0] is w
    assert masters.leaves[1].dtype == torch.float32
    assert MasterWeights([half], enabled=False).leaves[0] is half


def test_optimizer_state_resumes_the_masters(tmp_path: Any) -> None:
    def run(w: nn.Parameter, steps: int, state: Any = None) -> tuple[nn.Parameter, Any]:
        masters = MasterWeights([w])
        optimizer = torch.optim.AdamW(masters.leaves, lr=1e-4)
        masters.follow(optimizer)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            (w.float() ** 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return masters.leaves[0], optimizer.state_dict()

    start = (0.7, -0.3, 0.01)
    straight, _ = run(parameter(*start, dtype=torch.bfloat16), 20)
    half = parameter(*start, dtype=torch.bfloat16)
    _, state = run(half, 10)
    torch.save(state, tmp_path / "optimizer.pt")
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    resumed, _ = run(nn.Parameter(half.detach().clone()), 10, saved)
    assert torch.equal(straight, resumed)
    with pytest.raises(InputError, match="no fp32 master weights"):
        run(half, 1, {k: v for k, v in saved.items() if k != "master_weights"})


def test_several_processes_average_before_gradients_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """What averages gradients looks for them at the weights; SAM cannot tell one process's part from the mean."""
    w = parameter(1.0, dtype=torch.bfloat16)
    masters = MasterWeights([w])  # before the processes joined
    sharp = SharpnessAware(masters, 0.1)
    monkeypatch.setattr(optimizers, "distributed", lambda: True)
    masters.settle()
    (3 * w).sum().backward()
    assert w.grad is not None
    assert masters.leaves[0].grad is None
    sharp.second_pass(lambda: (3 * w).sum().backward())
    assert masters.leaves[0].grad is not None
    assert masters.leaves[0].grad.item() == 3
    (3 * w).sum().backward()
    with pytest.raises(InputError, match="accumulation works in one process"):
        sharp.second_pass(lambda: None)
