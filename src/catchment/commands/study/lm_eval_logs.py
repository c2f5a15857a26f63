"""lm-eval's per-sample logs as a table of scores with items: a report on other people's results, without a model.

``lm_eval --log_samples --output_path OUT`` writes ``OUT/<model>/samples_<task>_<date>.jsonl`` beside
``results_<date>.json``. Folders may be nested; every folder with samples is one model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catchment.commands.study.lm_eval_gates import check_prompts, flags_of
from catchment.commands.study.lm_eval_samples import Key, Log, read_log
from catchment.commands.study.record import BASE, Cell, CellResult, Checkpoint, TuningCard
from catchment.commands.study.scores import Scored, ScoreTable
from catchment.errors import InputError, did_you_mean

_FILE = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")


@dataclass
class _Model:
    """One model: its folder, what lm-eval calls it, the newest log of each task, and the shots of each."""

    label: str
    names: set[str]
    files: dict[str, Path] = field(default_factory=dict)
    shots: dict[str, int] = field(default_factory=dict)
    older: int = 0


def read_lm_eval(
    folder: str | Path, base: str | None = None, metric: str | None = None, *, alpha: float = 0.05, margin: float = 0.02
) -> ScoreTable:
    """Read the logs of a base and of models tuned from it.

    Items are the same where document and target have the same hashes; the newest log of a model and task is taken. A
    task with several filters is one task for each.

    Args:
        folder: Holds one folder per model, at any depth.
        base: Folder or name of the base.
        metric: Such as ``acc_norm``; a task without it keeps its first.
        alpha, margin: Error over all changes, and the drop that does not matter.

    Raises:
        InputError: No samples, no base or one that is not there, a log that cannot be read, or prompts that differ
            between the base and another model.
    """
    root = Path(folder)
    models = _models(root)
    own = _base(root, models, base or "")
    metric = metric or ""
    logs: dict[str, dict[str, Log]] = {}
    for model in (own, *(m for m in models if m is not own)):
        label = BASE if model is own else model.label
        logs[label] = {log.task: log for task, path in model.files.items() for log in read_log(path, task, metric)}
    _check_prompts(own.label, logs)
    metrics = dict.fromkeys(log.metric for log_of in logs.values() for log in log_of.values() if not log.reason)
    if metric and metrics and metric not in metrics:
        raise InputError(
            f"no log has the metric {metric!r} for each item; expected one of those they have, such as "
            f"{', '.join(metrics)}.{did_you_mean(metric, metrics)}"
        )
    return _table(root, own, models, logs, metric, alpha, margin)


def _models(root: Path) -> list[_Model]:
    if not root.is_dir():
        raise InputError(f"no folder {str(root)!r}; expected the --output_path of lm-eval --log_samples.")
    files = [(path, match) for path in sorted(root.rglob("samples_*.jsonl")) if (match := _FILE.fullmatch(path.name))]
    if not files:
        raise InputError(f"{root} holds no samples_<task>_<date>.jsonl; expected the --output_path of lm-eval with "
                         "--log_samples.")  # fmt: skip
    models: dict[tuple[Path, str], _Model] = {}
    for path, match in sorted(files, key=lambda entry: entry[1]["date"]):
        results = _results(path.with_name(f"results_{match['date']}.json"))
        revision = _revision(results)
        place = str(path.parent.relative_to(root)) if path.parent != root else root.resolve().name
        label = f"{place}@{revision}" if revision else place
        names = {label, place, path.parent.name, str(results.get("model_name", ""))}
        model = models.setdefault((path.parent, revision), _Model(label, set()))
        model.names |= {*names, *(name.replace("__", "/").strip("/").split("/")[-1] for name in names)} - {""}
        model.older += match["task"] in model.files
        model.files[match["task"]] = path
        model.shots[match["task"]] = _shots(results, match["task"])
    return sorted(models.values(), key=lambda model: model.label)


def _results(path: Path) -> Mapping[str, Any]:
    """What lm-eval writes beside the samples; empty where it is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected the results of lm-eval as JSON.") from error
    return content if isinstance(content, dict) else {}


def _revision(results: Mapping[str, Any]) -> str:
    """The revision that the model was loaded at, empty where it was not said: lm-eval's folders do not tell."""
    config = results.get("config") or {}
    args = config.get("model_args") or {}
    if isinstance(args, str):
        args = dict(part.split("=", 1) for part in args.split(",") if "=" in part)
    revision = str(args.get("revision") or "") if isinstance(args, dict) else ""
    return "" if revision == "main" else revision


def _shots(results: Mapping[str, Any], task: str) -> int:
    shots = (results.get("n-shot") or {}).get(task, 0)
    return shots if isinstance(shots, int) else 0


def _base(root: Path, models: Sequence[_Model], name: str) -> _Model:
    labels = [model.label for model in models]
    if not name:
        raise InputError(f"{root} holds the logs of {len(models)} models ({', '.join(labels)}); expected the name of "
                         "the base, e.g. --base " + labels[0])  # fmt: skip
    exact = [model for model in models if name == model.label]
    matches = exact or [model for model in models if name in model.names]
    if len(matches) != 1:
        what = "names no model" if not matches else f"names {', '.join(m.label for m in matches)}"
        raise InputError(f"base {name!r} {what}; expected one of {', '.join(labels)}.{did_you_mean(name, labels)}")
    if len(models) < 2:
        raise InputError(f"{root} holds the logs of {labels[0]} alone; expected those of a tuned model beside it.")
    return matches[0]


def _check_prompts(name: str, logs: Mapping[str, Mapping[str, Log]]) -> None:
    base = list(logs[BASE].values())
    for label, own in logs.items():
        wrong = check_prompts(name, base, label, list(own.values())) if label != BASE else ""
        if wrong:
            raise InputError(wrong)


def _table(
    root: Path, own: _Model, models: Sequence[_Model], logs: Mapping[str, Mapping[str, Log]], metric: str,
    alpha: float, margin: float,
) -> ScoreTable:  # fmt: skip
    point = Checkpoint(own.label.partition("@")[0], own.label.partition("@")[2] or "main", None, 0)
    tasks = tuple(dict.fromkeys(task for log in logs.values() for task in log))
    numbers = {task: _numbers(log[task] for log in logs.values() if task in log) for task in tasks}
    shots = {task: n for model in models for task, n in model.shots.items()}
    known = {task: next(log[task].metric for log in logs.values() if task in log) for task in tasks}
    cells, scored = [], {}
    for label, log in logs.items():
        for task in tasks:
            cell = Cell(point.model, point.revision, label, None, task, "default",
                        shots.get(task.partition(" (")[0], 0), known[task])  # fmt: skip
            result = _result(cell, log.get(task))
            cells.append(result)
            if result.status == "done":
                scored[cell] = _scored(cell, log[task], numbers[task])
    labels = [label for label in logs if label != BASE]
    return ScoreTable(
        name=root.resolve().name, checkpoints=(point,), tasks=tasks, formats=("default",), cells=cells, scored=scored,
        tunings=tuple(TuningCard(label, label, "", "") for label in labels), flags=tuple(flags_of(logs)),
        alpha=alpha, margin=margin, notes=tuple(_notes(models, known, metric)),
    )  # fmt: skip


def _numbers(logs: Iterable[Log]) -> dict[Key, int]:
    """One number for each item, whichever model was asked it."""
    numbers: dict[Key, int] = {}
    for log in logs:
        for sample in log.samples:
            numbers.setdefault(sample.key, len(numbers))
    return numbers


def _result(cell: Cell, log: Log | None) -> CellResult:
    if log is None:
        return CellResult(cell, "missing", reason="no log of this model")
    if log.reason:
        return CellResult(cell, "refused", reason=log.reason)
    return CellResult(cell, "done", len(log.samples))


def _scored(cell: Cell, log: Log, numbers: Mapping[Key, int]) -> Scored:
    items = np.array([numbers[s.key] for s in log.samples], dtype=np.int64)
    scores = np.array([s.score for s in log.samples])
    groups = None
    if any(s.key[2] for s in log.samples):
        groups = np.array([numbers[(*s.key[:2], 0)] for s in log.samples], dtype=np.int64)
    companions = np.array([s.companion for s in log.samples])
    return Scored(
        cell, float(scores.mean()), scores.size, None, items, scores, groups, log.chance, companions, log.generated
    )  # fmt: skip


def _notes(models: Sequence[_Model], metrics: Mapping[str, str], wanted: str) -> Iterable[str]:
    for model in models:
        if model.older:
            yield f"{model.label}: {model.older} older logs are not read; the newest of each task is"
    others = [f"{task} ({own})" for task, own in metrics.items() if wanted and own != wanted]
    if others:
        yield f"{', '.join(others)}: scored by another metric, because the log has no {wanted} for each item"
