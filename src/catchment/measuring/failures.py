"""What one stage may not cost the others: errors that are kept to it, and memory that it is not begun without."""

from __future__ import annotations

import torch

from catchment import landscape
from catchment.errors import CatchmentError
from catchment.landscape import Mover

SHARE = 0.8
"""Of the free memory that a stage may need at most."""


def failure(error: Exception) -> str | None:
    """What a reader is told of an error that costs one stage and nothing else; ``None`` for any other one, which must
    not be swallowed. Kept to a stage are errors with a message for the user, memory that ran out (torch says so on a
    CPU with a bare RuntimeError), and numbers that are none."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, CatchmentError):
        return str(error)
    short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if short or (isinstance(error, RuntimeError) and ("out of memory" in first or "allocate memory" in first)):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return f"memory ran out: {first}"
    if isinstance(error, (ArithmeticError, ValueError, torch.linalg.LinAlgError)):
        return f"it came to no finite numbers: {first}"
    return None


def short_of(needed: float, mover: Mover, device: torch.device) -> str:
    """Why a stage that needs so many bytes is not begun; empty where it may be. Where clean weights are kept in low
    memory, no copy of them fits."""
    if mover.mode == "low" or needed > SHARE * landscape.free_memory(device):
        return f"it needs about {max(needed / SHARE / 1e9, 0.1):,.1f} GB of free memory"
    return ""
