"""Looking at a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; training mode of every module and all random states restored outside.

    Not ``inference_mode``: buffers that a model renews while it runs (scaled rotary frequencies) would stay
    inference tensors, and training would fail on them afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    state = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
