"""SIFT where things go wrong or come late: overflows, failed passes, experts, whole heads, refused states."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from catchment.errors import InputError, ModelError
from catchment.methods import Sift
from tests.tiny import tiny_llama
from tests.unit.methods.test_sift import Experts, batches, loss, tune

SCOPES = ["tensor", "global"]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("count", [1, 2])
def test_an_overflow_in_one_tensor_is_seen(scope: str, count: int) -> None:
    """Also in the tensor whose gradient comes last, when all others have chosen."""
    model = tiny_llama()
    sift = Sift(model, sparsity=0.02, scope=scope, selection_batches=count)
    handle = model.model.layers[0].self_attn.q_proj.weight.register_hook(lambda g: g * float("nan"))
    loss(model, next(batches(1))).backward()
    assert not bool(torch.isfinite(sift.values.grad).all())
    handle.remove()
    sift.zero_grad()
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-3)
    for batch in batches(3):
        loss(model, batch).backward()
        optimizer.step()
    assert sift.ready
    assert all(t.index is not None or scope == "global" for t in sift.targets)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_head_that_trains_whole_has_the_first_gradients_too(scope: str, count: int) -> None:
    model, data = tiny_llama(), list(batches(count))
    sift = Sift(model, sparsity=0.02, scope=scope, selection_batches=count, modules_to_save=["lm_head"])
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    before = model.lm_head.weight.detach().clone()
    twin = tiny_llama()
    for batch in data:
        (loss(model, batch) / count).backward()
        (loss(twin, batch) / count).backward()
    optimizer.step()
    torch.testing.assert_close(before - model.lm_head.weight, twin.lm_head.weight.grad, rtol=1e-4, atol=1e-6)


def test_when_only_whole_modules_train_nothing_waits() -> None:
    model = tiny_llama()
    sift = Sift(model, target_modules=["lm_head"], modules_to_save=["lm_head"], scope="global")
    tune(model, sift, batches(2))
    assert sift.k == model.lm_head.weight.numel()
    assert float(sift.delta.abs().max()) > 0


@pytest.mark.parametrize("scope", SCOPES)
def test_an_expert_that_misses_a_batch_competes_with_what_it_has(scope: str) -> None:
    torch.manual_seed(0)
    model = Experts()
    sift = Sift(model, sparsity=0.2, target_modules=["experts.0", "experts.1"], scope=scope, selection_batches=3)
    x = torch.randn(3, 4)
    for which in (0, 1, 0):
        (100 * model(x, which) if which else model(x, which)).backward()
    assert sift.ready
    assert sift.targets[1].index is not None
    assert all(t.scores is None and t.total is None for t in sift.targets)


def test_gradients_beyond_the_choice_count_in_the_same_mean() -> None:
    """Three batches choose, two make a step: the first step with entries is the mean over two steps of all four."""
    model, data = tiny_llama(), list(batches(4))
    sift = Sift(model, sparsity=0.02, selection_batches=3)
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    gradient = None
    for number, batch in enumerate(data, 1):
        (loss(model, batch) / 2).backward()
        if number == 4:
            gradient = sift.values.grad.clone()
        if number % 2 == 0:
            optimizer.step()
    twin = tiny_llama()
    (sum(loss(twin, batch) for batch in data) / 2).backward()
    expected = torch.cat([twin.get_parameter(n).grad.flatten()[i] for n, i in sift.support().items()]) / 2
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


class _Broken(torch.autograd.Function):
    """Raises in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise MemoryError("no room")


def test_a_backward_pass_that_fails_is_forgotten() -> None:
    model, data = tiny_llama(), list(batches(3))
    sift = Sift(model, sparsity=0.02, scope="global")
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2)
    handle = model.model.layers[0].register_forward_hook(lambda m, i, o: _Broken.apply(o))
    with pytest.raises(MemoryError):
        loss(model, data[0]).backward()
    handle.remove()
    sift.zero_grad()
    twin = tiny_llama()
    other = Sift(twin, sparsity=0.02, scope="global")
    second = other.optimizer(torch.optim.AdamW, lr=1e-2)
    for m, o in ((model, optimizer), (twin, second)):
        for batch in data[1:]:
            loss(m, batch).backward()
            o.step()
    assert sift.ready
    assert torch.equal(sift.values, other.values)


def test_a_refused_state_leaves_the_tuning_as_it_was() -> None:
    model = tiny_llama()
    sift = Sift(model, sparsity=0.02)
    tune(model, sift, batches(2))
    values, weights = sift.values.detach().clone(), copy.deepcopy(model.state_dict())
    half = Sift(tiny_llama().bfloat16(), sparsity=0.02)
    tune(half.model, half, batches(1))
    with pytest.raises(ModelError, match="bfloat16"):
        sift.load_state_dict(half.state_dict())
    foreign = tiny_llama()
    with torch.no_grad():
        foreign.model.layers[1].mlp.up_proj.weight.add_(0.5)
    other = Sift(foreign, sparsity=0.02)
    tune(foreign, other, batches(1))
    with pytest.raises(ModelError, match="another base"):
        sift.load_state_dict(other.state_dict())
    sift._flat.write(sift.values)
    assert torch.equal(sift.values, values)
    assert all(torch.equal(weights[n], w) for n, w in model.state_dict().items())


def test_an_increment_of_some_targets_is_taken_up_and_trains_on(tmp_path: Path) -> None:
    model = tiny_llama()
    small = Sift(model, sparsity=0.02, target_modules=["q_proj"])
    tune(model, small, batches(1))
    small.save_pretrained(tmp_path)
    other = tiny_llama()
    sift = Sift(other, sparsity=0.02)
    sift.load_pretrained(tmp_path)
    tune(other, sift, batches(2))
    assert set(sift.support()) == {t.name for t in small.targets}
    whole = Sift(tiny_llama(), sparsity=0.02, modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"lm_head.*modules_to_save"):
        whole.load_pretrained(tmp_path)


def test_a_support_names_weights_exactly() -> None:
    model = nn.ModuleDict({"x": nn.ModuleDict({"lin": nn.Linear(3, 3)}), "lin": nn.Linear(3, 3)})
    sift = Sift(model, support={"lin.weight": torch.tensor([1, 4])})
    assert [t.name for t in sift.targets] == ["lin.weight"]
    with pytest.raises(InputError, match=r"Did you mean 'lin.weight'"):
        Sift(model, support={"lin.wieght": torch.tensor([0])})
    with pytest.raises(InputError, match="distinct flat indices"):
        Sift(model, support={"lin.weight": torch.tensor([9])})


def test_scale_one_changes_no_bit() -> None:
    model = tiny_llama().bfloat16()
    sift = Sift(model, sparsity=0.05)
    tune(model, sift, batches(3))
    before = sift.values.detach().clone()
    sift.scale(1.0)
    assert torch.equal(sift.values, before)


def flat_gradient(sift: Sift, data: list[torch.Tensor], *, share: float = 1.0) -> torch.Tensor:
    """The oracle: what ``share`` times the sum of these batches' losses has as its gradient at the entries."""
    twin = tiny_llama()
    (share * sum(loss(twin, batch) for batch in data)).backward()
    return torch.cat([twin.get_parameter(n).grad.flatten()[i] for n, i in sift.support().items()])


def not_a_number(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * float("nan")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("factor", [0.0, float("inf")])
def test_a_step_that_took_no_part_is_not_averaged_over(scope: str, factor: float) -> None:
    """After a first step of zeros, or of what is not finite, the second one's two halves count in full."""
    model, data = tiny_llama(), list(batches(3))
    sift = Sift(model, sparsity=0.02, scope=scope)
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    (loss(model, data[0]) * factor).backward()
    optimizer.step()
    for batch in data[1:]:
        (loss(model, batch) / 2).backward()
    expected = flat_gradient(sift, data[1:], share=1 / 2)
    torch.testing.assert_close(sift.values.grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("first", [0, 1])
def test_among_several_steps_that_choose_empty_ones_do_not_count(first: int) -> None:
    """Two batches choose, with a step of zeros before or between: the mean is over two steps."""
    model, data = tiny_llama(), list(batches(2))
    sift = Sift(model, sparsity=0.02, selection_batches=2)
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    for number, batch in enumerate([*data[:first], None, *data[first:]], 1):
        (loss(model, data[0]) * 0 if batch is None else loss(model, batch)).backward()
        if number < 3:
            optimizer.step()
    torch.testing.assert_close(sift.values.grad, flat_gradient(sift, data, share=1 / 2), rtol=1e-4, atol=1e-7)


def test_an_overflow_among_several_steps_begins_anew() -> None:
    """What came before it is forgotten, and its step is not one of those averaged over."""
    model, data = tiny_llama(), list(batches(3))
    sift = Sift(model, sparsity=0.02, selection_batches=2)
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    loss(model, data[0]).backward()
    optimizer.step()
    (loss(model, data[0]) * float("inf")).backward()
    optimizer.step()
    loss(model, data[1]).backward()
    optimizer.step()
    loss(model, data[2]).backward()
    torch.testing.assert_close(sift.values.grad, flat_gradient(sift, data[1:], share=1 / 2), rtol=1e-4, atol=1e-7)


def test_an_expert_that_comes_late_in_the_first_step_counts_in_its_mean() -> None:
    """Two steps of one batch choose among the first expert; the second one joins in the same step."""
    torch.manual_seed(0)
    model = Experts()
    sift = Sift(model, sparsity=0.2, target_modules=["experts.0", "experts.1"], selection_batches=2)
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    x = torch.randn(3, 4)
    model(x, 0).backward()
    optimizer.step()
    for _ in range(2):
        model(x, 0).backward()
    for _ in range(2):
        model(x, 1).backward()
    twin = copy.deepcopy(model).requires_grad_(True)
    ((3 * twin(x, 0) + 2 * twin(x, 1)) / 2).backward()
    for target, module in zip(sift.targets, twin.experts, strict=True):
        expected = module.weight.grad.flatten()[target.index.long()]
        torch.testing.assert_close(sift.values.grad[target.slots], expected)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("half", [0, 1])
def test_an_overflow_in_one_tensor_of_the_first_step_harms_nothing(scope: str, count: int, half: int) -> None:
    """Without a scaler, in the first or second micro-batch: that step moves nothing, and no trace of it is left."""
    model, data = tiny_llama(), list(batches(8))
    before = copy.deepcopy(model.state_dict())
    sift = Sift(model, sparsity=0.02, scope=scope, selection_batches=count)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    for number in range(2):
        late = model.model.layers[0].self_attn.q_proj.weight
        handle = late.register_hook(not_a_number) if number == half else None
        # A tensor that has chosen in the first half trains as usual; here none has when the second one overflows.
        value = loss(model, data[number])
        (value * 0 if number < half else value).backward()
        if handle is not None:
            handle.remove()
    assert not bool(sift.values.grad.isfinite().all()), "who looks for overflows must see it"
    optimizer.step()
    assert sift.values.grad is None
    assert not optimizer.state
    assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())
    for number, batch in enumerate(data[2:], 1):
        (loss(model, batch) / 2).backward()
        if number % 2 == 0:
            optimizer.step()
    assert sift.ready
    assert int(optimizer.state[sift.values]["step"]) == 3
    assert all(bool(value.isfinite().all()) for value in optimizer.state[sift.values].values())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    moved = {n for n, w in model.state_dict().items() if not torch.equal(before[n], w)}
    assert moved == set(sift.support())


@pytest.mark.parametrize("scope", SCOPES)
def test_an_overflow_that_a_scaler_skipped_does_not_cost_the_next_step(scope: str) -> None:
    """It clears the gradient and never calls the optimizer; a later step is as good as any."""
    model, data = tiny_llama(), list(batches(2))
    sift = Sift(model, sparsity=0.02, scope=scope)
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    handle = model.model.layers[0].self_attn.q_proj.weight.register_hook(not_a_number)
    loss(model, data[0]).backward()
    handle.remove()
    optimizer.zero_grad()
    loss(model, data[1]).backward()
    torch.testing.assert_close(sift.values.grad, flat_gradient(sift, data[1:]), rtol=1e-4, atol=1e-7)
    optimizer.step()
    assert float(sift.delta.abs().max()) > 0
