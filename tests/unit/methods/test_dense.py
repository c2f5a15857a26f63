"""Full, L2-SP, SAM and WiSE-FT on tiny modules, against formulas written out here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from catchment.errors import InputError, ModelError, StoreError
from catchment.methods.dense import L2SP, SAM, DenseTuning, Full, WiSEFT
from catchment.models import load, named_weights
from tests.tiny import CAUSAL, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in named_weights(model).items()}


def small(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def trained(tuning: DenseTuning, steps: int = 3, **options: Any) -> DenseTuning:
    optimizer = tuning.optimizer(torch.optim.SGD, **{"lr": 0.1, **options})
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).to(next(tuning.model.parameters()).dtype)
    for _ in range(steps):

        def backward() -> None:
            tuning.model(x).square().mean().backward()

        backward()
        tuning.second_pass(backward)
        optimizer.step()
        optimizer.zero_grad()
    return tuning


def test_full_in_bf16_keeps_small_steps() -> None:
    """1000 steps of 8e-5 from 0.02 arrive at 0.1; without masters they stop where bf16 cannot hold a step."""
    ends = []
    for method in (Full(), Full(master_weights=False)):
        model = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
        nn.init.constant_(model.weight, 0.02)
        tuning = method.attach(model)
        optimizer = tuning.optimizer(torch.optim.SGD, lr=8e-5)
        for _ in range(1000):
            (-model.weight).sum().backward()
            optimizer.step()
            tuning.zero_grad()
        ends.append(model.weight.detach().float())
    torch.testing.assert_close(ends[0], torch.full((4, 4), 0.1), rtol=2**-8, atol=0)
    assert ends[1].max() < 0.04


def test_l2sp_is_the_penalty_for_plain_sgd() -> None:
    """Decoupled from the moments, which SGD has not: w - lr * (g + strength * (w - w0)), g taken at w."""
    lr, strength, model, x = 0.1, 0.7, small(), torch.randn(5, 3, dtype=torch.float64)
    model[2] = nn.Identity()
    start = weights(model)
    w = {name: value.clone() for name, value in start.items()}
    tuning = L2SP(strength=strength).attach(model)
    optimizer = tuning.optimizer(torch.optim.SGD, lr=lr)
    for _ in range(4):
        leaves = {name: value.clone().requires_grad_() for name, value in w.items()}
        gradients = torch.autograd.grad(
            torch.func.functional_call(model, leaves, (x,)).square().mean(), list(leaves.values())
        )
        w = {n: w[n] - lr * (g + strength * (w[n] - start[n])) for n, g in zip(w, gradients, strict=True)}
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in weights(model).items():
        torch.testing.assert_close(value, w[name], rtol=0, atol=1e-14)


def test_l2sp_pulls_the_masters_of_bf16_weights() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    tuning = L2SP(strength=1e-3).attach(model)
    optimizer = tuning.optimizer(torch.optim.SGD, lr=0.1)
    (-10 * model.weight).sum().backward()
    optimizer.step()  # 2
    for _ in range(100):
        optimizer.zero_grad()
        optimizer.step()
    assert tuning.parameters()[0].item() == pytest.approx(1 + (1 - 1e-4) ** 100, rel=1e-6)


def test_sam_and_full_differ_only_when_rho_is_not_zero() -> None:
    ends = [weights(trained(method.attach(small())).model) for method in (Full(), SAM(rho=0.0), SAM(rho=0.5))]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=1e-15)
    assert not torch.allclose(ends[0]["0.weight"], ends[2]["0.weight"], rtol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_wise_ft_interpolates_at_the_end(alpha: float) -> None:
    model = small()
    base = weights(model)
    tuning = trained(WiSEFT(alpha=alpha).attach(model))
    tuned = weights(model)
    tuning.finish()
    for name, value in weights(model).items():
        torch.testing.assert_close(value, (1 - alpha) * base[name] + alpha * tuned[name], rtol=0, atol=1e-15)
        if alpha == 1:
            assert torch.equal(value, tuned[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scale(dtype: torch.dtype) -> None:
    model = small(dtype)
    base = weights(model)
    tuning = trained(Full().attach(model))
    masters = [p.detach().clone() for p in tuning.parameters()]
    tuning.scale(1.0)
    assert all(torch.equal(p, m) for p, m in zip(tuning.parameters(), masters, strict=True))
    tuning.scale(3.0)
    for value, start, master in zip(tuning.parameters(), base.values(), masters, strict=True):
        wanted = start.double() + 3 * (master.double() - start.double())
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)
    for value, rounded in zip(tuning.parameters(), weights(model).values(), strict=True):
        assert torch.equal(value.to(dtype), rounded)
    tuning.scale(0.0)
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_remove_restores_weights_buffers_and_flags() -> None:
    model = small()
    model[0].bias.requires_grad_(False)
    before, flags = {k: v.clone() for k, v in model.state_dict().items()}, [p.requires_grad for p in model.parameters()]
    tuning = trained(Full().attach(model))
    assert not torch.equal(model[2].running_mean, before["2.running_mean"])
    assert tuning.remove() is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_targets_train_and_the_rest_is_frozen() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    base = weights(model)
    tuning = Full(target_modules=("mlp.down_proj", "embed_tokens")).attach(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "model.embed_tokens.weight", *(f"model.layers.{k}.mlp.down_proj.weight" for k in (0, 1))
    }  # fmt: skip
    optimizer = tuning.optimizer(torch.optim.SGD, lr=0.1)
    ids = torch.arange(3, 11)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    norm = tuning.clip_grad_norm_(1e-3)
    assert float(norm) > 1e-3
    assert float(torch.nn.utils.get_total_norm([p.grad for p in tuning.parameters()])) == pytest.approx(1e-3, rel=1e-3)
    optimizer.step()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, base[name])}
    assert len(moved) == 3


def test_weight_decay_reaches_matrices_only() -> None:
    optimizer = Full().attach(small()).optimizer(lr=1e-3, weight_decay=0.1)
    found = {(p.ndim, g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {(2, 0.1), (1, 0.0)}


def test_the_base_is_needed_only_where_it_is_asked_for() -> None:
    for method in (Full(keep_base=False), SAM(keep_base=False)):
        tuning = trained(method.attach(small()))
        now = weights(tuning.model)
        for ask in (lambda t=tuning: t.scale(0.5), tuning.remove):
            with pytest.raises(ModelError, match="keep_base=True"):
                ask()
        assert all(torch.equal(value, now[name]) for name, value in weights(tuning.merge()).items())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_base_files_replace_the_copy(kind: str, tmp_path: Path) -> None:
    model = CAUSAL[kind]()
    model.save_pretrained(tmp_path)
    base, files = weights(model), tuple(tmp_path.glob("*.safetensors"))
    tuning = Full(base_files=files, keep_base=False).attach(model)
    with torch.no_grad():
        for p in tuning.parameters():
            p.add_(0.1)
    with pytest.raises(InputError, match="hold another"):
        Full(base_files=files).attach(copy.deepcopy(model))
    assert all(torch.equal(value, base[name]) for name, value in weights(tuning.remove()).items())
    with pytest.raises(InputError, match="hold no weight"):
        Full(base_files=files).attach(nn.Linear(2, 2))
    for one in (files[0], str(files[0])):
        Full(base_files=one, keep_base=False).attach(CAUSAL[kind]()).remove()


def test_saves_a_model_that_loads_alone(tmp_path: Path) -> None:
    model = CAUSAL["gpt2"]().to(torch.bfloat16)
    tuning = L2SP(strength=0.2).attach(model)
    tuning.scale(0.0)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.add_(1)
    path = tuning.save_pretrained(tmp_path, base_hash="ab", recipe={"lr": 1e-5})
    loaded = load(str(path), tokenizer=tiny_tokenizer()).model
    assert all(torch.equal(value, weights(loaded)[name]) for name, value in weights(model).items())
    written = json.loads((path / "tuning.json").read_text())
    assert written["method"] == "l2-sp"
    assert written["settings"]["strength"] == 0.2
    assert (written["base_hash"], written["recipe"]) == ("ab", {"lr": 1e-5})


def test_loading_says_what_is_missing(tmp_path: Path) -> None:
    tuning = Full().attach(tiny_llama())
    with pytest.raises(ModelError, match="no safetensors"):
        tuning.load_pretrained(tmp_path)
    tiny_llama(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"embed_tokens.*of this shape"):
        tuning.load_pretrained(tmp_path)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="strength -1"):
        L2SP(strength=-1)
    with pytest.raises(InputError, match="rho inf"):
        SAM(rho=float("inf"))
    with pytest.raises(InputError, match=r"alpha 1.5: .*\[0, 1\]"):
        WiSEFT(alpha=1.5)
    with pytest.raises(InputError, match="Did you mean 'down_proj'"):
        Full(target_modules=("down_prj",)).attach(tiny_llama())


@pytest.mark.parametrize("method", [Full(), L2SP(), SAM(), WiSEFT()], ids=lambda method: method.name)
@pytest.mark.parametrize("end", ["merge", "remove"])
def test_a_model_is_tuned_once_at_a_time(method: Any, end: str) -> None:
    model = small()
    before = dict(vars(model))
    with pytest.raises(InputError, match="matches no weight"):
        Full(target_modules=("nothing_like",)).attach(model)
    tuning = method.attach(model)  # the failure left no mark
    flags = [p.requires_grad for p in model.parameters()]
    for second in (Full(target_modules=("0",)), method):
        with pytest.raises(InputError, match=r"being tuned already; call remove\(\) or merge\(\) on that tuning first"):
            second.attach(model)
    assert [p.requires_grad for p in model.parameters()] == flags
    getattr(tuning, end)()
    assert vars(model) == before
    method.attach(model).merge()


def test_saving_onto_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tuning = Full().attach(tiny_llama())
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=r"cannot write .*file"):
            tuning.save_pretrained(place)
    assert (tmp_path / "file").read_text() == ""
