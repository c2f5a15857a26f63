"""What a model can do: tasks, prompts, scorers, validity gates, and the one path by which everything is measured.

The built-in tasks are in :mod:`catchment.capabilities.packs`, which is imported when it is first asked for.
"""

from __future__ import annotations

from typing import Any

from catchment.capabilities import classifiers, gates
from catchment.capabilities.agreement import agreement, agreement_rows
from catchment.capabilities.delimited import local_options, parse_table
from catchment.capabilities.duplicates import Overlap, overlap
from catchment.capabilities.engine import Engine, context_length
from catchment.capabilities.evaluate import evaluate, make_engine
from catchment.capabilities.jsonl import DoubleKeyError, distinct_keys
from catchment.capabilities.order import sample, seeded_halves, seeded_order
from catchment.capabilities.prepared import (
    AllTooLongError,
    Prepared,
    Work,
    cost_tokens,
    format_of,
    prepare,
    workload,
)
from catchment.capabilities.prompts import DATE, Encoded, PromptOptions, apply_template, date_note, expected_answer
from catchment.capabilities.rows import NON_FINITE, non_finite_note, run, settle_path
from catchment.capabilities.scores import OnRows, Scores
from catchment.capabilities.sources import SOURCES, Described, describe, describe_yaml, resolve_tasks
from catchment.capabilities.speed import Pace, Speed, measure_pace, measure_speed
from catchment.capabilities.tables import task_from_dataset
from catchment.capabilities.tallies import Tally, tally
from catchment.capabilities.tasks import (
    ASK,
    CHOICE_SCORERS,
    CONTINUE,
    GENERATED_SCORERS,
    JUDGED_SCORERS,
    SCORERS,
    Format,
    Item,
    Task,
)
from catchment.capabilities.variants import check_scorer, variant
from catchment.models import without_trace

__all__ = [
    "ASK",
    "CHOICE_SCORERS",
    "CONTINUE",
    "DATE",
    "GENERATED_SCORERS",
    "JUDGED_SCORERS",
    "NON_FINITE",
    "SCORERS",
    "SOURCES",
    "AllTooLongError",
    "Described",
    "DoubleKeyError",
    "Encoded",
    "Engine",
    "Format",
    "Item",
    "OnRows",
    "Overlap",
    "Pace",
    "Prepared",
    "PromptOptions",
    "Scores",
    "Speed",
    "Tally",
    "Task",
    "Work",
    "agreement",
    "agreement_rows",
    "apply_template",
    "check_scorer",
    "classifiers",
    "context_length",
    "cost_tokens",
    "date_note",
    "describe",
    "describe_yaml",
    "distinct_keys",
    "evaluate",
    "expected_answer",
    "format_of",
    "gates",
    "local_options",
    "make_engine",
    "measure_pace",
    "measure_speed",
    "non_finite_note",
    "overlap",
    "packs",
    "parse_table",
    "prepare",
    "resolve_tasks",
    "run",
    "sample",
    "seeded_halves",
    "seeded_order",
    "settle_path",
    "tally",
    "task_from_dataset",
    "variant",
    "without_trace",
    "workload",
]


def __getattr__(name: str) -> Any:
    if name == "packs":
        from importlib import import_module

        return import_module("catchment.capabilities.packs")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
