"""How fast this machine runs this model, and what to do when a batch does not fit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from catchment.capabilities.engine import Engine, context_length, last_logits
from catchment.errors import ModelError
from catchment.models import without_trace


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Speed:
    """Forward speed as measured: tokens per second at the chosen tokens per batch."""

    tokens_per_second: float
    batch_tokens: int


def measure_speed(engine: Engine, *, width: int = 64, patience: float = 4.0) -> Speed:
    """Find the tokens per batch beyond which forward passes get no faster, and the speed there.

    Batches grow by 4 until the speed grows by less than 8%, memory runs out or ``patience`` seconds are spent.
    """
    limit = context_length(engine.model) or width
    width = min(width, max(limit // 2, 8))
    sizes = (128, 512, 2048) if engine.device.type == "cpu" else (2048, 8192, 32768, 131072)
    vocabulary = engine.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    best = Speed(1e-9, sizes[0])
    started = time.perf_counter()
    with without_trace(engine.model):
        for size in sizes:
            rows = max(1, size // width)
            ids = torch.randint(0, vocabulary, (rows, width), generator=generator).to(engine.device)
            try:
                if size == sizes[0]:
                    last_logits(engine, 1, input_ids=ids)
                _sync(engine.device)
                begin = time.perf_counter()
                last_logits(engine, 1, input_ids=ids)
                _sync(engine.device)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            speed = rows * width / (time.perf_counter() - begin)
            if speed > best.tokens_per_second:
                grown = speed > 1.08 * best.tokens_per_second
                best = Speed(speed, size)
                if not grown:
                    break
            else:
                break
            if time.perf_counter() - started > patience / 4:
                break
    return best


def halving_on_oom(run: Callable[[list[int]], list[Any]], batch: list[int], notes: list[str]) -> list[Any]:
    """Run a batch; where a GPU runs out of memory, run its halves and say so."""
    try:
        return run(batch)
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise ModelError(
                "one item alone does not fit into the GPU's memory; use a smaller dtype, device_map='auto' or the CPU."
            ) from error
        note = f"a batch of {len(batch)} items ran out of GPU memory and was halved"
        if note not in notes:
            notes.append(note)
        half = len(batch) // 2
        return halving_on_oom(run, batch[:half], notes) + halving_on_oom(run, batch[half:], notes)
