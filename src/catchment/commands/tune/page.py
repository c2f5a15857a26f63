"""The page of a tune: how it went, what the protection saved, and the comparison of what is delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catchment.commands.compare.page import all_warnings, fitted, page_context, sections
from catchment.commands.compare.words import headline_label
from catchment.commands.tune.record import FILE, Tune
from catchment.pages import clean, frame, render, write_html

FOLDERS = ("catchment.commands.tune", "catchment.commands.compare")


def tune_html(tune: Tune) -> str:
    """The page as one HTML document: that of the comparison, with how the training went before its tasks."""
    c = tune.comparison
    label = headline_label(c.tasks, c.unmeasured) if c else ""
    harmful = tune.headline == "harmful"
    title = f"Harmful: {label[:1].lower()}{label[1:]}" if harmful and label else label or tune.headline
    own: dict[str, Any] = {
        "tune": tune,
        "sentence": tune.sentence,
        "source": FILE,
        "title": clean(f"{title[:1].upper()}{title[1:]}"),
        "sections": [("tune", "Tuning"), *(sections(c) if c else ())],
        "warnings": list(dict.fromkeys([*tune.warnings, *(all_warnings(c) if c else ())])),
    }
    if c is None:
        return render("tune.html", FOLDERS, **frame(), **own)
    return fitted(lambda flip_bytes: render("tune_compared.html", FOLDERS, **{**page_context(c, flip_bytes), **own}))


def write_page(tune: Tune, path: Path | str) -> Path:
    """Write the page; arguments, result and errors as of :func:`~catchment.pages.write_html`."""
    return write_html(tune_html(tune), path)
