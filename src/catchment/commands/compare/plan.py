"""What a comparison will measure, before anything is."""

from __future__ import annotations

import dataclasses

from catchment.commands.compare import rounds
from catchment.commands.compare.allocation import Plan
from catchment.commands.compare.job import open_job
from catchment.commands.compare.settings import CompareSettings
from catchment.measuring import Progress


def plan(settings: CompareSettings, progress: Progress) -> Plan:
    """The plan of a comparison; with a budget at this machine's speed, without its pilot. Loads the models."""
    job = open_job(dataclasses.replace(settings, out=None), progress, None)
    rounds.estimate(job)
    return job.plan
