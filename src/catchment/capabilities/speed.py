"""How fast this machine runs this model, and what to do when a batch does not fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from catchment.capabilities.engine import Engine, context_length, last_logits, supports_packing
from catchment.capabilities.generation import greedy_tokens
from catchment.errors import ModelError
from catchment.models import calls_of, without_trace


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
                seconds = _timed(engine, ids)
                if size == sizes[0] and seconds < patience / 4:  # the first pass of all may be slower than others
                    seconds = _timed(engine, ids)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            speed = rows * width / max(seconds, 1e-9)
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


def _timed(engine: Engine, ids: torch.Tensor) -> float:
    """Seconds of one forward pass."""
    _sync(engine.device)
    begin = time.perf_counter()
    last_logits(engine, 1, input_ids=ids, attention_mask=torch.ones_like(ids))
    _sync(engine.device)
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Pace:
    """How long one model takes on this machine.

    Attributes:
        read: Seconds per token that is read, many at a time.
        step: Seconds per step of decoding, however many answers are decoded together.
        token: Seconds beside, per token that is decoded.
    """

    read: float
    step: float = 0.0
    token: float = 0.0

    def seconds(self, read: float, generated: float, items: int, rows: int) -> float:
        """For ``items`` that each read and generate so many tokens, at most ``rows`` in a batch."""
        batches = math.ceil(items / rows)
        return items * read * self.read + generated * (batches * self.step + items * self.token)


WIDTH = 16
"""Tokens of a row when a model is timed."""
ROWS = (1, 4, 16, 64)


def measure_pace(engine: Engine, patience: float = 2.0) -> Pace:
    """Time reading and decoding on a few tokens.

    Rows grow by 4 while passes are expected to end within ``patience`` seconds; of a slow model one pass of each kind
    is timed, whatever it takes. How the model is called is tried before the first of them.
    """
    calls_of(engine.model)
    started = time.perf_counter()

    def left(share: float) -> float:
        return share * patience - (time.perf_counter() - started)

    with without_trace(engine.model):
        read = _read_pace(engine, lambda: left(0.5))
        step, token = _step_pace(engine, lambda: left(1.0))
    return Pace(read, step, token)


def _tokens(engine: Engine, rows: int) -> torch.Tensor:
    width = min(WIDTH, max((context_length(engine.model) or WIDTH) // 2, 1))
    vocabulary = engine.model.get_input_embeddings().weight.shape[0]
    return torch.randint(0, vocabulary, (rows, width), generator=torch.Generator().manual_seed(0)).to(engine.device)


def _read_pace(engine: Engine, left: Callable[[], float]) -> float:
    """Seconds per token read, at the best number of rows that the time allows."""
    best = float("inf")
    for rows in ROWS:
        ids = _tokens(engine, rows)
        try:
            seconds = _timed(engine, ids)
            if rows == ROWS[0] and seconds < left() / 8:  # the first pass of all may be slower than others
                seconds = _timed(engine, ids)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        grown = seconds / ids.numel() < best / 1.08
        best = min(best, seconds / ids.numel())
        if not grown or 4 * seconds > left():
            break
    return best


def _step_pace(engine: Engine, left: Callable[[], float]) -> tuple[float, float]:
    """Seconds per step of decoding and per token of it, from steps with few and with many rows; where only few were
    timed, all of it is taken to be by token. A model that generates one answer at a time has tokens only."""
    if not engine.packed or supports_packing(engine.model, 2 * WIDTH) is not None:
        return 0.0, _plain_step(engine)
    timed: list[tuple[int, float]] = []
    for rows in ROWS:
        try:
            began = time.perf_counter()
            seconds = _step(engine, rows)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds is None:
            return 0.0, _plain_step(engine)
        timed.append((rows, seconds))
        if 4 * (time.perf_counter() - began) > left():
            break
    (few, low), (many, high) = timed[0], timed[-1]
    if few == many:
        return 0.0, low / few
    token = max(high - low, 0.0) / (many - few)
    return max(low - few * token, 0.0), token


def _step(engine: Engine, rows: int) -> float | None:
    """Seconds of one step of decoding so many rows; ``None`` where the model gives no cache."""
    ids = _tokens(engine, rows)[:, :4]
    mask = torch.ones_like(ids)
    logits, cache = last_logits(engine, 1, input_ids=ids, attention_mask=mask, use_cache=True)
    if cache is None:
        return None
    following = logits[:, -1].argmax(-1)[:, None]
    _sync(engine.device)
    begin = time.perf_counter()
    last_logits(engine, 1, input_ids=following, cache=cache, use_cache=True)
    _sync(engine.device)
    return time.perf_counter() - begin


def _plain_step(engine: Engine) -> float:
    """Of a model that generates one answer at a time: half of what two tokens take."""
    begin = time.perf_counter()
    greedy_tokens(engine, _tokens(engine, 1)[0, :4].tolist(), 2)
    return (time.perf_counter() - begin) / 2


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
