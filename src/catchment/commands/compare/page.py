"""The page and the notebook fragment of a comparison: self-contained HTML from one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from catchment import measuring, pages
from catchment.commands.compare import drift as drifted
from catchment.commands.compare import flips, words
from catchment.commands.compare.record import FILE, Comparison
from catchment.pages import clean, frame, render, write_html
from catchment.records import Interval, TaskResult

FOLDERS = ("catchment.commands.compare",)
PAGE_BYTES = 950_000
FLIP_BYTES = 450_000
MARKS = {"gained": "↑", "lost": "↓", "kept": "=", "undecided": "?", "not measurable": "×"}


def page_html(comparison: Comparison) -> str:
    """The whole page as one HTML document without any reference to the outside.

    Scripts and styles are inlined and pinned by hash in a content security policy, so that markup in prompts or
    answers could not run even if it were not escaped. Flips are limited to about 450 kB, interleaved over tasks, and
    to less where the rest of the page is large, so that the page stays below 1 MB.
    """
    return fitted(lambda flip_bytes: _page(comparison, flip_bytes))


def fitted(page: Callable[[int], str]) -> str:
    """A page with as many flips as keep it below 1 MB; ``page`` makes it with so many bytes of them."""
    text = page(FLIP_BYTES)
    excess = len(text.encode()) - PAGE_BYTES
    return text if excess <= 0 else page(max(0, FLIP_BYTES - excess))


def _page(comparison: Comparison, flip_bytes: int) -> str:
    return render("page.html", FOLDERS, **page_context(comparison, flip_bytes))


def page_context(comparison: Comparison, flip_bytes: int) -> dict[str, Any]:
    """What the template of a comparison's page is filled with; ``flip_bytes``: of flips at most, about."""
    shown = flips.fitting(comparison, flip_bytes)
    return {
        **_common(comparison),
        **_figures(comparison),
        **frame(),
        **_rooms(comparison),
        "sentence": comparison.verdict,
        "source": FILE,
        "family": measuring.family(comparison.tasks),
        "margin_points": f"{100 * comparison.margin:.3g}",
        "flips": shown,
        "flip_tasks": list(dict.fromkeys(flip.task for flip in shown.flips)),
        "warnings": all_warnings(comparison),
        "sections": sections(comparison),
        "cards": _cards(comparison),
        "candidates": _candidates(comparison),
    }


def notebook_html(comparison: Comparison) -> str:
    """A fragment for ``_repr_html_``: verdict, table and the three most telling flips, with scoped style that
    takes its colours from the notebook."""
    css = pages.markup(pages.asset(f"{FOLDERS[0]}/notebook.css"))
    telling = flips.most_telling(comparison)
    return render("notebook.html", FOLDERS, **_common(comparison), css=css, telling=telling, marks=MARKS)


def write_page(comparison: Comparison, path: Path | str) -> Path:
    """Write the page; arguments, result and errors as of :func:`~catchment.pages.write_html`."""
    return write_html(page_html(comparison), path)


def _common(comparison: Comparison) -> dict[str, Any]:
    return {
        "c": comparison,
        "title": clean(words.headline_label(comparison.tasks, comparison.unmeasured)),
        "decide_note": measuring.decide_note,
        "short_note": measuring.short_note,
        "graded": words.graded,
        "format_note": words.format_note,
        "heat_cell": drifted.heat_cell,
        "heat_hints": drifted.heat_hints,
        "heat_gutter": drifted.heat_gutter,
        "layer_every": drifted.layer_every,
    }


def _figures(comparison: Comparison) -> dict[str, Any]:
    """Scales and grids. The margin and zero are always on the axis of differences."""
    recovered, drift = comparison.recovered, comparison.drift
    texts = [text.difference for text in comparison.texts]
    return {
        "task_axis": _difference_axis(comparison.tasks, comparison.margin),
        "recovered_axis": _difference_axis(recovered.tasks, comparison.margin) if recovered else None,
        "text_axis": pages.axis([0.0, *(end for d in texts for end in _ends(d))], unit=1.0),
        "agreement_axis": pages.axis(
            [1.0, *(end for found in comparison.agreements for end in _ends(found.agreement))]
        ),
        "score_axis": pages.Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        "with_formats": _with_formats(comparison),
        "heats": drifted.heats(drift) if drift else None,
        "outside": drifted.outside_layers(drift) if drift else [],
    }


def _rooms(comparison: Comparison) -> dict[str, Any]:
    """The rooms on the ray from the base to the tuned model, where 1 is the tuned model."""
    ends = [end for room in comparison.rooms for end in (room.low, room.high, room.t, room.reach) if end is not None]
    return {
        "room_axis": pages.axis([0.0, 1.0, *ends], padding=0.03, unit=1.0),
        "room_state": measuring.room_state,
        "room_words": words.room_words,
        "room_span": words.room_span,
        "barrier_words": words.barrier_words,
        "typical_words": words.typical_words,
        "node_units": lambda nodes: max((node.units for node in nodes), default=0),
    }


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _difference_axis(tasks: tuple[TaskResult, ...], margin: float) -> pages.Axis:
    ends = [end for task in tasks for end in _ends(task.difference)]
    return pages.axis([0.0, -margin, *ends])


def _with_formats(comparison: Comparison) -> list[TaskResult]:
    return [task for task in comparison.tasks if len(task.formats) > 1]


def all_warnings(comparison: Comparison) -> list[str]:
    """Of the comparison and of each task."""
    of_tasks = (f"{task.task}: {text}" for task in comparison.tasks for text in task.warnings)
    return list(dict.fromkeys([*comparison.warnings, *of_tasks]))


def sections(comparison: Comparison) -> list[tuple[str, str]]:
    """The sections that the page has, each with its anchor."""
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


# A record that is displayed in a notebook shows itself; records know nothing of pages.
Comparison._repr_html_ = notebook_html  # type: ignore[attr-defined]
