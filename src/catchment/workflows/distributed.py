"""``torchrun ... -m catchment scan``: the model cut over processes by FSDP2, all of them doing the same.

Every process runs the same scan on the same items, and only the first one writes; what depends on time is decided by
the first one for all.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from catchment import models


def processes() -> int:
    """How many processes scan together: 1 without ``torchrun``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def join() -> None:
    """Meet the other processes, once: NCCL on GPUs, gloo on CPUs."""
    if processes() == 1 or torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(torch.distributed.destroy_process_group)


def agreed(value: Any) -> Any:
    """The first process's value, on all of them. Every process must ask, in the same order."""
    if processes() == 1 or not torch.distributed.is_initialized():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def shard(model: Any) -> None:
    """Cut every block, and then the rest, over the processes (``fully_shard``); nothing on one process, or when the
    model is cut already."""
    if processes() == 1 or any(hasattr(p, "to_local") for p in model.parameters()):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes(),))
    family = models.family_of(model)
    for name, module in model.named_modules():
        if name and models.is_block(name, family):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def own_store() -> Path:
    """A store that lasts as long as this process: kept rows that one process sees and another does not would make them
    part ways."""
    folder = Path(tempfile.mkdtemp(prefix="catchment-rank-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
