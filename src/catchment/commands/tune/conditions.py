"""What decides the result of a tune, and how its record tells it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from catchment.capabilities import Task
from catchment.commands.tune.opened import Opened
from catchment.runs import claim_folder, processes


def claim(opened: Opened) -> None:
    """Make OUT the folder of this tune, when all else has been found right."""
    if opened.settings.out is not None and processes.is_main():
        claim_folder(opened.settings.out, fingerprint(opened), "tune")


def fingerprint(opened: Opened) -> dict[str, Any]:
    """What decides the result; other settings may change between a run and its resumption."""
    s = opened.settings
    names = (
        "method_args", "sparsity", "epochs", "max_steps", "batch_size", "accumulation", "max_length", "packing",
        "training_args", "held_out", "protect", "max_drop", "replay", "replay_weight", "pull", "fence_steps",
        "seed", "eval_steps", "on_drop",
    )  # fmt: skip
    judged = ("alpha",) if s.protect else ()
    watched = ("tasks", "eval_limit", "margin", "alpha") if s.eval_steps and s.on_drop == "stop" else ()
    card = opened.loaded.card
    return {
        "base": card.weights_hash,
        "dtype": card.dtype,
        "data": opened.train.fingerprint,
        "method": opened.method.name,
        "learning_rate": opened.rate,
        **opened.asked.conditions(opened.loaded.tokenizer),
        **{name: getattr(s, name) if not isinstance(getattr(s, name), tuple) else [str(v) if not isinstance(v, Task)
           else v.name for v in getattr(s, name)] for name in (*names, *judged, *watched)},
    }  # fmt: skip


def settings_told(opened: Opened) -> dict[str, Any]:
    """The settings of a record: the method's own, and those of the training."""
    method = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(opened.method).items()}  # type: ignore[call-overload]
    s = opened.settings
    training = {
        name: getattr(s, name)
        for name in (
            "epochs", "max_steps", "batch_size", "accumulation", "max_length", "packing", "seed", "held_out",
            "training_args", *(("replay", "replay_weight", "pull", "fence_steps") if opened.protected else ()),
            *(("eval_steps", "on_drop") if s.eval_steps else ()),
        )
    }  # fmt: skip
    return json.loads(json.dumps({**method, "learning_rate": opened.rate, **training}, default=str))
