"""Displacement on a GPU: exact, back bit for bit, within its memory; run with ``make gpu``."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from catchment.landscape import Mover, Subspace, displaced, gaussian
from tests import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def wide() -> Any:
    return tiny.tiny_llama(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, vocab_size=8000).to("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", ["copy", "low"])
def test_there_and_back(dtype: torch.dtype, memory: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path))
    model = tiny.tiny_llama().to("cuda", dtype)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    subspace = Subspace.all(model)
    direction = gaussian(subspace, 0)
    with displaced(model, direction, 0.01, memory=memory):
        for name, weight in model.named_parameters():
            delta = direction.delta(name, device="cuda").to(dtype).double().reshape(weight.shape)
            wanted = (before[name].double() + 0.01 * delta).to(dtype)
            assert torch.allclose(weight, wanted, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_memory_and_cost_in_axpy() -> None:
    """The bars of the benchmark: 1.5 axpy per point and 2 copies; printed, so that they can be recorded."""
    model = wide()
    size = sum(p.nbytes for p in model.parameters())
    subspace = Subspace.all(model)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    with Mover(model, subspace, memory="copy") as mover:
        mover.hold(gaussian(subspace, 0))
        mover.place((gaussian(subspace, 0), 0.001))
        direction = mover._held
        assert direction is not None
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for i in range(100):
            mover.place((direction, 0.001 * i + 0.001))
        torch.cuda.synchronize()
        point = (time.perf_counter() - begin) / 100
    copies = (torch.cuda.max_memory_allocated() - start) / size
    others = [torch.randn_like(p) for p in model.parameters()]
    with torch.no_grad():
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(100):
            for p, other in zip(model.parameters(), others, strict=True):
                p.add_(other, alpha=1e-9)
        torch.cuda.synchronize()
    axpy = (time.perf_counter() - begin) / 100
    print(f"\n{point / axpy:.2f} axpy per point, {copies:.2f} copies")
    assert point <= 1.5 * axpy
    assert copies <= 2.05
