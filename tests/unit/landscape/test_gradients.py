"""Quasi-sparsity against sorting, against Gaussian entries, and against a fresh model; oscillation on known curves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from catchment.errors import InputError
from catchment.landscape import gradients
from catchment.landscape.gradients import (
    energies,
    entries,
    gaussian_share,
    oscillation,
    quasi_sparsity,
    random_init,
    rank_classes,
    summarise,
)
from catchment.landscape.losses import Batch, accumulate_gradient, mean_loss
from catchment.models import named_weights, select
from tests import tiny

torch.set_num_threads(1)


def batch_of(seed: int) -> Batch:
    ids = torch.randint(3, 300, (2, 8), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :3] = -100
    return Batch(ids, torch.ones_like(ids), labels, 10, (f"{seed}a", f"{seed}b"))


# Which entries are largest


def by_sorting(values: Tensor, count: int) -> set[int]:
    """Indices of the largest magnitudes, ties to the first."""
    order = np.argsort(-values.abs().numpy(), kind="stable")
    return set(order[:count].tolist())


@pytest.mark.parametrize("chunk", [5, 1 << 22])
@pytest.mark.parametrize("kind", ["smooth", "ties", "zeros", "wide"])
def test_classes_are_those_of_a_stable_sort(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(203, generator=generator)
    if kind == "ties":
        values = (values * 2).round()
    elif kind == "zeros":
        values = values * (values > 1.8)
    elif kind == "wide":
        values = values * 10.0 ** torch.randint(-30, 30, (203,), generator=generator)
    tops = (0.001, 0.03, 0.1, 0.5, 1.0)
    tensors = [values[:64].view(8, 8), values[64:65], values[65:]]
    classes = torch.cat(rank_classes(tensors, tops))
    for number, top in enumerate(tops):
        chosen = set((classes <= number).nonzero()[:, 0].tolist())
        assert len(chosen) == min(int(top * 203) + 1, 203)
        assert chosen == by_sorting(values, len(chosen))


def test_counts_are_those_of_the_published_code() -> None:
    assert [entries(0.05, 4096 * 11008), entries(0.01, 1), entries(1.0, 7), entries(0.001, 32)] == [2254439, 1, 7, 1]


def test_gaussian_entries_hold_what_the_formula_says() -> None:
    # closed-form values of the truncated normal second moment, as published with the null hypothesis
    assert gaussian_share(0.01) == (pytest.approx(0.29, abs=0.005), pytest.approx(0.08, abs=0.005))
    assert gaussian_share(0.05) == (pytest.approx(0.53, abs=0.005), pytest.approx(0.28, abs=0.005))
    assert gaussian_share(1.0) == (1.0, 1.0)
    values = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    tops = (0.001, 0.01, 0.05, 0.1)
    shares = energies(values, rank_classes([values], tops)[0], 5)[:-1].cumsum(0) / float(values.square().sum())
    for top, share in zip(tops, shares, strict=True):
        assert float(share) == pytest.approx(gaussian_share(top)[1], rel=0.03)
    with pytest.raises(InputError, match=r"in \(0, 1\]"):
        gaussian_share(0.0)


# Shares of a model's gradient


def test_shares_are_those_of_a_sorted_gradient() -> None:
    model = tiny.tiny_llama().double()
    weights = named_weights(model)
    a, b = [batch_of(1)], [batch_of(2)]
    tops = (0.01, 0.1)
    shares = {(s.name, s.top): s for s in quasi_sparsity(model, weights, a, b, tops)}
    assert len(shares) == 2 * (len(weights) + 1)
    _, chosen_on = accumulate_gradient(model, weights, a)
    _, measured = accumulate_gradient(model, weights, b)
    pairs = {n: (chosen_on[n].reshape(-1), measured[n].reshape(-1)) for n in weights}
    pairs["all"] = (torch.cat([p[0] for p in pairs.values()]), torch.cat([p[1] for p in pairs.values()]))
    for name, (first, second) in pairs.items():
        for top in tops:
            share = shares[name, top]
            squares = second.square().numpy()
            count = min(int(top * len(squares)) + 1, len(squares))
            fresh = squares[list(by_sorting(second.float(), count))].sum() / squares.sum()
            static = squares[list(by_sorting(first.float(), count))].sum() / squares.sum()
            assert share.fresh_squared == pytest.approx(fresh, rel=1e-9)
            assert share.static_squared == pytest.approx(static, rel=1e-9)
            assert share.fresh == pytest.approx(math.sqrt(fresh))
            assert share.static == pytest.approx(math.sqrt(static))
            assert share.size == len(squares)
    place = shares["model.layers.1.mlp.up_proj.weight", 0.1]
    assert (place.layer, place.kind) == (1, "ffn")
    assert (shares["all", 0.1].layer, shares["all", 0.1].kind) == (None, "all")
    assert shares["all", 0.1].static < shares["all", 0.1].fresh


def test_the_same_batches_make_static_shares_fresh() -> None:
    model = tiny.tiny_llama()
    weights = select(model, "*mlp*")
    for share in quasi_sparsity(model, weights, [batch_of(1)], [batch_of(1)]):
        assert share.static_squared == share.fresh_squared > 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's old name
def test_a_zero_gradient_has_no_share() -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny.tiny_llama(), config)
    weights = named_weights(model, "adapter")
    for share in quasi_sparsity(model, weights, [batch_of(1)], [batch_of(2)], tops=(0.1,)):
        assert (share.fresh > 0) == ("lora_A" not in share.name)  # B is zero, and so is the gradient of A


@pytest.mark.parametrize("tops", [(), (0.1, 0.01), (0.0, 0.1), (0.5, 1.5)])
def test_tops_must_increase_within_one(tops: tuple[float, ...]) -> None:
    model = tiny.tiny_llama()
    with pytest.raises(InputError, match="increasing shares"):
        quasi_sparsity(model, named_weights(model), [batch_of(1)], [batch_of(2)], tops)


# A model before training


def test_random_init_is_the_same_architecture_anew() -> None:
    model = tiny.tiny_llama(tie_word_embeddings=True, attn_implementation="eager").bfloat16()
    before = torch.get_rng_state()
    one, again, other = random_init(model, 1), random_init(model, 1), random_init(model, 2)
    assert torch.equal(torch.get_rng_state(), before)
    old, new = named_weights(model), named_weights(one)
    assert {n: (w.shape, w.dtype) for n, w in old.items()} == {n: (w.shape, w.dtype) for n, w in new.items()}
    assert "lm_head.weight" not in new
    assert one.config._attn_implementation == "eager"
    assert not one.training
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(new[name], named_weights(again)[name])
    assert not torch.equal(new[name], named_weights(other)[name])
    assert new[name].float().std().item() == pytest.approx(0.3, rel=0.1)  # the config's initializer_range
    assert torch.equal(new["model.norm.weight"], torch.ones_like(new["model.norm.weight"]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's old name
def test_random_init_leaves_an_adapter_out() -> None:
    import peft

    base = tiny.CAUSAL["gpt2"]()
    names = list(named_weights(base))
    model = peft.get_peft_model(base, peft.LoraConfig(r=1, target_modules=["c_proj"], fan_in_fan_out=True))
    fresh = random_init(model)
    assert type(fresh).__name__ == "GPT2LMHeadModel"
    assert not any("lora" in name for name in named_weights(fresh))
    assert len(named_weights(fresh)) == len(names)


# Along a line


def test_losses_are_measured_where_the_caller_moves_the_model() -> None:
    model = tiny.tiny_llama()
    gain = model.model.norm.weight
    seen = []

    @contextmanager
    def at(scale: float) -> Iterator[None]:
        saved = gain.detach().clone()
        with torch.no_grad():
            gain.mul_(1 + scale)
        seen.append(scale)
        try:
            yield
        finally:
            with torch.no_grad():
                gain.copy_(saved)

    centre = mean_loss(model, [batch_of(1)])
    losses = oscillation(model, [batch_of(1)], at, (-1.0, 0.0, 1.0))
    assert seen == [-1.0, 0.0, 1.0]
    assert losses[0] == pytest.approx(math.log(320), rel=1e-5)  # no gain, no logits: a guess among all tokens
    assert losses[1] == centre
    assert losses[2] != centre


def amplitude(scales: Any, curve: Any) -> float:
    return summarise("random", "gradient", tuple(scales), [tuple(curve(s) for s in scales)], 1.0).amplitude


def test_amplitude_of_known_curves() -> None:
    steps = np.linspace(-1, 1, 21).tolist()
    assert amplitude(steps, lambda s: 5 * s + 2) == pytest.approx(0, abs=1e-12)
    assert amplitude(steps, lambda s: 3 * s**2) == pytest.approx(2 * 3 * 0.1**2)
    uneven = sorted({-1.0, -0.7, -0.1, 0.0, 0.4, 1.0})
    assert amplitude(uneven, lambda s: 5 * s + 2) == pytest.approx(0, abs=1e-12)
    # sin(w s) at steps of h: second difference -4 sin^2(w h / 2) sin(w s); the mean |sin| of whole periods is 2/pi
    fine = np.linspace(-math.pi, math.pi, 2001)
    w, h = 20.0, 2 * math.pi / 2000
    expected = 4 * math.sin(w * h / 2) ** 2 * 2 / math.pi
    assert amplitude(fine.tolist(), lambda s: 2 + math.sin(w * s)) == pytest.approx(expected, rel=5e-3)
    slow = amplitude(fine.tolist(), lambda s: 2 + math.sin(s))
    assert amplitude(fine.tolist(), lambda s: 2 + math.sin(w * s)) > 300 * slow


def test_rise_is_relative_to_the_centre() -> None:
    both = summarise("pretrained", "gaussian", (-1, 0, 1), [(3, 1, 5), (4, 1, 8)], 2.0)
    assert both.rise == pytest.approx(5 / 2 - 1)
    assert both.amplitude == pytest.approx((abs(3 - 2 + 5) + abs(4 - 2 + 8)) / 2)
    assert both.losses == ((3, 1, 5), (4, 1, 8))
    one_sided = summarise("pretrained", "gradient", (0, 1, 2), [(2, 3, 6)], 2.0)
    assert one_sided.rise == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("scales", "losses", "centre", "message"),
    [
        ((0, 1), [(1, 2)], 1.0, "at least 3 increasing"),
        ((0, 2, 1), [(1, 2, 3)], 1.0, "at least 3 increasing"),
        ((0, 1, 2), [(1, 2)], 1.0, "for every direction"),
        ((0, 1, 2), [], 1.0, "for every direction"),
        ((0, 1, 2), [(1, 2, 3)], 0.0, "positive"),
    ],
)
def test_lines_that_cannot_be_summarised(scales: Any, losses: Any, centre: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        summarise("random", "gaussian", scales, losses, centre)
