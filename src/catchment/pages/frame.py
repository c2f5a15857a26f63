"""The frame of a page: self-contained HTML, templates, and how it is written. Text of models and prompts is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catchment.errors import StoreError
from catchment.pages import axes, values, words
from catchment.runs import make_folder, write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment


SHARED = "catchment.pages"


def write_html(text: str, path: Path | str) -> Path:
    """Write a page as UTF-8, beside its final name, and move it there, so that a reader never sees half a page.

    Args:
        path: The file to write, e.g. ``OUT/report.html``; its folder is made when missing.

    Returns:
        The path written.

    Raises:
        StoreError: The file cannot be written (read-only folder, full disk).
    """
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


def render(template: str, folders: Sequence[str], **context: Any) -> str:
    """A template as text; every value of the context is escaped unless it is markup.

    Args:
        folders: Packages whose ``templates`` are looked through, before those that all pages share.
    """
    return _environment(tuple(folders)).get_template(template).render(**context)


def frame(styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> dict[str, Any]:
    """What every page inlines: style and script with the hashes that the content security policy names.

    Args:
        styles, scripts: Files after those that all pages share, as ``package/name``.
    """
    css = "".join(asset(name) for name in (f"{SHARED}/page.css", *styles))
    js = "".join(asset(name) for name in (f"{SHARED}/page.js", *scripts))
    return {
        "css": markup(css),
        "js": markup(js),
        "css_hash": _source_hash(css),
        "js_hash": _source_hash(js),
        "version": _version(),
    }


@lru_cache
def _environment(folders: tuple[str, ...]) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(folder, "templates") for folder in (*folders, SHARED)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clean=words.clean, typeset=values.typeset)
    environment.globals.update(_helpers())
    return environment


def _helpers() -> dict[str, Callable[..., Any]]:
    """What every template may call."""
    return {
        "percent": words.percent,
        "pts": lambda value: values.typeset(words.points(value)),
        "interval_points": words.interval_points,
        "count": lambda value: f"{value:,}",
        "level": words.level,
        "one_line": words.one_line,
        "times": words.times,
        "axis_number": values.axis_number,
        "mark": axes.mark,
        "share": values.share,
        "ruler_name": words.ruler_name,
        "scientific": lambda value: values.typeset(values.scientific(value)),
        "passed_at": lambda *ends: values.typeset(values.passed_at(*ends)),
        "decimal": values.decimal,
        "moment": values.moment,
        "first_up": values.first_up,
        "value_text": values.value_text,
    }


def asset(name: str) -> str:
    """The text of ``package/name`` in that package's templates."""
    from importlib.resources import files

    folder, _, file = name.partition("/")
    return files(folder).joinpath("templates", file).read_text(encoding="utf-8").replace("\r\n", "\n")


def markup(text: str) -> Any:
    """Text that a template takes as it is."""
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
