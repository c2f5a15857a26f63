"""SIFT under what surrounds it: gradient scalers, the Trainer's callback, wrappers that keep gradients back."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers as tf
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from catchment.errors import InputError, ModelError
from catchment.methods import Full, LoRA, Sift
from catchment.methods.targets import target_weights
from tests.tiny import tiny_llama
from tests.unit.methods.test_sift import batches, loss, tune


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_one_dense_gradient_is_alive_at_a_time(scope: str) -> None:
    """Of the targets' gradients, whenever one is complete, the others are freed or not computed yet: while entries
    are chosen as well as afterwards."""
    model = tiny_llama()
    targets = list(target_weights(model).values())
    seen: list[StorageWeakRef] = []
    alive: list[int] = []

    def watch(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        seen.append(StorageWeakRef(parameter.grad.untyped_storage()))
        alive.append(sum(not storage.expired() for storage in seen))
        assert [p for p in targets if p.grad is not None] == [parameter]

    for parameter in targets:
        parameter.register_post_accumulate_grad_hook(watch)  # before Sift's own
    sift = Sift(model, sparsity=0.02, scope=scope)
    optimizer = sift.optimizer(lr=1e-2)
    for batch in batches(2):
        loss(model, batch).backward()
        optimizer.step()
    assert alive == [1] * 2 * len(targets)


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_scaled_training_equals_the_unscaled_one(scope: str, every: int) -> None:
    """Scales are powers of two and grow during the run, so no bit differs."""
    model, twin, data = tiny_llama(), tiny_llama(), list(batches(6 * every))
    plain = Sift(twin, sparsity=0.02, scope=scope)
    tune(twin, plain, iter(data), every, clip=0.5, rate=lambda step: 1.0)
    sift = Sift(model, sparsity=0.02, scope=scope)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    for number, batch in enumerate(data, 1):
        scaler.scale(loss(model, batch) / every).backward()
        if number % every == 0:
            scaler.unscale_(optimizer)
            sift.clip_grad_norm_(0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert scaler.get_scale() == 2.0**11
    assert all(torch.equal(index, plain.support()[name]) for name, index in sift.support().items())
    torch.testing.assert_close(sift.values, plain.values, rtol=0, atol=1e-7)
    assert float(sift.delta.abs().max()) > 0.01


def test_a_scaler_goes_back_when_the_second_half_is_fine() -> None:
    """The first of two micro-batches overflows where all tensors choose together: the step is skipped as a whole."""
    model, data = tiny_llama(), list(batches(4))
    before = copy.deepcopy(model.state_dict())
    sift = Sift(model, sparsity=0.02, scope="global")
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for number, batch in enumerate(data, 1):
        value = loss(model, batch) / 2
        scaler.scale(value * float("inf") if number == 1 else value).backward()
        if number % 2 == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert scaler.get_scale() == 2.0**7
            moved = {n for n, w in model.state_dict().items() if not torch.equal(before[n], w)}
            assert moved == (set() if number == 2 else set(sift.support()))
    assert int(optimizer.state[sift.values]["step"]) == 1


def test_adafactor_is_told_that_it_sees_one_vector() -> None:
    sift = Sift(tiny_llama(), sparsity=0.02)
    with pytest.warns(UserWarning, match="Adafactor sees one vector, so its second moments are not factored"):
        optimizer = sift.optimizer(torch.optim.Adafactor, lr=1e-2)
    loss(sift.model, next(batches(1))).backward()
    optimizer.step()
    assert float(sift.delta.abs().max()) > 0


# ---- the Trainer's callback ---------------------------------------------------------------------------------------


def begin(sift: Sift, folder: Path, optimizer: Any = None, **settings: Any) -> None:
    made = sift.for_trainer(lr=1e-2)
    args = tf.TrainingArguments(str(folder), use_cpu=True, report_to=[], **settings)
    (callback,) = made["callbacks"]
    callback.on_train_begin(args, None, None, optimizer=optimizer or made["optimizers"][0])


class Zero3:
    """What transformers keeps of a DeepSpeed configuration of stage 3; it holds a weak reference."""

    def is_zero3(self) -> bool:
        return True


def test_the_callback_refuses_weights_that_accelerate_cuts_up(tmp_path: Path) -> None:
    sift = Sift(tiny_llama(), sparsity=0.02)
    begin(sift, tmp_path)
    with pytest.raises(InputError, match=r"no --fsdp and no ZeRO-3.*fully_shard\(model\), then Sift"):
        begin(sift, tmp_path, fsdp=True)
    zero3 = Zero3()
    set_hf_deepspeed_config(zero3)  # type: ignore[arg-type]
    try:
        with pytest.raises(InputError, match=r"no --fsdp and no ZeRO-3"):
            begin(sift, tmp_path)
    finally:
        unset_hf_deepspeed_config()
    begin(sift, tmp_path)


def test_the_callback_refuses_another_optimizer(tmp_path: Path) -> None:
    sift = Sift(tiny_llama(), sparsity=0.02)
    with pytest.raises(InputError, match=r"another optimizer; expected Trainer\(\.\.\., \*\*sift\.for_trainer"):
        begin(sift, tmp_path, optimizer=torch.optim.SGD(sift.model.parameters(), lr=0.1))


# ---- gradients that never come ------------------------------------------------------------------------------------


def test_steps_without_any_gradient_are_told_once() -> None:
    """The loss is a copy's: no hook fires, and nothing would train in silence."""
    model = tiny_llama()
    other = copy.deepcopy(model)
    sift = Sift(model, sparsity=0.02)
    optimizer = sift.optimizer(lr=1e-2)
    said = []
    for batch in batches(6):
        loss(other, batch).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        said.append([str(warning.message) for warning in caught])
    assert [len(texts) for texts in said] == [0, 0, 1, 0, 0, 0]
    assert "3 optimizer steps, and no gradient has reached any of the 14 targets: nothing trains. Check" in said[2][0]


def test_gradients_of_zeros_are_gradients() -> None:
    sift = Sift(tiny_llama(), sparsity=0.02)
    optimizer = sift.optimizer(lr=1e-2)
    for batch in batches(4):
        (loss(sift.model, batch) * 0).backward()
        optimizer.step()  # without a warning
    assert not sift.ready


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    gc.collect()
    dist.destroy_process_group()


def fsdp1(model: Any, use_orig_params: bool) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`", "ignore:.*FSDP1")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused(use_orig_params: bool) -> None:
    """Also in a part of the model, when the wrapper is taken off, and by every method."""
    wrapped = fsdp1(tiny_llama(), use_orig_params)
    part = tiny_llama()
    part.model.layers[1] = fsdp1(part.model.layers[1], use_orig_params)
    told = r"FSDP1 \(FullyShardedDataParallel\).*expected FSDP2: call torch\.distributed\.fsdp\.fully_shard"
    support = {"lm_head.weight": torch.tensor([0])}
    for model in (wrapped, part, wrapped.module):
        for settings in ({}, {"target_modules": ["*"]}, {"support": support}, {"modules_to_save": "lm_head"}):
            with pytest.raises(ModelError, match=told):
                Sift(model, sparsity=0.02, **settings)
        for method in (Full(), LoRA()):
            with pytest.raises(ModelError, match=told):
                method.attach(model)


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`", "ignore:.*FSDP1")
def test_fsdp1_around_a_sift_is_noticed() -> None:
    model = tiny_llama()
    sift = Sift(model, sparsity=0.02)
    optimizer = sift.optimizer(lr=1e-2)
    wrapped = fsdp1(model, use_orig_params=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches(3):
            loss(wrapped, batch).backward()
            optimizer.step()
    assert sum("no gradient has reached any of the 14 targets" in str(warning.message) for warning in caught) == 1


def test_ddp_keeps_the_names_that_it_was_told_to_ignore(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process nothing is touched; among several the targets come on top, and go again."""
    given = ["model.embed_tokens.weight"]
    for remove in (Sift.remove, Sift.merge):
        model = tiny_llama()
        model._ddp_params_and_buffers_to_ignore = given
        remove(Sift(model, sparsity=0.02))
        assert model._ddp_params_and_buffers_to_ignore is given
    monkeypatch.setattr("catchment.methods.sift.sharing.processes", lambda: 2)
    monkeypatch.setattr("catchment.methods.sift.sharing.align", lambda targets: None)
    for before in (given, None):
        model = tiny_llama()
        if before is not None:
            model._ddp_params_and_buffers_to_ignore = before
        sift = Sift(model, sparsity=0.02)
        ignored = set(model._ddp_params_and_buffers_to_ignore)
        assert ignored >= {*(before or ()), "model.layers.0.mlp.up_proj.weight"}
        sift.remove()
        assert vars(model).get("_ddp_params_and_buffers_to_ignore") is before
    assert given == ["model.embed_tokens.weight"]
