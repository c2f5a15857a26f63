"""Which items of a protected task serve what, and whether it can be protected."""

from __future__ import annotations

import dataclasses

from catchment.capabilities import JUDGED_SCORERS, Task, evaluate, sample
from catchment.commands.tune.opened import Opened, Protected
from catchment.commands.tune.settings import TuneSettings
from catchment.errors import InputError
from catchment.statistics import admission
from catchment.training import split_items

GUARD, LEAST_GUARD, PILOT, REPLAYED = 128, 96, 32, 64
"""Items per protected task that the fence looks at, at most and at least, that the room before is measured on, and
whose answers are replayed, at most."""
LOOKS = 24
"""Evaluations of the guard items that a training takes, pulls included, as far as plans go."""


def split_by_use(task: Task, settings: TuneSettings) -> Protected:
    """The items of a task by what they serve, each part within its number."""
    split = split_items(task, settings.seed)
    parts = zip((split.pilot, *split), (PILOT, REPLAYED, GUARD, settings.limit), strict=True)
    cut = [part.with_items(sample(part.items, _fewer(limit, part), settings.seed)) for part, limit in parts]
    return Protected(*cut)


def _fewer(limit: int | None, task: Task) -> int | None:
    return None if limit is None or limit >= len(task.items) else limit


def affordable(opened: Opened) -> tuple[Protected, ...]:
    """Fewer guard items where looking at all of them would cost more than the training: a trained token counts for
    three, because its backward pass costs two forward passes."""
    if not opened.protected:
        return ()
    seed, each = opened.settings.seed, 0.0
    for item in opened.protected:
        few = sample(item.guard.items, min(16, len(item.guard.items)), seed)
        each += opened.prepared(item.guard.with_items(few)).tokens / len(few)
    wanted = int(3 * opened.tokens / (LOOKS * max(each, 1.0)))
    n = min(max(LEAST_GUARD, min(GUARD, wanted)), *(len(p.guard.items) for p in opened.protected))
    return tuple(
        dataclasses.replace(p, guard=p.guard.with_items(sample(p.guard.items, n, seed))) for p in opened.protected
    )


def check_admission(opened: Opened) -> None:
    """Refuse to protect what the base cannot do: there a drop cannot be seen."""
    for item in opened.protected:
        opened.progress.status(f"what the base can do · {item.guard.name}")
        scores = evaluate(
            opened.loaded.model, item.guard, tokenizer=opened.loaded.tokenizer, prompt_options=opened.asked,
            batch_tokens=opened.batch_tokens,
        )  # fmt: skip
        admitted, reason = admission(
            [row.score for row in scores.rows], scores.chance, generated=item.guard.scorer in JUDGED_SCORERS
        )
        if not admitted:
            raise InputError(f"--protect {item.guard.name}: {reason} Protect tasks that the base can do.")
