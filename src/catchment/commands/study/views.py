"""Tables of a study's page: verdicts side by side, contrasts, formats, noise, scans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from catchment.commands.study import words
from catchment.commands.study.choice import ranked
from catchment.commands.study.figures import thinned, thinned_words
from catchment.commands.study.record import BASE, Contrast, Ratio, Sensitivity, Study, TaskNoise, Verdicts
from catchment.pages import Axis, Bar, LogAxis, axis, bar, log_axis, number, share, sigma, typeset, value_text
from catchment.records import TaskResult

MOST_SCANS = 200
MOST_VERDICTS = 1500
"""Cells of the table of verdicts; at least 12 tunings stand in it."""
MOST_FORMAT_ROWS = 150


@dataclass(frozen=True)
class VerdictRow:
    """One tuning: its result on every task of the table, ``None`` where it has none."""

    verdicts: Verdicts
    cells: tuple[TaskResult | None, ...]


@dataclass(frozen=True)
class VerdictTable:
    """Tunings by tasks, sorted as :func:`ranked` says; ``left_out``: tunings that are not in it."""

    tasks: tuple[str, ...]
    rows: tuple[VerdictRow, ...]
    left_out: int


def verdict_table(verdicts: Sequence[Verdicts]) -> VerdictTable:
    """Tasks in the order in which they first appear."""
    tasks = tuple(dict.fromkeys(task.task for one in verdicts for task in one.tasks))
    rows = []
    most = max(12, MOST_VERDICTS // max(1, len(tasks)))
    for one in ranked(verdicts)[:most]:
        results = {task.task: task for task in one.tasks}
        rows.append(VerdictRow(one, tuple(results.get(task) for task in tasks)))
    return VerdictTable(tasks, tuple(rows), len(verdicts) - len(rows))


@dataclass(frozen=True)
class ContrastRow:
    """One checkpoint: mean change and mean ratio, the mean ratio over the others, the change with every pair once."""

    revision: str
    tokens: str
    gain: str
    ratio: str
    without: str
    unique: str
    bar: tuple[float, float, str] | None


@dataclass(frozen=True)
class ContrastView:
    """``facts``: the ratio and what stands beside it, each as name, value and what it is."""

    contrast: Contrast
    axis: Axis
    rows: tuple[ContrastRow, ...]
    facts: tuple[tuple[str, str, str], ...]
    twice: bool
    note: str
    left_out: bool


def contrast_view(contrast: Contrast, study: Study) -> ContrastView:
    """Rows by checkpoint with the mean change drawn from zero."""
    tokens = {c.revision: words.tokens(c.tokens) for c in study.checkpoints if c.model == contrast.model}
    ratios, unique = dict(contrast.ratio_by_checkpoint), dict(contrast.unique)
    without = dict(contrast.ratio.leave_out) if contrast.ratio else {}
    values = [value for _, value in contrast.by_checkpoint if value is not None and math.isfinite(value)]
    scale = axis([0.0, *values], 5)
    rows = tuple(
        ContrastRow(
            revision,
            tokens.get(revision, ""),
            words.pts(gain),
            words.ratio_percent(ratios.get(revision)),
            words.ratio_percent(without.get(revision)),
            words.pts(unique.get(revision)),
            _from_zero(scale, gain),
        )
        for revision, gain in thinned(contrast.by_checkpoint)
    )
    return ContrastView(
        contrast,
        scale,
        rows,
        _facts(contrast),
        bool(contrast.unique),
        thinned_words(len(contrast.by_checkpoint)),
        bool(without),
    )


def _from_zero(scale: Axis, value: float | None) -> tuple[float, float, str] | None:
    if value is None or not math.isfinite(value):
        return None
    left, right = sorted((scale.at(0.0), scale.at(value)))
    return left, round(right - left, 3), "gained" if value > 0 else "lost"


def _facts(contrast: Contrast) -> tuple[tuple[str, str, str], ...]:
    """A mean of ratios never stands alone: one base near zero can carry it."""
    ratio = contrast.ratio
    mean = ("Mean change", words.pts(contrast.mean if ratio is None else ratio.raw), "raw, in points of score")
    if ratio is None:
        return (mean,) if contrast.mean is not None else ()
    log = words.plain(ratio.log_ratio, 3)
    facts = [
        ("Mean ratio", words.ratio_percent(ratio.mean), f"of (tuned − base) / base{_spread(ratio)}"),
        ("Median ratio", words.ratio_percent(ratio.median), "of the same cells"),
        ("Pooled ratio", words.ratio_percent(ratio.pooled), "sum of changes over sum of base scores"),
        ("Mean log ratio", log, "of ln(tuned / base)" if log != "–" else "not defined: a score is 0"),
        mean,
    ]
    if ratio.without is not None:
        influence = f"; {ratio.largest} moves the mean most" if ratio.largest else ""
        facts.insert(1, ("Mean ratio, reduced", words.ratio_percent(ratio.without), f"{ratio.without_what}{influence}"))
    return tuple(facts)


def _spread(ratio: Ratio) -> str:
    if ratio.mean is None:
        return ", not defined: a base is 0"
    t = f", t = {words.plain(ratio.t)}" if ratio.t is not None else ""
    sd = f"; sd {words.size(ratio.sd)}%" if ratio.sd is not None else ""
    return f"{sd}{t}, n = {words.plural(ratio.n, 'cell')}"


@dataclass(frozen=True)
class FormatRow:
    """Scores of one tuning on one task by prompt format, the default first, in percent of the width."""

    task: str
    sensitivity: Sensitivity
    dots: tuple[tuple[float, str, bool], ...]
    low: float
    high: float


@dataclass(frozen=True)
class FormatTable:
    """The last checkpoint of each model; ``left_out``: rows that are not shown."""

    axis: Axis
    rows: tuple[FormatRow, ...]
    left_out: int


def format_table(sensitivities: Sequence[Sensitivity], last: Iterable[tuple[str, str]]) -> FormatTable:
    """The widest spread first within the order of tasks."""
    ends = set(last)
    there = [s for s in sensitivities if (s.model, s.revision) in ends and s.scores]
    order = list(dict.fromkeys(s.task for s in there))
    there.sort(key=lambda s: (order.index(s.task), s.tuning != BASE))
    finite = [value for s in there for _, value in s.scores if math.isfinite(value)]
    scale = axis(finite or [0.0, 1.0], 5)
    rows = [_format_row(s, scale) for s in there[:MOST_FORMAT_ROWS]]
    return FormatTable(scale, tuple(rows), len(there) - len(rows))


def _format_row(s: Sensitivity, scale: Axis) -> FormatRow:
    dots = [
        (scale.at(v), f"{name}: {words.pct(v)}", i == 0) for i, (name, v) in enumerate(s.scores) if math.isfinite(v)
    ]
    at = [x for x, _, _ in dots] or [0.0]
    return FormatRow(s.task, s, tuple(dots), min(at), max(at))


@dataclass(frozen=True)
class NoiseTable:
    axis: Axis
    rows: tuple[tuple[TaskNoise, float | None], ...]


def noise_table(noise: Sequence[TaskNoise]) -> NoiseTable:
    """The largest floor first; each with its place on one axis."""
    floors = [(one, words.finite(one.floor)) for one in noise]
    floors.sort(key=lambda row: -(row[1] or 0.0))
    largest = max((floor for _, floor in floors if floor), default=0.01)
    scale = Axis(0.0, 1.08 * largest, tuple(axis([0.0, largest], 4, 0.0).ticks))
    return NoiseTable(scale, tuple((one, scale.at(floor) if floor is not None else None) for one, floor in floors))


@dataclass(frozen=True)
class ScanRow:
    """The basin of one task at one checkpoint, and the trace of the Hessian where it was measured."""

    where: str
    tuning: str
    task: str
    span: str
    relative: str
    trace: str
    bar: Bar | None


@dataclass(frozen=True)
class ScanTable:
    axis: LogAxis
    rows: tuple[ScanRow, ...]
    left_out: int
    traces: bool


def scan_table(study: Study) -> ScanTable:
    """By task and tuning, then by checkpoint, on one logarithmic axis of moves."""
    order = {(c.model, c.revision): c.order for c in study.checkpoints}
    scans = sorted(
        study.scans,
        key=lambda s: (
            str(s.get("task", "")), str(s.get("tuning", BASE)), str(s.get("model", "")),
            order.get((s.get("model", ""), s.get("revision", "")), -1),
        ),
    )  # fmt: skip
    values = [value for s in scans for key in ("sigma_low", "sigma_high") if (value := _positive(s.get(key)))]
    scale = log_axis(values)
    several, kinds = (len({s.get(key) for s in scans}) > 1 for key in ("model", "scan"))
    rows = tuple(_scan_row(s, scale, several, kinds) for s in scans[:MOST_SCANS])
    return ScanTable(scale, rows, len(scans) - len(rows), any(row.trace != "–" for row in rows))


def _positive(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
    return float(value) if known else None


def _scan_row(scan: dict[str, Any], scale: LogAxis, several: bool, kinds: bool) -> ScanRow:
    low, high = _positive(scan.get("sigma_low")), _positive(scan.get("sigma_high"))
    some = low is not None or high is not None
    revision = str(scan.get("revision", ""))
    return ScanRow(
        f"{scan.get('model', '')} {revision}" if several else revision,
        words.tuning_name(str(scan.get("tuning", BASE))) + (f", seed {scan['seed']}" if scan.get("seed") else ""),
        str(scan.get("task", "")) + (f" ({scan.get('scan')})" if kinds else ""),
        _span(low, high, sigma),
        _span(_positive(scan.get("relative_low")), _positive(scan.get("relative_high")), share),
        _trace(scan.get("trace")),
        bar(scale, low or 0.0, high) if some else None,
    )


def _span(low: float | None, high: float | None, text: Any) -> str:
    if low is None:
        return "–" if high is None else f"below {typeset(text(high))}"
    return f"above {typeset(text(low))}" if high is None else f"{typeset(text(low))} to {typeset(text(high))}"


def _trace(value: Any) -> str:
    if isinstance(value, (int, float)):
        return number(float(value)) if math.isfinite(value) else "–"
    return value_text(value)
