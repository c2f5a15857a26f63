"""SIFT over its rules, scopes, dtypes and kinds of model, and under any optimizer: what every combination promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from catchment.methods import RULES, SCOPES, Sift
from catchment.models import Increment, weights_hash
from tests.conformance.test_methods import DTYPES, MODELS
from tests.tiny import VOCABULARY, tiny_llama

torch.set_num_threads(1)
SPARSITY = 0.03
SELECTION = 2
"""Batches that choose, in every row whose rule looks at data."""
STEPS = 4
DATA_FREE = ("random", "magnitude")


def tiny_t5() -> Any:
    torch.manual_seed(0)
    config = tf.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.1,
        decoder_start_token_id=0,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config).eval()


KINDS: dict[str, Callable[[], Any]] = {**MODELS, "t5": tiny_t5}
OPTIONS: dict[str, dict[str, Any]] = {
    "bert": {"modules_to_save": ["classifier"]},
    "t5": {"target_modules": ["q", "k", "v", "o", "wi", "wo"]},
}
OUTSIDE = ("lm_head", "embed_out", "classifier", "pooler")


def batch(model: Any, number: int) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "labels": ids[:, 0] % 3 if "Classification" in type(model).__name__ else ids}


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def by_hand(model: Any) -> dict[str, int]:
    """Entries to choose per tensor, ``min(int(x n) + 1, n)`` of every matrix of a linear layer in the blocks."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and not any(word in name for word in OUTSIDE):
            n = module.weight.numel()
            found[f"{name}.weight"] = min(int(SPARSITY * n) + 1, n)
    return found


def whole(model: Any) -> dict[str, int]:
    """Tensors all of whose entries train."""
    return {n: p.numel() for n, p in model.named_parameters() if n.startswith("classifier.")}


@dataclass
class Mode:
    rule: str
    scope: str
    kind: str
    dtype: torch.dtype

    def model(self) -> Any:
        return KINDS[self.kind]().to(self.dtype)

    def begin(self, model: Any) -> Sift:
        batches = 1 if self.rule in DATA_FREE else SELECTION
        settings: dict[str, Any] = {"sparsity": SPARSITY, "rule": self.rule, "scope": self.scope, "seed": 3}
        return Sift(model, selection_batches=batches, **settings, **OPTIONS.get(self.kind, {}))


def tune(model: Any, sift: Sift, steps: int = STEPS) -> list[bool]:
    """Steps of ``SELECTION`` batches each; whether the entries were chosen, before the first batch and after each."""
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.01)
    ready = [sift.ready]
    for step in range(steps):
        for part in range(SELECTION):
            (model(**batch(model, SELECTION * step + part)).loss / SELECTION).backward()
            assert all(p.grad is None for p in model.parameters())
            ready.append(sift.ready)
        sift.clip_grad_norm_(1.0)
        optimizer.step()
    return ready


@pytest.fixture(
    scope="module", params=[(r, s, k, d) for k in KINDS for d in DTYPES for r in RULES for s in SCOPES], ids="-".join
)
def mode(request: Any) -> Mode:
    rule, scope, kind, dtype = request.param
    return Mode(rule, scope, kind, DTYPES[dtype])


def test_every_mode(mode: Mode, tmp_path: Path) -> None:
    """One life of a tuning: it has the budget that was asked for, moves what it chose and nothing else, saves what it
    is, and leaves no trace."""
    model = mode.model()
    next(model.parameters()).requires_grad_(False)
    model.training = True  # unlike the modules inside it
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    base, keys, base_hash = weights(model), list(model.state_dict()), weights_hash(model)
    budget, dense = by_hand(model), whole(model)
    random = torch.get_rng_state()

    sift = mode.begin(model)
    ready = tune(model, sift)
    assert ready == [mode.rule in DATA_FREE, mode.rule in DATA_FREE, *[True] * (len(ready) - 2)]
    assert sift.k == sum(budget.values()) + sum(dense.values())
    counts = {name: index.numel() for name, index in sift.support().items()}
    assert {name: counts[name] for name in dense} == dense
    if mode.scope == "tensor":
        assert counts == budget | dense
    assert counts.keys() <= (budget | dense).keys()

    tuned = weights(model)
    assert differing(base, tuned) == counts.keys(), "the first, the last and all between, and nothing else"
    for name, index in sift.support().items():
        rest = torch.ones(tuned[name].numel(), dtype=torch.bool).index_fill_(0, index, False)
        assert torch.equal(tuned[name].view(-1)[rest], base[name].view(-1)[rest])
    assert list(model.state_dict()) == keys

    sift.save_pretrained(tmp_path)
    assert differing(weights(model), tuned) == set()
    fresh = mode.model()
    increment = Increment.from_pretrained(tmp_path)
    assert increment.base_hash == base_hash
    increment.apply(fresh)
    assert differing(weights(fresh), tuned) == set()

    assert sift.remove() is model
    assert differing(weights(model), base) == set()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert list(model.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), random)


def test_every_mode_repeats(mode: Mode) -> None:
    """Two runs choose the same entries and end in the same bits, whatever was drawn at random in between."""
    found = []
    for seed in range(2):
        model = mode.model()
        torch.manual_seed(seed)
        sift = mode.begin(model)
        tune(model, sift, steps=2)
        found.append((weights(model), sift.support()))
    assert differing(found[0][0], found[1][0]) == set()
    assert differing(found[0][1], found[1][1]) == set()


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw-fused": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "fused": True}),
    "adamw-foreach": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "foreach": True, "amsgrad": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5, "weight_decay": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True}),
}


def schedule(optimizer: Any, rate: float, steps: int) -> Any:
    """One cycle of the rate, and of momentum or the first beta where the optimizer has one."""
    cycle = {"momentum", "betas"} & optimizer.defaults.keys()
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=bool(cycle))


def masked(model: Any, support: dict[str, Tensor], factory: Any, options: dict[str, Any], steps: int) -> None:
    """The oracle: the optimizer over whole tensors, all but the support put back after every step."""
    trained = {name: p for name, p in model.named_parameters() if name in support}
    keep = {n: torch.ones(p.numel(), dtype=torch.bool).index_fill_(0, support[n], False) for n, p in trained.items()}
    before = weights(model)
    model.requires_grad_(False)
    for p in trained.values():
        p.requires_grad_(True)
    optimizer = factory(list(trained.values()), **options)
    rate = schedule(optimizer, options["lr"], steps + 1)
    for step in range(steps):
        optimizer.zero_grad()
        model(**batch(model, step)).loss.backward()
        for name, p in trained.items():
            assert p.grad is not None
            p.grad.view(-1)[keep[name]] = 0
        optimizer.step()
        rate.step()
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(torch.where(keep[name].view_as(p), before[name], p))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_is_itself(name: str) -> None:
    """Under a schedule that turns momenta too, entries go where the optimizer over whole tensors takes them."""
    (factory, options), steps = OPTIMIZERS[name], 12
    model, twin = tiny_llama(), tiny_llama()
    sift = Sift(model, sparsity=SPARSITY)
    optimizer = sift.optimizer(factory, **options)
    rate = schedule(optimizer, options["lr"], steps + 1)
    for step in range(steps):
        model(**batch(model, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    masked(twin, sift.support(), factory, options, steps)
    off = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert float(sift.delta.abs().max()) > 5e-3
    assert off <= 2e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_resumes_in_bfloat16(name: str, tmp_path: Path) -> None:
    """The state of the values, the moments and the schedule goes through a file, and the weights end in the same
    bits."""
    factory, options = OPTIMIZERS[name]

    def begin() -> tuple[Any, Any, Any]:
        model = tiny_llama().to(torch.bfloat16)
        optimizer = Sift(model, sparsity=SPARSITY).optimizer(factory, **options)
        return model, optimizer, schedule(optimizer, options["lr"], 7)

    def go(model: Any, optimizer: Any, rate: Any, numbers: range) -> None:
        for number in numbers:
            model(**batch(model, number)).loss.backward()
            optimizer.step()
            rate.step()

    whole = begin()
    go(*whole, range(6))
    first = begin()
    go(*first, range(3))
    torch.save([part.state_dict() for part in first[1:]], tmp_path / "state.pt")
    second = begin()
    for part, state in zip(second[1:], torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    go(*second, range(3, 6))
    assert differing(weights(whole[0]), weights(second[0])) == set()
    assert differing(weights(whole[0]), weights(first[0])) != set()
