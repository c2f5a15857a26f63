"""SIFT against dense AdamW under a mask, its ways of choosing, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from catchment.errors import InputError, ModelError
from catchment.methods import SIFT, Sift
from catchment.methods.sift.selection import draw_shares
from tests.blocks import REPLACED, UP, Before
from tests.tiny import CAUSAL, VOCABULARY, tiny_llama

Model = Any
Rate = Callable[[int], float]
TIED = ["q_proj", "down_proj", "embed_tokens"]


def batches(count: int, seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randint(3, VOCABULARY, (2, 12), generator=generator)


def loss(model: Model, batch: Tensor) -> Tensor:
    return model(input_ids=batch, labels=batch).loss


def falling(step: int) -> float:
    return 1 / (1 + step)


def constant(step: int) -> float:
    return 1.0


def tune(
    model: Model, sift: Sift, data: Iterator[Tensor], every: int = 1, clip: float = 0.0, rate: Rate = falling,
    **options: Any,
) -> None:  # fmt: skip
    """A plain loop with accumulation, clipping and a schedule; no dense gradient may be left over."""
    optimizer = sift.optimizer(torch.optim.AdamW, **{"lr": 1e-2, **options})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for number, batch in enumerate(data, 1):
        (loss(model, batch) / every).backward()
        assert all(p.grad is None for p in model.parameters())
        if number % every == 0:
            if clip:
                nn.utils.clip_grad_norm_(sift.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def masked(
    model: Model,
    support: dict[str, Tensor],
    data: Iterator[Tensor],
    every: int,
    clip: float,
    decay: float,
    rate: Rate = falling,
) -> dict[str, Tensor]:
    """The oracle: dense AdamW whose gradients and weights are masked to the support."""
    weights = {name: p for name, p in model.named_parameters() if name in support}
    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in weights.items()}
    for name, mask in masks.items():
        mask.view(-1)[support[name]] = True
    before = {name: p.detach().clone() for name, p in weights.items()}
    model.requires_grad_(False)
    for p in weights.values():
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for number, batch in enumerate(data, 1):
        (loss(model, batch) / every).backward()
        if number % every == 0:
            for name, p in weights.items():
                p.grad *= masks[name]
            nn.utils.clip_grad_norm_(list(weights.values()), clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                for name, p in weights.items():
                    p.copy_(torch.where(masks[name], p, before[name]))
    return {name: p.detach() for name, p in weights.items()}


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_equals_dense_adamw_under_a_mask(every: int, tied: bool, checkpointing: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    twin = copy.deepcopy(model)
    if checkpointing:
        model.train()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    sift = Sift(model, sparsity=0.02, target_modules=TIED if tied else "all-linear")
    tune(model, sift, batches(50 * every), every, clip=0.5, weight_decay=0.1)
    expected = masked(twin, sift.support(), batches(50 * every), every, clip=0.5, decay=0.1)
    weights = dict(model.named_parameters())
    assert max(float((weights[n].detach() - w).abs().max()) for n, w in expected.items()) <= 1e-6
    assert float(sift.delta.abs().max()) > 0.01


@pytest.mark.parametrize("every", [1, 4])
def test_equals_dense_adamw_under_a_mask_at_a_constant_rate(every: int) -> None:
    """All 50 steps are of full length, and entries go ten times as far as under the falling rate."""
    model, twin = tiny_llama(), tiny_llama()
    sift = Sift(model, sparsity=0.02)
    tune(model, sift, batches(50 * every), every, clip=0.5, rate=constant, weight_decay=0.1)
    expected = masked(twin, sift.support(), batches(50 * every), every, clip=0.5, decay=0.1, rate=constant)
    weights = dict(model.named_parameters())
    assert max(float((weights[n].detach() - w).abs().max()) for n, w in expected.items()) <= 1e-6
    assert float(sift.delta.abs().max()) > 0.2


def chosen_by_hand(model: Model, batch: Tensor, k: Callable[[int], int]) -> dict[str, set[int]]:
    twin = copy.deepcopy(model)
    loss(twin, batch).backward()
    found = {}
    for name, p in twin.named_parameters():
        if "proj" in name:
            found[name] = set(p.grad.flatten().abs().topk(k(p.numel())).indices.tolist())
    return found


def as_sets(sift: Sift) -> dict[str, set[int]]:
    return {name: set(index.tolist()) for name, index in sift.support().items()}


def test_the_first_micro_batch_chooses_the_largest_gradients_of_each_tensor() -> None:
    model, batch = tiny_llama(), next(batches(1))
    expected = chosen_by_hand(model, batch, lambda n: int(0.02 * n) + 1)
    sift = Sift(model, sparsity=0.02)
    loss(model, batch).backward()
    assert as_sets(sift) == expected


@pytest.mark.parametrize("rule", ["gradient", "fisher", "saliency"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_several_batches_choose_by_their_summed_scores_and_count_for_the_first_update(rule: str, scope: str) -> None:
    model, data = tiny_llama(), list(batches(3))
    twin = copy.deepcopy(model)
    scores: dict[str, Tensor] = {}
    total: dict[str, Tensor] = {}
    for batch in data:
        twin.zero_grad()
        loss(twin, batch).backward()
        for name, p in twin.named_parameters():
            if "proj" in name:
                g, w = p.grad.flatten(), p.detach().flatten()
                one = {"gradient": g.abs(), "fisher": g.square(), "saliency": (g * w).abs()}[rule]
                scores[name] = scores.get(name, 0) + one
                total[name] = total.get(name, 0) + g
    sizes = {name: s.numel() for name, s in scores.items()}
    budgets = {name: int(0.02 * n) + 1 for name, n in sizes.items()}
    if scope == "tensor":
        expected = {name: set(s.topk(budgets[name]).indices.tolist()) for name, s in scores.items()}
    else:
        least = torch.cat(list(scores.values())).topk(sum(budgets.values())).values.min()
        expected = {name: set(torch.nonzero(s >= least).flatten().tolist()) for name, s in scores.items()}
        expected = {name: index for name, index in expected.items() if index}
    sift = Sift(model, sparsity=0.02, rule=rule, scope=scope, selection_batches=3)
    optimizer = sift.optimizer(torch.optim.SGD, lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for number, batch in enumerate(data):
        assert not sift.ready
        (loss(model, batch) / 3).backward()
        if number < 2:
            assert torch.equal(model.lm_head.weight, before["lm_head.weight"])
    assert as_sets(sift) == expected
    optimizer.step()
    for name, index in sift.support().items():
        moved = (before[name] - model.get_parameter(name)).detach().flatten()
        torch.testing.assert_close(moved[index], total[name][index] / 3, rtol=1e-4, atol=1e-7)


def test_steps_before_the_choice_move_nothing_and_count_for_nothing() -> None:
    """selection_batches=3 without accumulation: two steps have nothing to do; the third has the mean of three."""
    model, data = tiny_llama(), list(batches(3))
    before = copy.deepcopy(model.state_dict())
    sift = Sift(model, sparsity=0.02, selection_batches=3)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2)
    for batch in data[:2]:
        loss(model, batch).backward()
        optimizer.step()
        assert not optimizer.state
        assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())
    loss(model, data[2]).backward()
    gradient = sift.values.grad.clone()
    twin = tiny_llama()
    sum(loss(twin, batch) for batch in data).backward()
    expected = torch.cat([twin.get_parameter(n).grad.flatten()[i] for n, i in sift.support().items()]) / 3
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
    optimizer.step()
    assert int(optimizer.state[sift.values]["step"]) == 1


def test_a_floor_leaves_no_tensor_without_entries() -> None:
    model, batch = tiny_llama(), next(batches(1))
    free, floored = (Sift(copy.deepcopy(model), sparsity=0.01, scope="global", floor=f) for f in (0.0, 0.5))
    for sift in (free, floored):
        loss(sift.model, batch).backward()
    assert free.k == floored.k == sum(t.budget for t in free.targets)
    counts = [t.count for t in free.targets]
    assert 0 in counts
    assert all(t.count >= t.certain >= 1 for t in floored.targets)
    for target in floored.targets:
        best = set(target.index[: target.certain].tolist())
        assert best <= set(target.index.tolist())


def test_baselines_look_at_no_data() -> None:
    model = tiny_llama()
    sift = Sift(model, sparsity=0.05, rule="magnitude")
    for name, index in sift.support().items():
        weight = model.get_parameter(name).detach().flatten().abs()
        assert set(index.tolist()) == set(weight.topk(index.numel()).indices.tolist())
    sift.remove()
    one, same, other = (Sift(tiny_llama(), sparsity=0.05, rule="random", seed=s) for s in (1, 1, 2))
    assert as_sets(one) == as_sets(same) != as_sets(other)
    chances = [len(a & b) / len(a) for a, b in zip(as_sets(one).values(), as_sets(other).values(), strict=True)]
    assert sum(chances) / len(chances) < 0.2


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_random_entries_of_all_tensors_together(floor: float) -> None:
    """As many as were asked for, drawn from all weights: tensors get about their share, not just that."""
    settings: dict[str, Any] = {"sparsity": 0.05, "rule": "random", "scope": "global", "floor": floor}
    one, same, other = (Sift(tiny_llama(), seed=seed, **settings) for seed in (1, 1, 2))
    assert as_sets(one) == as_sets(same) != as_sets(other)
    for sift in (one, other):
        assert sift.k == sum(t.budget for t in sift.targets)
        assert [t.count for t in sift.targets] != [t.budget for t in sift.targets]
        assert all(t.count >= int(floor * t.budget) for t in sift.targets)
        assert all(0 <= min(found) <= max(found) < 48 * 32 for found in as_sets(sift).values())
    assert [t.count for t in one.targets] != [t.count for t in other.targets]
    tune(one.model, one, batches(2))
    assert float(one.delta.abs().max()) > 0


def test_shares_of_a_random_draw_are_hypergeometric() -> None:
    """Mean ``k n_t / n`` and variance ``k p (1 - p) (n - k) / (n - 1)`` over 4,000 draws."""
    sizes, k = [5, 20, 75], 30
    counts = torch.tensor([draw_shares(sizes, k, seed) for seed in range(4000)]).double()
    assert bool((counts.sum(1) == k).all())
    assert bool((counts <= torch.tensor(sizes)).all())
    p = torch.tensor(sizes).double() / 100
    variance = k * p * (1 - p) * (100 - k) / 99
    torch.testing.assert_close(counts.mean(0), k * p, rtol=0, atol=4 * float((variance / 4000).sqrt().max()))
    torch.testing.assert_close(counts.var(0), variance, rtol=0.1, atol=0)
    assert draw_shares(sizes, 100, 0) == sizes
    assert draw_shares(sizes, 0, 0) == [0, 0, 0]


def test_shares_of_a_model_of_7b() -> None:
    """Beyond 1e9 entries, where numpy's own hypergeometric numbers end."""
    sizes = [4096 * 11008] * 96 + [4096 * 4096] * 128
    counts = draw_shares(sizes, sum(sizes) // 20, 0)
    assert sum(counts) == sum(sizes) // 20
    assert all(abs(count - size / 20) < 6 * (size / 20) ** 0.5 for count, size in zip(counts, sizes, strict=True))


def test_the_largest_weights_of_all_tensors_together() -> None:
    model = tiny_llama()
    sift = Sift(model, sparsity=0.05, rule="magnitude", scope="global")
    scores = {t.name: t.parameter.detach().flatten().abs() for t in sift.targets}
    least = torch.cat(list(scores.values())).topk(sift.k).values.min()
    expected = {name: set(torch.nonzero(s >= least).flatten().tolist()) for name, s in scores.items()}
    assert as_sets(sift) == {name: index for name, index in expected.items() if index}


@pytest.mark.parametrize("given", ["lm_head", ["lm_head"], ("lm_head",)])
def test_one_module_to_save_is_given_by_its_name(given: Any) -> None:
    for sift in (Sift(tiny_llama(), modules_to_save=given), SIFT(modules_to_save=given).attach(tiny_llama())):
        assert [t.name for t in sift.targets if t.dense] == ["lm_head.weight"]
        assert sift.settings["modules_to_save"] == ["lm_head"]


def test_modules_to_save_train_whole() -> None:
    model = tiny_llama()
    sift = Sift(model, sparsity=0.01, modules_to_save=["lm_head", "norm"])
    tune(model, sift, batches(2))
    whole = {t.name for t in sift.targets if t.count == t.parameter.numel()}
    assert whole == {"lm_head.weight", "model.norm.weight"}
    moved = model.lm_head.weight.detach() != tiny_llama().lm_head.weight.detach()
    assert moved.float().mean() > 0.9


@pytest.mark.parametrize("decay", ["zero", "base"])
def test_weight_decay_pulls_where_it_says(decay: str) -> None:
    """Without a gradient AdamW moves nothing but by decay: towards zero, or not at all from the base."""
    model = tiny_llama()
    sift = Sift(model, sparsity=0.05, decay=decay)
    loss(model, next(batches(1))).backward()
    optimizer = sift.optimizer(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    optimizer.step()
    moved = sift.values.detach().clone()
    sift.values.grad = torch.zeros_like(sift.values)
    for group in optimizer.param_groups:
        group["betas"] = (0.0, 0.0)
    optimizer.state.clear()
    optimizer.step()
    goal = sift.base.float() if decay == "base" else torch.zeros_like(moved)
    torch.testing.assert_close(sift.values.detach(), moved - 0.1 * 0.5 * (moved - goal))


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
        return func(*args, **(kwargs or {}))


def products(model: Model) -> int:
    found = loss(model, next(batches(1)))
    with Products() as counted:
        found.backward()
    return counted.count


def test_what_is_frozen_computes_no_weight_gradient() -> None:
    """15 matrices (7 per block and the head). All train: a product for each and for each input. One of the first block
    trains: its own, and those of the inputs behind it, which are all but q, k and v of that block."""
    assert products(tiny_llama()) == 15 + 15
    model = tiny_llama()
    last = Sift(model, sparsity=0.02, target_modules=["model.layers.0.self_attn.q_proj"])
    assert products(model) == 1 + (15 - 3)
    assert last.ready


def test_hooks_and_flags_go_with_the_tuning() -> None:
    model = tiny_llama()
    model.lm_head.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    sift = Sift(model, sparsity=0.02, target_modules=["q_proj"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {t.name for t in sift.targets}
    tune(model, sift, batches(2))
    sift.remove()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    loss(model, next(batches(1))).backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize("family", ["llama", "gpt2", "pythia", "qwen3", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_is_bit_exact_and_scale_is_linear(family: str, dtype: torch.dtype) -> None:
    model = CAUSAL[family]().to(dtype)
    before = copy.deepcopy(model.state_dict())
    sift = Sift(model, sparsity=0.03)
    tune(model, sift, batches(3))
    after = copy.deepcopy(model.state_dict())
    assert any(not torch.equal(before[n], after[n]) for n in before)
    with sift.unmerged():
        assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())
    assert all(torch.equal(after[n], w) for n, w in model.state_dict().items())
    delta = sift.delta.clone()
    sift.scale(0.5)
    torch.testing.assert_close(sift.delta, delta / 2, rtol=1e-3, atol=1e-7)
    sift.scale(0.0)
    assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())
    sift.remove()
    assert model.state_dict().keys() == before.keys()


class Experts(nn.Module):
    """A router that sends a batch to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.experts[which](x).square().mean()


def test_an_expert_without_tokens_waits_for_its_first_gradient() -> None:
    torch.manual_seed(0)
    model = Experts()
    before = copy.deepcopy(model.state_dict())
    sift = Sift(model, sparsity=0.2, target_modules=["experts.0", "experts.1"])
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    x = torch.randn(3, 4)
    for _ in range(3):
        model(x, 0).backward()
        optimizer.step()
    assert torch.equal(model.experts[1].weight, before["experts.1.weight"])
    model(x, 1).backward()
    optimizer.step()
    changed = (model.experts[1].weight != before["experts.1.weight"]).sum()
    assert int(changed) == sift.targets[1].count == 4


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # while Dynamo looks at inputs
def test_compiled_blocks_train_the_same() -> None:
    model, twin = tiny_llama(), tiny_llama()
    sifts = [Sift(m, sparsity=0.02) for m in (model, twin)]
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    for m, sift in zip((model, twin), sifts, strict=True):
        tune(m, sift, batches(3))
    assert as_sets(sifts[0]) == as_sets(sifts[1])
    torch.testing.assert_close(sifts[0].values, sifts[1].values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0.0}, "selects nothing"),
        ({"sparsity": 1.5}, "at most 1"),
        ({"rule": "gradients"}, "did you mean"),
        ({"scope": "layer"}, "tensor, global"),
        ({"floor": 0.5}, "scope='global'"),
        ({"selection_batches": 0}, "at least 1"),
        ({"target_modules": ["q_prj"]}, "q_proj"),
        ({"target_modules": "nothing.*here"}, "matches no weight"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save"),
        ({"modules_to_save": 5}, r"modules_to_save 5: expected a name or a list of names"),
        ({"modules_to_save": [5]}, r"modules_to_save \[5\]: 5 is no name"),
        ({"target_modules": 5}, r"target_modules 5: expected a name or a list of names"),
        ({"target_modules": ["q_proj", 5]}, r"target_modules .*: 5 is no name"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_altered(settings: dict[str, Any], message: str) -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match=rf"(?i){message}"):
        Sift(model, **settings)
    assert all(p.requires_grad and not p._post_accumulate_grad_hooks for p in model.parameters())


def test_weights_that_cannot_be_trained_in_place_are_refused() -> None:
    model = tiny_llama()
    with torch.device("meta"):
        model.model.layers[0].self_attn.q_proj = nn.Linear(32, 32, bias=False)
    with pytest.raises(ModelError, match=r"q_proj.*offloaded"):
        Sift(model)
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj.weight.ds_id = 1
    with pytest.raises(ModelError, match="ZeRO-3"):
        Sift(model)


def test_optimizers_that_cannot_work_are_refused() -> None:
    sift = Sift(tiny_llama())
    with pytest.raises(InputError, match="LBFGS"):
        sift.optimizer(torch.optim.LBFGS)
    with pytest.raises(InputError, match="does not hold"):
        sift.attach(torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))
    together = Sift(tiny_llama(), scope="global")
    with pytest.raises(InputError, match="Adagrad"):
        together.optimizer(torch.optim.Adagrad)


@pytest.mark.parametrize("block", ["double", "assign", "new Parameter", "to meta and back", "removed", "parametrized"])
def test_unmerged_gives_the_move_back_whatever_replaced_the_weights(block: str) -> None:
    model = CAUSAL["llama"]()
    sift = Sift(model, sparsity=0.03)
    tune(model, sift, batches(3))
    before = Before(model)
    with sift.unmerged():
        REPLACED[block](model)
    before.check()
    tune(model, sift, batches(1))
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before.values[UP])
