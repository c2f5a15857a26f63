"""SIFT beside random entries, LoRA, SHiRA and full fine-tuning: gain, forgetting, memory, time and size.

Gain and forgetting are cells of the grid; here are the data that it reads, and what a step of each method costs. The
encoder is in ``encoder.py``, flatness in ``flat.py``.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import data
import training

from catchment.commands.study.calls import Call
from catchment.models import load

FOLDER = Path(__file__).resolve().parents[1] / ".cache/sift"


def make_ready() -> str:
    """Write the rows and tasks that the grid reads."""
    reason = data.absent() or ("" if data.STORIES.is_dir() else "stories15M is not here")
    if not reason:
        data.write_all(FOLDER)
    return reason


def memory(call: Call, method: str) -> dict[str, Any]:
    """Most bytes at once beyond the loaded stories15M, over three steps on sums."""
    loaded = load(str(data.STORIES), dtype="float32")
    rows = data.stream(data.encoded(data.sums()[0], loaded.tokenizer), 0, 1500)
    chosen = training.methods()[method]
    if method == "full":
        chosen = dataclasses.replace(chosen, keep_base=False)
    size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    most = training.peak(loaded.model, chosen, rows, data.LeftPadded(loaded.tokenizer), data.BATCH)
    return {"n": 3, "peak": most, "model": size}


def speed(call: Call, rounds: int) -> dict[str, Any]:
    """CPU seconds of a step of each method on one batch, interleaved, and their medians."""
    loaded = load(str(data.STORIES), dtype="float32")
    rows = data.encoded(data.sst2()[0], loaded.tokenizer)[: 2 * data.BATCH]
    seconds = training.speed(loaded.model, training.methods(), data.LeftPadded(loaded.tokenizer)(rows), rounds)
    return {"n": rounds, "speed": seconds, **{name: statistics.median(found) for name, found in seconds.items()}}
