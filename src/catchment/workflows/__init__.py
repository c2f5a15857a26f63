"""One function per verb: the Python API that the command line and notebooks call."""

from catchment.workflows.compare import broken_bounds, compare, plan_only, run_comparison
from catchment.workflows.distributed import first as first_process
from catchment.workflows.plan import Plan
from catchment.workflows.progress import Progress
from catchment.workflows.scan import run_scan, scan, scan_plan
from catchment.workflows.tune import broken_fence, run_tune, tune, tune_plan

__all__ = [
    "Plan",
    "Progress",
    "broken_bounds",
    "broken_fence",
    "compare",
    "first_process",
    "plan_only",
    "run_comparison",
    "run_scan",
    "run_tune",
    "scan",
    "scan_plan",
    "tune",
    "tune_plan",
]
