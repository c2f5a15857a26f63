"""Weights that are cut over processes (FSDP2): the cut, and which piece of a tensor is here."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from catchment import models
from catchment.errors import ModelError
from catchment.runs import processes


def shard(model: Any) -> None:
    """Cut every block, and then the rest, over the processes (``fully_shard``); nothing on one process, or when the
    model is cut already."""
    if processes.count() == 1 or any(is_sharded(p) for p in model.parameters()):
        return
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(PartialState().device.type, (processes.count(),))
    family = models.family_of(model)
    for name, module in model.named_modules():
        if name and models.is_block(name, family):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds, detached; the tensor itself where it is not cut."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """The whole tensor. Gathers over processes where it is cut: every process must ask, in the same order."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()


def flat_start(name: str, tensor: Any) -> int:
    """Where the local part begins in the flattened whole.

    Raises:
        ModelError: The tensor is cut along anything but its rows (as FSDP2 cuts).
    """
    if not is_sharded(tensor):
        return 0
    start_row, rows = 0, tensor.shape[0]
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            continue
        if not placement.is_shard(0) or start_row or rows != tensor.shape[0]:
            raise ModelError(f"weight {name!r} is cut as {tensor.placements}; expected whole rows, as FSDP2 cuts.")
        each = -(-rows // tensor.device_mesh.size(dim))
        start_row = min(tensor.device_mesh.get_local_rank(dim) * each, rows)
        rows = min(each, rows - start_row)
    return start_row * math.prod(tensor.shape[1:])
