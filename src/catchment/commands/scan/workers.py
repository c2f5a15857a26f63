"""``--workers N``: the directions of a profile, spread over processes; what they measure goes into the shared store."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from catchment.commands.scan.admission import Admitted, admit
from catchment.commands.scan.design import unit_scales
from catchment.commands.scan.opened import Opened, open_scan
from catchment.commands.scan.settings import ScanSettings
from catchment.errors import ModelError
from catchment.landscape import Field, NotStoredError
from catchment.measuring import Progress
from catchment.runs import executor

SHARE = 0.6
"""Of the time left that workers may take; the search goes on from what they measured."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What one of the processes does: units ``number``, ``number + workers``, ... of every scale, within so many
    seconds, on the items that ``own`` counts."""

    number: int
    workers: int
    seconds: float
    own: dict[str, int]


def prefetch(opened: Opened, admitted: Admitted) -> None:
    """Measure units ``w, w + N, ...`` of every scale of a profile in worker w, until done or out of time.

    Raises:
        ModelError: A worker failed.
    """
    s, seconds = opened.settings, opened.clock.left * SHARE
    if seconds <= 0:
        return
    alone = dataclasses.replace(
        s, out=None, store=s.store_folder, workers=1, executor="processes", batch_tokens=opened.batch_tokens
    )
    parts = [Part(number, s.workers, seconds, admitted.own) for number in range(s.workers)]
    opened.progress.status(f"directions on {s.workers} processes")
    spread = executor(s.executor, s.workers, gpus=s.device in (None, "cuda"))
    for outcome in spread.run([(_work, (alone, opened.subject.tokenizer, part)) for part in parts]):
        if not outcome.ok:
            raise ModelError(f"worker {outcome.index} failed: {outcome.error}")


def _work(settings: ScanSettings, tokenizer: Any, part: Part) -> int:
    """One process. Returns how many units it measured."""
    deadline = time.monotonic() + part.seconds
    opened = open_scan(settings, Progress(), tokenizer)
    with opened.clock.within(part.seconds - opened.clock.spent):
        admitted = admit(opened, part.own)
        return _units(opened, admitted, part, deadline)


def _units(opened: Opened, admitted: Admitted, part: Part, deadline: float) -> int:
    done = 0
    with opened.evaluator(admitted.grounds) as evaluator:
        field = Field(evaluator, admitted.design)
        try:
            for unit in range(part.number, opened.settings.directions, part.workers):
                for scale in unit_scales(field.design):
                    if time.monotonic() >= deadline:
                        return done
                    due = [g.name for g in admitted.grounds if unit < field.design.units(evaluator.grounds[g.name])]
                    if due:
                        field.unit(due, scale, unit)
                        done += 1
        except NotStoredError:
            pass
    return done
