"""Processes that ``torchrun`` started together. accelerate's ``PartialState`` says which of them this one is.

Without ``torchrun`` nothing is imported and no state is made: a ``PartialState`` is shared by the whole process and
would decide the device of an ``Accelerator`` that the user makes later.
"""

from __future__ import annotations

import atexit
import os
from typing import Any, TypeVar

T = TypeVar("T")


def join(device: str | None = None) -> None:
    """Meet the other processes, once; nothing without ``torchrun``. Every process must call it.

    Args:
        device: Where the model will be: ``cpu`` and ``mps`` meet by gloo, other devices by what accelerate chooses for
            them (NCCL for CUDA); ``None`` takes CUDA where it is there.
    """
    if not _launched():
        return
    import torch
    from accelerate import PartialState

    new = not torch.distributed.is_initialized()
    kind = str(device).partition(":")[0] if device else "cuda" if torch.cuda.is_available() else "cpu"
    state = PartialState(cpu=kind in ("cpu", "mps"))
    if new:
        atexit.register(state.destroy_process_group)


def count() -> int:
    """How many processes work together: 1 before :func:`join`, and without ``torchrun``."""
    state = _state()
    return 1 if state is None else state.num_processes


def is_main() -> bool:
    """Whether this process is the one that writes."""
    state = _state()
    return state is None or state.is_main_process


def agreed(value: T) -> T:
    """The main process's value, on all processes. Every process must ask, in the same order."""
    if _state() is None:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def anywhere(flag: bool) -> bool:
    """Whether any process says so, on all of them. Every process must ask, in the same order."""
    state = _state()
    if state is None:
        return flag
    import torch
    from accelerate.utils import reduce

    return bool(reduce(torch.tensor(float(flag), device=state.device), "sum").item() > 0)


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _state() -> Any:
    """accelerate's state once the processes have met, ``None`` where this process is alone."""
    if not _launched():
        return None
    import torch
    from accelerate import PartialState

    return PartialState() if torch.distributed.is_initialized() else None
