"""SIFT on a GPU: the same arithmetic, half types, one dense gradient alive, and the price of a step."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from catchment.methods import Sift
from tests.tiny import tiny_llama
from tests.unit.methods.test_sift import batches, loss, masked

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_equals_dense_adamw_under_a_mask_on_a_gpu() -> None:
    model, twin = tiny_llama().cuda(), tiny_llama().cuda()
    data = [batch.cuda() for batch in batches(20)]
    sift = Sift(model, sparsity=0.02)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for batch in data:
        loss(model, batch).backward()
        sift.clip_grad_norm_(0.5)
        optimizer.step()
        schedule.step()
    expected = masked(twin, sift.support(), iter(data), 1, 0.5, 0.1)
    weights = dict(model.named_parameters())
    assert max(float((weights[n].detach() - w).abs().max()) for n, w in expected.items()) <= 1e-5


def test_a_scaler_in_float16_trains_and_an_overflow_leaves_no_trace() -> None:
    model = tiny_llama().cuda()
    sift = Sift(model, sparsity=0.02)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    for batch in batches(12):
        with torch.autocast("cuda", dtype=torch.float16):
            value = loss(model, batch.cuda())
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        sift.clip_grad_norm_(1.0)
        scaler.step(optimizer)
        scaler.update()
        sift.zero_grad()
    assert sift.ready
    assert float(sift.delta.abs().max()) > 0
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_saved_taken_up_and_resumed_on_a_gpu(tmp_path: Path) -> None:
    def begin() -> tuple[torch.nn.Module, Sift, torch.optim.Optimizer]:
        model = tiny_llama().cuda()
        sift = Sift(model, sparsity=0.02)
        return model, sift, sift.optimizer(torch.optim.AdamW, lr=1e-2)

    def go(model: torch.nn.Module, optimizer: torch.optim.Optimizer, part: list[torch.Tensor]) -> None:
        for batch in part:
            loss(model, batch).backward()
            optimizer.step()

    data = [batch.cuda() for batch in batches(6)]
    model, sift, optimizer = begin()
    go(model, optimizer, data[:3])
    sift.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other, again, second = begin()
    again.load_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    go(model, optimizer, data[3:])
    go(other, second, data[3:])
    assert all(
        torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(other.parameters(), model.parameters(), strict=True)
    )


def _llama() -> torch.nn.Module:
    return tiny_llama(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=8,
        vocab_size=320, initializer_range=0.02,
    ).to("cuda", torch.bfloat16)  # fmt: skip


def test_peak_memory_and_time_of_a_step() -> None:
    """Peak: weights, activations, 22 bytes per entry, the largest dense gradient, and 5%. Time: 1.05 of a plain
    forward and backward."""
    batch = torch.randint(3, 320, (8, 256), device="cuda")
    model = _llama().requires_grad_(True)
    largest = max(p.numel() for p in model.parameters()) * 2

    def plain() -> None:
        loss(model, batch).backward()
        model.zero_grad(set_to_none=True)

    plain_seconds = _seconds(plain)
    weights = torch.cuda.memory_allocated()
    for p in model.parameters():
        p.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    torch.cuda.reset_peak_memory_stats()
    loss(model, batch).backward()
    model.zero_grad(set_to_none=True)
    activations = torch.cuda.max_memory_allocated() - weights
    model.requires_grad_(True)
    sift = Sift(model, sparsity=0.01)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-4, fused=True)

    def step() -> None:
        loss(model, batch).backward()
        optimizer.step()

    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated()
    assert peak <= 1.05 * (weights + activations + 22 * sift.k + largest)
    ratio = _seconds(step) / plain_seconds
    print(f"peak {peak / 2**20:.0f} MiB, step {ratio:.3f} of a plain forward and backward")
    assert ratio <= 1.05


def _seconds(work: object, rounds: int = 20) -> float:
    assert callable(work)
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / rounds
