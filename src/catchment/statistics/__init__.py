"""Pure functions of item rows: intervals, verdicts, and how many items a verdict takes. Nothing here knows models."""

from catchment.statistics.binomial import clopper_pearson
from catchment.statistics.decisions import Decision, decide
from catchment.statistics.intervals import mean_interval, paired_interval, unbounded_paired_interval
from catchment.statistics.sizes import expected_half_width, required_n

__all__ = [
    "Decision",
    "clopper_pearson",
    "decide",
    "expected_half_width",
    "mean_interval",
    "paired_interval",
    "required_n",
    "unbounded_paired_interval",
]
