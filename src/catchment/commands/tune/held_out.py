"""The rows that were not trained on, before and after: the gain of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catchment.capabilities import evaluate
from catchment.commands.tune.opened import Opened
from catchment.records import Companion, Interval, Row
from catchment.statistics import paired_interval, unbounded_paired_interval
from catchment.training import completion_losses


@dataclass(frozen=True)
class HeldOut:
    """Rows that were not trained on: loss per trained token of each, and for a classifier its answers."""

    losses: list[float]
    rows: dict[str, Row]


def measure_held_out(opened: Opened, model: Any) -> HeldOut:
    """Measure the held-out rows on the model as it stands."""
    if opened.held_encoded is None:
        return HeldOut([], {})
    opened.progress.status("held-out rows")
    if not opened.classifies:
        return HeldOut(completion_losses(model, opened.held_encoded), {})
    if opened.own is None:
        return HeldOut([], {})
    scores = evaluate(model, opened.own, tokenizer=opened.loaded.tokenizer)
    return HeldOut([], {row.item: row for row in scores.rows})


def loss_change(before: HeldOut, after: HeldOut, alpha: float) -> Companion | None:
    """Nats per trained token, before and after, on the same rows; ``None`` with fewer than two."""
    if len(before.losses) < 2:
        return None
    change: Interval = unbounded_paired_interval(before.losses, after.losses, 1 - alpha)
    return Companion("nats per token on held-out rows", mean(before.losses), mean(after.losses), change)


def accuracy_change(before: HeldOut, after: HeldOut, alpha: float) -> Companion | None:
    """Of a classifier, whose base has a new head and is at chance: before and after, on the same rows."""
    shared = [item for item in before.rows if item in after.rows]
    if len(shared) < 2:
        return None
    one, two = ([rows[item].score for item in shared] for rows in (before.rows, after.rows))
    change = paired_interval(one, two, level=1 - alpha)
    return Companion("accuracy on held-out rows", mean(one), mean(two), change)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
