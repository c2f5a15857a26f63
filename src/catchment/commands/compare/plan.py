"""What a comparison will measure, before anything is."""

from __future__ import annotations

import dataclasses

from catchment.commands.compare.allocation import Plan
from catchment.commands.compare.pair import open_pair
from catchment.commands.compare.pilot import estimate
from catchment.commands.compare.settings import CompareSettings
from catchment.measuring import Progress


def plan(settings: CompareSettings, progress: Progress) -> Plan:
    """The plan of a comparison; with a budget at this machine's speed, without its pilot. Loads the models."""
    return estimate(open_pair(dataclasses.replace(settings, out=None), progress))
