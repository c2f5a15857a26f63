"""SIFT on two gloo processes against one: DDP and FSDP2."""

from __future__ import annotations

import copy
import gc
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from catchment.methods import Sift
from tests.tiny import VOCABULARY, tiny_llama

STEPS, LR, CLIP, SPARSITY = 5, 1e-2, 0.5, 0.02


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (4, 12), generator=generator) for _ in range(2 * STEPS)]


def train(model: Any, forward: Any, sift: Sift, part: slice, every: int) -> None:
    optimizer = sift.optimizer(torch.optim.AdamW, lr=LR, weight_decay=0.1)
    for number, batch in enumerate(batches(), 1):
        mine = batch[part]
        (forward(input_ids=mine, labels=mine).loss / every).backward()
        if number % every == 0:
            sift.clip_grad_norm_(CLIP)
            optimizer.step()
            optimizer.zero_grad()


def alone(settings: dict[str, Any], every: int) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
    model = tiny_llama(num_hidden_layers=2)
    sift = Sift(model, sparsity=SPARSITY, **settings)
    train(model, model, sift, slice(None), every)
    return {n: i.tolist() for n, i in sift.support().items()}, copy.deepcopy(model.state_dict())


def _worker(rank: int, port: int, work: Callable[..., None], settings: dict[str, Any], every: int, out: str) -> None:
    """One process. What DDP holds of the process group is freed before the group is: its destructor waits for threads
    that need Python's lock."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        work(rank, settings, every, out)
    finally:
        gc.collect()
        dist.destroy_process_group()


def _ddp(rank: int, settings: dict[str, Any], every: int, out: str) -> None:
    model = tiny_llama(num_hidden_layers=2)
    if rank == 1:  # every process starts from the first one's weights
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.add_(1.0)
    sift = Sift(model, sparsity=SPARSITY, **settings)
    wrapped = nn.parallel.DistributedDataParallel(model)
    train(model, wrapped, sift, slice(2 * rank, 2 * rank + 2), every)
    content = {"support": {n: i.tolist() for n, i in sift.support().items()}, "weights": model.state_dict()}
    torch.save(content, Path(out) / f"{rank}.pt")


def _fsdp(rank: int, settings: dict[str, Any], every: int, out: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny_llama(num_hidden_layers=2)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sift = Sift(model, sparsity=SPARSITY, **settings)
    train(model, model, sift, slice(2 * rank, 2 * rank + 2), every)
    sift.save_pretrained(out, base_hash="0" * 64)
    torch.save({"k": sift.k}, Path(out) / f"{rank}.pt")


def spawn(target: Any, *arguments: Any) -> None:
    torch.multiprocessing.spawn(_worker, args=(free_port(), target, *arguments), nprocs=2, join=True)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"scope": "global", "selection_batches": 2}], ids=str)
def test_ddp_equals_one_process(settings: dict[str, Any], every: int, tmp_path: Path) -> None:
    support, weights = alone(settings, every)
    spawn(_ddp, settings, every, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["support"] == found[1]["support"] == support
    for name, weight in weights.items():
        assert torch.equal(found[0]["weights"][name], found[1]["weights"][name])
        torch.testing.assert_close(found[0]["weights"][name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"scope": "global", "selection_batches": 2}, {"rule": "random"}, {"rule": "magnitude"}], ids=str
)
def test_fsdp2_equals_one_process(settings: dict[str, Any], tmp_path: Path) -> None:
    from catchment.models import Increment

    support, weights = alone(settings, 2)
    spawn(_fsdp, settings, 2, str(tmp_path))
    increment = Increment.read(tmp_path / "increment.safetensors")
    assert {n: i.tolist() for n, i in increment.support().items()} == support
    for name, index in increment.support().items():
        torch.testing.assert_close(increment.values[name], weights[name].flatten()[index], rtol=0, atol=2e-5)
    held = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["k"] for rank in (0, 1)]
    assert sum(held) == increment.k
    assert min(held) > 0
