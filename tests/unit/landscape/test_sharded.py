"""Weights cut over two processes (FSDP2): the same points, bit for bit, as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.errors import ModelError
from catchment.landscape import Mover, Subspace, displaced, gaussian
from catchment.models import weights_hash
from tests.gloo import Gloo
from tests.tiny import tiny_llama

SCALE = 0.02


def point(model: Any, kind: str) -> Subspace:
    if kind == "all":
        return Subspace.all(model)
    if kind == "frame":
        return Subspace.frame(model, 2)
    name = "model.layers.0.mlp.up_proj.weight"
    return Subspace.sparse(model, {name: torch.arange(0, 48 * 32, 7)})


def measure(model: Any) -> dict[str, Any]:
    """Hash of the displaced weights and the logits there, then the hash when all is put back."""
    found: dict[str, Any] = {"clean": weights_hash(model)}
    for kind in ("all", "sparse", "frame"):
        subspace = point(model, kind)
        for memory in ("copy", "low"):
            with Mover(model, subspace, memory=memory) as mover:
                mover.place((gaussian(subspace, 0), SCALE))
                first = model(input_ids=torch.tensor([[1, 5, 9, 30]])).logits.detach()
                mover.place((gaussian(subspace, 1), SCALE))
                model(input_ids=torch.tensor([[1, 5, 9, 30]]))
                mover.place((gaussian(subspace, 0), SCALE))
                found[f"{kind}/{memory}"] = weights_hash(model)
                found[f"{kind}/{memory}/logits"] = first
            assert weights_hash(model) == found["clean"]
    return found


def trained(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()


def blocks(model: Any, clean: str) -> None:
    """A pass, an optimizer's step and a saved state are undone; a cast, which cannot be, is told by name."""
    ids = torch.tensor([[1, 5, 9, 30]])
    subspace = Subspace.all(model)
    with displaced(model, gaussian(subspace, 0), SCALE):
        trained(model, ids)
        model.load_state_dict(model.state_dict(), assign=True)
    assert weights_hash(model) == clean
    model(input_ids=ids)
    glob = Subspace.glob(model, "model.layers.0.mlp.up_proj.weight")
    with (
        pytest.raises(ModelError, match=r"not what they were before the block.*_proj\.weight"),
        displaced(model, gaussian(glob, 0), SCALE),
    ):
        trained(model, ids)
    with (
        pytest.raises(ModelError, match="not what they were before the block"),
        displaced(model, gaussian(subspace, 0), SCALE),
    ):
        model.double()


def worker(rank: int, out: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny_llama(vocab_size=321)  # rows that two processes cannot share evenly
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = measure(model)
    blocks(model, found["clean"])
    if rank == 0:
        torch.save(found, out)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed part here")
def test_two_processes_equal_one_bit_for_bit(tmp_path: Path, gloo: Gloo) -> None:
    gloo.run(worker, str(tmp_path / "two.pt"))
    two = torch.load(tmp_path / "two.pt", weights_only=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = measure(tiny_llama(vocab_size=321))
    finally:
        torch.set_num_threads(before)
    assert set(one) == set(two)
    for key, value in one.items():
        equal = torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
        assert equal, key
