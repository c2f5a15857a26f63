"""How fast models run here: tokens per second, remembered beside the rows, and estimated where nothing was measured."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from catchment.errors import StoreError
from catchment.measuring import Progress
from catchment.records import ModelCard
from catchment.runs import Store, make_folder, write_atomic

SHARE = 0.35
"""Of the speed of a plain matrix product that a model reaches; used where nothing was measured."""
BACKWARD = 3.0
"""What a token of training costs, against one that is read."""


@dataclass
class Meter(Progress):
    """Counts tokens on their way to who watches."""

    inner: Progress
    tokens: float = 0.0

    def status(self, text: str) -> None:
        self.inner.status(text)

    def advance(self, tokens: float) -> None:
        self.tokens += tokens
        self.inner.advance(tokens)


@dataclass(frozen=True)
class Pace:
    """Seconds per token of a model on this kind of device; ``measured``: in a study before, or else estimated."""

    seconds_per_token: float
    measured: bool


def learn(store: Store, card: ModelCard, tokens: float, seconds: float) -> None:
    """Remember what was measured of a model; the last of several workers counts."""
    if tokens > 0 and seconds > 0:
        with suppress(StoreError):  # nothing but the price of a plan depends on it
            make_folder(store.root / "paces")
            write_atomic(_path(store, card), json.dumps({"tokens": tokens, "seconds": seconds}))


def pace_of(store: Store, card: ModelCard | None, parameters: float) -> Pace:
    """The pace of a model: as it was measured, or 2 x parameters operations per token at the speed of this machine."""
    if card is not None:
        try:
            content = json.loads(_path(store, card).read_text(encoding="utf-8"))
            return Pace(float(content["seconds"]) / float(content["tokens"]), True)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            pass
    return Pace(2 * parameters / (SHARE * operations_per_second()), False)


@lru_cache
def operations_per_second() -> float:
    """Floating-point operations per second of a product of two matrices, on the device that models go to by default."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 768
    a = torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        _ = (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _path(store: Store, card: ModelCard) -> Path:
    """By size and architecture: tuned models are as fast as their base."""
    kind = f"{card.architecture}-{card.parameters}-{card.dtype}-{card.device.partition(':')[0]}"
    return store.root / "paces" / f"{kind}.json"
