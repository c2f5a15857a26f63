"""The room before training: how far the protected tasks let the weights go along the first gradient."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from catchment.commands.tune.opened import Opened
from catchment.landscape import Batch, Subspace
from catchment.methods import LoRA
from catchment.records import PilotSteps
from catchment.runs import processes, read_json, write_atomic
from catchment.statistics import ladder
from catchment.training import Collator, LineSearch, first_direction, pilot_room

RUNGS = 8
"""Scales at which the room before training is measured."""


def measure_rooms(opened: Opened) -> tuple[PilotSteps, ...]:
    """How far the protected tasks let the weights go along the first gradient, before anything is trained: in entries
    chosen as SIFT chooses them, but by the first rows of the data where the training takes a drawn batch; or in the
    weights that a dense method trains. An adapter's first steps are no direction of the weights, so for LoRA there are
    none."""
    if not opened.protected or isinstance(opened.method, LoRA):
        return ()
    path = opened.out / "rooms.json"
    if path.is_file():
        return tuple(PilotSteps(**entry) for entry in read_json(path))
    opened.progress.status("the room before training")
    model = opened.loaded.model
    batches = _first_batches(opened)
    tuning = opened.method.attach(model, seed=opened.settings.seed)
    support: dict[str, Any] | None = None
    try:
        if hasattr(tuning, "support"):
            for _ in range(opened.method.selection_batches):  # type: ignore[attr-defined]
                _loss(model, batches[0]).backward()
            support = tuning.support()
        elif getattr(opened.method, "target_modules", None):
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            support = {name: torch.arange(p.numel(), device=p.device) for name, p in trained.items()}
    finally:
        tuning.remove()
    way = first_direction(model, batches, support)
    search = LineSearch(opened.settings.max_drop, _scales(opened), directions=1, seed=opened.settings.seed)
    rooms = pilot_room(
        model, opened.loaded.tokenizer, [item.pilot for item in opened.protected], way, search,
        prompt_options=opened.asked, batch_tokens=opened.batch_tokens, files=opened.loaded.files,
    )  # fmt: skip
    steps = tuple(
        PilotSteps(
            task=name, items=room.items, scale=room.way.estimate, steps=room.steps(opened.rate)[0],
            random_scale=None if room.random is None else room.random.estimate, reach=room.way.reach,
            warning=room.warning(opened.rate, opened.steps), below=room.way.below,
            random_below=None if room.random is None else room.random.below,
        )
        for name, room in rooms.items()
    )  # fmt: skip
    if processes.is_main():
        write_atomic(path, json.dumps([dataclasses.asdict(room) for room in steps]))
    return steps


def _scales(opened: Opened) -> tuple[float, ...]:
    """From one step of the learning rate to as many as the tune has, and no further than random moves are tolerated."""
    most = min(opened.rate * opened.steps, 2 * Subspace.all(opened.loaded.model).ruler(opened.loaded.model).rms)
    return ladder(opened.rate, max(most, 2 * opened.rate), RUNGS)


def _loss(model: Any, batch: Batch) -> Any:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


def _first_batches(opened: Opened, count: int = 2) -> list[Batch]:
    collate, size = Collator(opened.loaded.tokenizer), opened.settings.batch_size
    device = next(opened.loaded.model.parameters()).device
    batches = []
    for at in range(0, min(count * size, len(opened.encoded.examples)), size):
        part = {k: v.to(device) for k, v in collate(opened.encoded.examples[at : at + size]).items()}
        labels = part["labels"]
        rows = tuple(f"row {at + i}" for i in range(len(labels)))
        batches.append(Batch(part["input_ids"], part["attention_mask"], labels, int((labels != -100).sum()), rows))
    return batches
