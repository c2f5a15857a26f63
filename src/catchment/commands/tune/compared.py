"""The comparison at the end of a tune: with its base, and of the protected tune with the plain one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catchment import models
from catchment.capabilities import Task
from catchment.commands.compare.record import Comparison
from catchment.commands.compare.run import run as compare
from catchment.commands.compare.settings import CompareSettings
from catchment.commands.tune.opened import Opened
from catchment.options import MeasureOptions, ModelOptions
from catchment.records import Against, TuneRun


@dataclass(frozen=True)
class Compared:
    """What the trainings came to.

    Attributes:
        runs: With the verdicts of their tasks; the delivered one first.
        comparison: Of the delivered one with the base; ``None`` where there was nothing to compare on.
        against: The protected one against the plain one.
    """

    runs: tuple[TuneRun, ...]
    comparison: Comparison | None = None
    against: tuple[Against, ...] = ()


def compared(opened: Opened, runs: Sequence[TuneRun]) -> Compared:
    """Compare each with the base, and two with each other. A classifier is judged on its held-out rows alone."""
    tasks = [] if opened.classifies else _judged(opened)
    if not tasks:
        return Compared(tuple(runs))
    comparisons = [_with_base(opened, run, tasks) for run in runs]
    told = tuple(dataclasses.replace(run, tasks=c.tasks) for run, c in zip(runs, comparisons, strict=True))
    return Compared(told, comparisons[0], _against(opened, told, tasks) if len(told) == 2 else ())


def _judged(opened: Opened) -> list[Task]:
    """What is compared: the held-out rows, protected tasks on their judged items, and the others."""
    protected = {item.judged.name: item.judged for item in opened.protected}
    others = [task for task in opened.tasks if task.name not in protected]
    return [*([opened.own] if opened.own else []), *protected.values(), *others]


def _with_base(opened: Opened, run: TuneRun, tasks: list[Task]) -> Comparison:
    opened.progress.status(f"what the {run.name} tune cost")
    settings = _comparing(
        opened, opened.loaded, _tuned(opened, run), tasks, out=opened.out / f"compare-{run.name}", margin=opened.margin,
        dtype="auto", revision=None, tuned_revision=_revision(opened, run),
    )  # fmt: skip
    return compare(settings, opened.progress, opened.tokenizer, opened.asked)


def _comparing(opened: Opened, base: Any, tuned: Any, tasks: list[Task], **own: Any) -> CompareSettings:
    """Settings of a comparison of what was trained: the tune's own, but for what is given here."""
    s = opened.settings
    shared = s.shared(MeasureOptions, ModelOptions) | {"tasks": tasks, "store": s.store_folder}
    return CompareSettings(base, tuned, **{**shared, "text": "none", "formats": 1, "room": False, **own})


def _against(opened: Opened, runs: Sequence[TuneRun], tasks: list[Task]) -> tuple[Against, ...]:
    """The protected tune against the plain one, on rows that both comparisons have stored."""
    s = opened.settings
    settings = _comparing(
        opened, _tuned(opened, runs[1]), _tuned(opened, runs[0]), tasks, margin=s.max_drop,
        dtype=opened.loaded.card.dtype if isinstance(s.base, (str, Path)) else "auto",
        revision=_revision(opened, runs[1]), tuned_revision=_revision(opened, runs[0]),
    )  # fmt: skip
    comparison = compare(settings, opened.progress, opened.tokenizer, opened.asked)
    return tuple(Against(r.task, r.n, r.base, r.tuned, r.difference) for r in comparison.tasks)


def _tuned(opened: Opened, run: TuneRun) -> Any:
    """A spelling where the base has one; a base in memory is copied and moved."""
    if isinstance(opened.settings.base, (str, Path)):
        return _artefact(opened, run)
    whole = (Path(run.path) / "config.json").is_file()
    if whole:
        card = opened.loaded.card  # asked on the same device and path as the base was
        return models.load(
            run.path, tokenizer=opened.loaded.tokenizer, device=card.device, attn_implementation=card.attention
        )
    model = copy.deepcopy(opened.loaded.model)
    if (Path(run.path) / "adapter_config.json").is_file():
        from peft import PeftModel

        with models.quiet_peft():
            adapted = PeftModel.from_pretrained(model, run.path).eval()
        return models.load(adapted, tokenizer=opened.loaded.tokenizer)
    models.Increment.from_pretrained(run.path).apply(model)
    return models.load(model, tokenizer=opened.loaded.tokenizer)


def _artefact(opened: Opened, run: TuneRun) -> str:
    """How the tuned model is spelled: a whole model alone, an increment or adapter after its base."""
    whole = (Path(run.path) / "config.json").is_file()
    return run.path if whole else f"{opened.settings.base}+{run.path}"


def _revision(opened: Opened, run: TuneRun) -> str | None:
    """The base's revision, where the tuned model is spelled with its base."""
    return None if (Path(run.path) / "config.json").is_file() else opened.settings.revision
