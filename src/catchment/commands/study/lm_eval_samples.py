"""One file of lm-eval's per-sample log: what was asked, what came back, and how it was scored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from catchment.errors import InputError

Key = tuple[str, str, int]
"""Hash of the document, hash of its target, and how many like it come before: what an item is in every log."""
MISSING = ("-1", "", "None", "[]")
"""Targets of documents without a label."""
NO_CHOICE = -1


@dataclass(frozen=True)
class Sample:
    """One scored document.

    Attributes:
        prompt: Hash of the context, shots included.
        context: The context itself, empty where it was not logged.
        score: In [0, 1].
        target: As lm-eval writes it; the number of the right choice for a multiple choice.
        logprobs: Of each choice; empty for generations.
        choices: The choices that it was asked to rate, joined; empty for generations.
    """

    key: Key
    prompt: str
    context: str
    score: float
    target: str
    logprobs: tuple[float, ...]
    choices: str = ""

    @property
    def right(self) -> int:
        """Number of the right choice; ``NO_CHOICE`` where the target is none."""
        number = int(self.target) if self.target.isdigit() else NO_CHOICE
        return number if number < len(self.logprobs) else NO_CHOICE

    @property
    def companion(self) -> float:
        """Probability of the right choice among the choices, NaN for generations."""
        if self.right == NO_CHOICE or len(self.logprobs) < 2:
            return math.nan
        top = max(self.logprobs)
        weights = [math.exp(value - top) for value in self.logprobs]
        return weights[self.right] / sum(weights)


@dataclass(frozen=True)
class Log:
    """The samples of one task, filter and model; ``reason`` why they have no scores: then ``samples`` is empty."""

    task: str
    metric: str
    samples: tuple[Sample, ...]
    reason: str = ""

    @property
    def generated(self) -> bool:
        return not any(len(s.logprobs) > 1 for s in self.samples)

    @property
    def chance(self) -> float:
        """Mean of one over the number of choices; 0 for generations."""
        if self.generated:
            return 0.0
        return sum(1 / max(len(s.logprobs), 1) for s in self.samples) / len(self.samples)


def read_log(path: Path, task: str, metric: str) -> list[Log]:
    """The logs in a file, one for each filter.

    Args:
        task: Name of the task; with several filters the name of each is put behind it.
        metric: Where a task has it; else, and by default, its first.

    Raises:
        InputError: A line that is no JSON object, or has no document, target or filter.
    """
    by_filter: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for place, entry in _entries(path):
        by_filter.setdefault(str(entry.get("filter", "none")), []).append((place, entry))
    if not by_filter:
        return [Log(task, metric, (), "its log is empty")]
    names = {own: task if len(by_filter) == 1 else f"{task} ({own})" for own in by_filter}
    return [_log(names[own], entries, metric) for own, entries in by_filter.items()]


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                _refuse(place, f"not JSON ({error.msg}); expected one sample a line. Was the run cut short")
            if not isinstance(entry, dict) or not {"doc", "target"} <= entry.keys():
                _refuse(place, "no sample with doc and target; expected what lm-eval --log_samples writes")
            yield place, entry


def _refuse(place: str, what: str) -> NoReturn:
    raise InputError(f"{place}: {what}.")


def _log(name: str, entries: Sequence[tuple[str, Mapping[str, Any]]], wanted: str) -> Log:
    first = entries[0][1]
    metrics = [str(m) for m in first.get("metrics", ()) if _scored(first.get(m))]
    metric = wanted if wanted in metrics else next(iter(metrics), "")
    if not metric:
        listed = ", ".join(map(str, first.get("metrics", ()))) or "none"
        return Log(name, wanted, (), f"none of its metrics ({listed}) is a score in [0, 1] for each item")
    seen: dict[tuple[str, str], int] = {}
    samples = []
    for place, entry in entries:
        if not _scored(entry.get(metric)):
            _refuse(place, f"{metric} is {entry.get(metric)!r}; expected a score in [0, 1], as the lines before have")
        document = str(entry.get("doc_hash") or json.dumps(entry["doc"], sort_keys=True))
        target = str(entry.get("target_hash") or entry["target"])
        number = seen[document, target] = seen.get((document, target), -1) + 1
        samples.append(_sample(entry, (document, target, number), float(entry[metric])))
    return Log(name, metric, tuple(samples))


def _scored(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _sample(entry: Mapping[str, Any], key: Key, score: float) -> Sample:
    asked = _arguments(entry.get("arguments") or ())
    context, first = asked[0] if asked else ("", "")
    generated = isinstance(first, Mapping)
    logprobs = () if generated else tuple(_number(answer) for answer in entry.get("filtered_resps") or ())
    choices = "" if generated else "\0".join(str(choice) for _, choice in asked)
    prompt = str(entry.get("prompt_hash") or context)
    return Sample(key, prompt, str(context), score, str(entry["target"]), logprobs, choices)


def _arguments(logged: Any) -> list[tuple[Any, Any]]:
    """The first two arguments of each request: ``{"gen_args_0": {"arg_0": ..., "arg_1": ...}}``, or plain lists."""
    requests = list(logged.values()) if isinstance(logged, Mapping) else list(logged)
    rows = [list(r.values()) if isinstance(r, Mapping) else list(r) for r in requests]
    return [(row[0] if row else "", row[1] if len(row) > 1 else "") for row in rows]


def _number(answer: object) -> float:
    """Of ``["-1.5", "True"]`` the first."""
    value = answer[0] if isinstance(answer, (list, tuple)) and answer else answer
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
