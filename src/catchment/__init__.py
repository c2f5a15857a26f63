"""What did my fine-tune lose? Paired, simultaneous statistics on what two models can do.

    import catchment
    comparison = catchment.compare("path/to/base", "path/to/tuned", budget="4m")

Names are imported when they are first used, so that ``import catchment`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from catchment.capabilities import Format, Item, Scores, Task, agreement, evaluate
    from catchment.landscape import Subspace, displaced, gaussian, towards
    from catchment.models import Increment, LoadedModel, load, make_increment
    from catchment.records import Comparison, Scan
    from catchment.training import CapabilityCallback
    from catchment.workflows.compare import compare
    from catchment.workflows.scan import scan

__version__ = "0.1.0"

_WHERE = {
    "compare": "workflows",
    "scan": "workflows",
    "Subspace": "landscape",
    "displaced": "landscape",
    "gaussian": "landscape",
    "towards": "landscape",
    "evaluate": "capabilities",
    "agreement": "capabilities",
    "Task": "capabilities",
    "Item": "capabilities",
    "Format": "capabilities",
    "Scores": "capabilities",
    "load": "models",
    "LoadedModel": "models",
    "Increment": "models",
    "make_increment": "models",
    "CapabilityCallback": "training",
    "Comparison": "records",
    "Scan": "records",
}

__all__ = [
    "CapabilityCallback",
    "Comparison",
    "Format",
    "Increment",
    "Item",
    "LoadedModel",
    "Scan",
    "Scores",
    "Subspace",
    "Task",
    "agreement",
    "compare",
    "displaced",
    "evaluate",
    "gaussian",
    "load",
    "make_increment",
    "scan",
    "towards",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"catchment.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'catchment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
