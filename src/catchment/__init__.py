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
    from catchment.commands.compare.record import Comparison
    from catchment.commands.compare.run import compare
    from catchment.commands.scan.record import Scan
    from catchment.commands.scan.run import scan
    from catchment.commands.study.record import Study
    from catchment.commands.study.run import study
    from catchment.commands.tune.record import Tune
    from catchment.commands.tune.run import tune
    from catchment.landscape import Subspace, displaced, gaussian, towards
    from catchment.methods import SIFT, LoRA, MethodTrainer, Sift
    from catchment.models import (
        Increment,
        LoadedModel,
        add_increments,
        export_merged,
        export_peft,
        load,
        make_increment,
        overlap,
        swap,
    )
    from catchment.training import CapabilityCallback

__version__ = "0.1.0"

_WHERE = {
    "compare": "commands.compare.run",
    "scan": "commands.scan.run",
    "study": "commands.study.run",
    "tune": "commands.tune.run",
    "SIFT": "methods",
    "Sift": "methods",
    "LoRA": "methods",
    "MethodTrainer": "methods",
    "add_increments": "models",
    "overlap": "models",
    "swap": "models",
    "export_peft": "models",
    "export_merged": "models",
    "Study": "commands.study.record",
    "Tune": "commands.tune.record",
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
    "Comparison": "commands.compare.record",
    "Scan": "commands.scan.record",
}

__all__ = [
    "SIFT",
    "CapabilityCallback",
    "Comparison",
    "Format",
    "Increment",
    "Item",
    "LoRA",
    "LoadedModel",
    "MethodTrainer",
    "Scan",
    "Scores",
    "Sift",
    "Study",
    "Subspace",
    "Task",
    "Tune",
    "add_increments",
    "agreement",
    "compare",
    "displaced",
    "evaluate",
    "export_merged",
    "export_peft",
    "gaussian",
    "load",
    "make_increment",
    "overlap",
    "scan",
    "study",
    "swap",
    "towards",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"catchment.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'catchment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
