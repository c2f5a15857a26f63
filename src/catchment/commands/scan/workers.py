"""``--workers N``: the directions of a profile, spread over processes; what they measure goes into the shared store."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from catchment.commands.scan.job import ScanJob, admit, open_scan, unit_scales
from catchment.commands.scan.settings import ScanSettings
from catchment.errors import ModelError
from catchment.landscape import NotStoredError
from catchment.measuring import Progress
from catchment.runs import LocalExecutor

SHARE = 0.6
"""Of the time left that workers may take; the search goes on from what they measured."""


def prefetch(job: ScanJob) -> None:
    """Measure units ``w, w + N, ...`` of every scale of a profile in worker w, until done or out of time.

    Raises:
        ModelError: A worker failed.
    """
    s, seconds = job.settings, job.clock.left * SHARE
    if seconds <= 0:
        return
    alone = dataclasses.replace(s, out=None, workers=1, batch_tokens=job.batch_tokens)
    own = dict(job.kept.own)
    calls = [(_worker, (alone, job.side.tokenizer, w, s.workers, seconds, own)) for w in range(s.workers)]
    job.progress.status(f"directions on {s.workers} processes")
    for outcome in LocalExecutor(s.workers).run(calls):
        if not outcome.ok:
            raise ModelError(f"worker {outcome.index} failed: {outcome.error}")


def _worker(
    settings: ScanSettings, tokenizer: Any, number: int, workers: int, seconds: float, own: dict[str, int]
) -> int:
    """One process: its share of the units of each scale, on the items that ``own`` counts. Returns how many units it
    measured."""
    deadline = time.monotonic() + seconds
    if torch.cuda.is_available() and settings.device is None:
        settings = dataclasses.replace(settings, device=f"cuda:{number % torch.cuda.device_count()}")
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    job = open_scan(settings, Progress(), tokenizer)
    job.kept.own = dict(own)
    job.clock.until = seconds
    admit(job)
    done = 0
    with job.evaluator() as evaluator:
        field = job.field(evaluator)
        try:
            for unit in range(number, settings.directions, workers):
                for scale in unit_scales(field.design):
                    if time.monotonic() >= deadline:
                        return done
                    due = [t for t in job.admitted if unit < field.design.units(evaluator.grounds[t])]
                    if due:
                        field.unit(due, scale, unit)
                        done += 1
        except NotStoredError:
            pass
    return done
