"""The page and the notebook fragment: self-contained HTML from one record. Text of models and prompts is escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catchment.commands.compare.record import Comparison
from catchment.commands.tune.record import Tune
from catchment.errors import StoreError
from catchment.records import Interval, TaskResult
from catchment.report import figures, flips, words
from catchment.runs import make_folder, write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE_BYTES = 950_000
FLIP_BYTES = 450_000
LONGEST_VALUE = 2000
MOST_HINTS = 1000
MARKS = {"gained": "↑", "lost": "↓", "kept": "=", "undecided": "?", "not measurable": "×"}
HYPHEN_MINUS = re.compile(r"(?<![\w.)\]-])-(?=\.?\d)|(?<=\de)-(?=\d)")


def page_html(comparison: Comparison) -> str:
    """The whole page as one HTML document without any reference to the outside.

    Scripts and styles are inlined and pinned by hash in a content security policy, so that markup in prompts or
    answers could not run even if it were not escaped. Flips are limited to about 450 kB, interleaved over tasks, and
    to less where the rest of the page is large, so that the page stays below 1 MB.
    """
    text = _page(comparison, FLIP_BYTES)
    excess = len(text.encode()) - PAGE_BYTES
    return text if excess <= 0 else _page(comparison, max(0, FLIP_BYTES - excess))


def _page(comparison: Comparison, flip_bytes: int, **more: Any) -> str:
    shown = flips.fitting(comparison, flip_bytes)
    context = {
        **_common(comparison),
        **_figures(comparison),
        **frame(["page.css"], ["page.js"]),
        **_rooms(comparison),
        "tune": None,
        "family": words.family(comparison.tasks),
        "margin_points": f"{100 * comparison.margin:.3g}",
        "flips": shown,
        "flip_tasks": list(dict.fromkeys(flip.task for flip in shown.flips)),
        "warnings": _warnings(comparison),
        "sections": _sections(comparison),
        "cards": _cards(comparison),
        "candidates": _candidates(comparison),
    }
    return render("page.html", **{**context, **more})


def tune_html(tune: Tune) -> str:
    """The page of a tune: how it went, what the protection saved, and the comparison of what is delivered."""
    c = tune.comparison
    label = words.headline_label(c.tasks, c.unmeasured) if c else ""
    harmful = tune.headline == "harmful"
    title = f"Harmful: {label[:1].lower()}{label[1:]}" if harmful and label else label or tune.headline
    more = {
        "tune": tune,
        "title": words.clean(f"{title[:1].upper()}{title[1:]}"),
        "sections": [("tune", "Tuning"), *(_sections(c) if c else ())],
        "warnings": list(dict.fromkeys([*tune.warnings, *(_warnings(c) if c else ())])),
    }
    if c is None:
        return render("tune.html", **frame(["page.css"], ["page.js"]), **more)
    text = _page(c, FLIP_BYTES, **more)
    excess = len(text.encode()) - PAGE_BYTES
    return text if excess <= 0 else _page(c, max(0, FLIP_BYTES - excess), **more)


def write_tune_page(tune: Tune, path: Path | str) -> Path:
    """Write the page of a tune; arguments, result and errors as :func:`write_page`."""
    return write_html(tune_html(tune), path)


def notebook_html(comparison: Comparison) -> str:
    """A fragment for ``_repr_html_``: verdict, table and the three most telling flips, with scoped style that
    takes its colours from the notebook."""
    css = _asset("notebook.css")
    telling = flips.most_telling(comparison)
    return (
        _environment()
        .get_template("notebook.html")
        .render(**_common(comparison), css=_markup(css), telling=telling, marks=MARKS)
    )


def write_page(comparison: Comparison, path: Path | str) -> Path:
    """Write the page beside its final name and move it there, so that a reader never sees half a page.

    Args:
        comparison: The record.
        path: The file to write, e.g. ``OUT/report.html``; its folder is made when missing.

    Returns:
        The path written.

    Raises:
        StoreError: The file cannot be written (read-only folder, full disk).
    """
    return write_html(page_html(comparison), path)


def write_html(text: str, path: Path | str) -> Path:
    """Write a page as UTF-8; arguments, result and errors as in :func:`write_page`."""
    target = Path(path)
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # a lone surrogate has no bytes
    try:
        make_folder(target.parent)
        write_atomic(target, text)
    except StoreError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise StoreError(
            f"cannot write the page to {str(target)!r}: {reason}; expected a folder that can be written and "
            "has room. Choose another output folder or free some space."
        ) from error
    return target


def render(template: str, **context: Any) -> str:
    """A template of this room as text; every value of the context is escaped unless it is markup."""
    return _environment().get_template(template).render(**context)


def frame(styles: Sequence[str], scripts: Sequence[str]) -> dict[str, Any]:
    """What every page inlines: style and script with the hashes that the content security policy names."""
    css, js = ("".join(_asset(name) for name in names) for names in (styles, scripts))
    return {
        "css": _markup(css),
        "js": _markup(js),
        "css_hash": _source_hash(css),
        "js_hash": _source_hash(js),
        "version": _version(),
    }


def _common(comparison: Comparison) -> dict[str, Any]:
    return {"c": comparison, "title": words.clean(words.headline_label(comparison.tasks, comparison.unmeasured))}


def _figures(comparison: Comparison) -> dict[str, Any]:
    """Scales and grids. The margin and zero are always on the axis of differences."""
    recovered, drift = comparison.recovered, comparison.drift
    texts = [text.difference for text in comparison.texts]
    return {
        "task_axis": _difference_axis(comparison.tasks, comparison.margin),
        "recovered_axis": _difference_axis(recovered.tasks, comparison.margin) if recovered else None,
        "text_axis": figures.axis([0.0, *(end for d in texts for end in _ends(d))], unit=1.0),
        "agreement_axis": figures.axis(
            [1.0, *(end for found in comparison.agreements for end in _ends(found.agreement))]
        ),
        "score_axis": figures.Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        "with_formats": _with_formats(comparison),
        "heats": figures.heats(drift) if drift else None,
        "outside": figures.outside_layers(drift) if drift else [],
    }


def _rooms(comparison: Comparison) -> dict[str, Any]:
    """The rooms on the ray from the base to the tuned model, where 1 is the tuned model."""
    ends = [end for room in comparison.rooms for end in (room.low, room.high, room.t, room.reach) if end is not None]
    return {
        "room_axis": figures.axis([0.0, 1.0, *ends], padding=0.03, unit=1.0),
        "room_state": words.room_state,
        "room_words": words.room_words,
        "room_span": words.room_span,
        "barrier_words": words.barrier_words,
        "typical_words": words.typical_words,
        "node_units": lambda nodes: max((node.units for node in nodes), default=0),
    }


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _difference_axis(tasks: tuple[TaskResult, ...], margin: float) -> figures.Axis:
    ends = [end for task in tasks for end in _ends(task.difference)]
    return figures.axis([0.0, -margin, *ends])


def _with_formats(comparison: Comparison) -> list[TaskResult]:
    return [task for task in comparison.tasks if len(task.formats) > 1]


def _warnings(comparison: Comparison) -> list[str]:
    of_tasks = (f"{task.task}: {text}" for task in comparison.tasks for text in task.warnings)
    return list(dict.fromkeys([*comparison.warnings, *of_tasks]))


def _sections(comparison: Comparison) -> list[tuple[str, str]]:
    present = {
        "recovered": comparison.recovered,
        "room": comparison.rooms,
        "texts": comparison.texts,
        "agreements": comparison.agreements,
        "formats": _with_formats(comparison),
        "drift": comparison.drift,
    }
    names = {
        "tasks": "Tasks",
        "recovered": "Recovered",
        "room": "Room",
        "flips": "Flips",
        "texts": "Bits per byte",
        "agreements": "Agreement",
        "formats": "Formats",
        "drift": "Drift",
        "conditions": "Conditions",
    }
    return [(key, name) for key, name in names.items() if present.get(key, True)]


def _cards(comparison: Comparison) -> list[tuple[str, Any, Any]]:
    """Fields of the two models side by side; fields empty in both are left out."""
    rows = [
        (field.name, getattr(comparison.base, field.name), getattr(comparison.tuned, field.name))
        for field in fields(comparison.base)
    ]
    return [row for row in rows if row[1:] != (None, None)]


@dataclass(frozen=True)
class _Candidates:
    columns: list[str]
    rows: tuple[dict[str, Any], ...]


def _candidates(comparison: Comparison) -> _Candidates:
    rows = comparison.recovered.candidates if comparison.recovered else ()
    return _Candidates(list(dict.fromkeys(key for row in rows for key in row)), rows)


def format_note(task: TaskResult) -> str:
    """What the formats say about a task: the range of differences, and whether any of them changes its sign."""
    estimates = [result.difference.estimate for result in task.formats]
    low, high = words.points(min(estimates)), words.points(max(estimates))
    signs = {1 if d.low > 0 else -1 for d in (result.difference for result in task.formats) if d.low > 0 or d.high < 0}
    contradiction = " The formats contradict each other." if len(signs) == 2 else ""
    return f"Difference from {low} to {high} points over {len(estimates)} formats.{contradiction}"


def typeset(text: str) -> str:
    """Set a true minus sign before numbers.

    >>> typeset("lost recall (-12 points, -15 to -9) in SmolLM-135")
    'lost recall (−12 points, −15 to −9) in SmolLM-135'
    >>> typeset("up to 3.1e-5")
    'up to 3.1e−5'
    """
    return HYPHEN_MINUS.sub("−", text)


def decimal(value: float, digits: int = 3, sign: bool = False) -> str:
    """A plain number with fixed digits, a true minus, and no sign on zero."""
    rounded = round(value, digits) or 0.0
    return typeset(f"{rounded:+.{digits}f}" if sign and rounded else f"{rounded:.{digits}f}")


def value_text(value: Any) -> str:
    """A value of the conditions as a person reads it; long ones are cut and say so."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return words.clean(", ".join(f"{key}: {value_text(inner)}" for key, inner in value.items()))[:LONGEST_VALUE]
    if isinstance(value, (list, tuple)):
        return words.clean(", ".join(value_text(inner) for inner in value))[:LONGEST_VALUE] or "none"
    text = words.clean(str(value))
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"


def moment(created: str) -> str:
    """An ISO time to the minute; UTC is named.

    >>> moment("2025-03-04T10:12:33.1Z")
    '2025-03-04 10:12 UTC'
    """
    zone = " UTC" if created.endswith(("Z", "+00:00")) else ""
    return words.clean(created[:16].replace("T", " ") + zone)


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _axis_number(value: float) -> str:
    value = round(value, 6) or 0.0
    return typeset(f"{value:g}")


def _heat_cell(heat: figures.Heat) -> float:
    return min(24.0, max(6.0, round(430 / len(heat.layers), 1)))


def _heat_hints(heat: figures.Heat) -> bool:
    """Whether cells carry their value as a hint; on large grids the hints would outweigh the rest of the page."""
    return len(heat.layers) * len(heat.rows) <= MOST_HINTS


def _layer_every(heat: figures.Heat) -> int:
    return next(step for step in (1, 2, 5, 10, 20, 50, 1000) if step * _heat_cell(heat) >= 26)


def _heat_gutter(heat: figures.Heat) -> float:
    return 16 + 6.2 * min(24, max(len(row.kind) for row in heat.rows))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("catchment.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clean=words.clean, typeset=typeset)
    helpers: dict[str, Callable[..., Any]] = {
        "percent": words.percent,
        "pts": lambda value: typeset(words.points(value)),
        "interval_points": words.interval_points,
        "count": lambda value: f"{value:,}",
        "level": words.level,
        "decide_note": words.decide_note,
        "short_note": words.short_note,
        "graded": words.graded,
        "one_line": words.one_line,
        "times": words.times,
        "axis_number": _axis_number,
        "mark": figures.mark,
        "share": figures.share,
        "ruler_name": words.ruler_name,
        "scientific": lambda value: typeset(figures.scientific(value)),
        "passed_at": lambda *found: typeset(figures.passed_at(*found)),
        "format_note": format_note,
        "decimal": decimal,
        "moment": moment,
        "first_up": _first_up,
        "value_text": value_text,
        "heat_cell": _heat_cell,
        "heat_hints": _heat_hints,
        "heat_gutter": _heat_gutter,
        "layer_every": _layer_every,
    }
    environment.globals.update(helpers)
    return environment


def _asset(name: str) -> str:
    from importlib.resources import files

    return files("catchment.report").joinpath("templates", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("catchment")
    except PackageNotFoundError:
        return "unknown"
