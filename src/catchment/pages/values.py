"""Single values as a page sets them: typographic minus, conditions, times, small numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from catchment.pages.words import clean, sigma

LONGEST_VALUE = 2000
HYPHEN_MINUS = re.compile(r"(?<![\w.)\]-])-(?=\.?\d)|(?<=\de)-(?=\d)")


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
        return clean(", ".join(f"{key}: {value_text(inner)}" for key, inner in value.items()))[:LONGEST_VALUE]
    if isinstance(value, (list, tuple)):
        return clean(", ".join(value_text(inner) for inner in value))[:LONGEST_VALUE] or "none"
    text = clean(str(value))
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"


def moment(created: str) -> str:
    """An ISO time to the minute; UTC is named.

    >>> moment("2025-03-04T10:12:33.1Z")
    '2025-03-04 10:12 UTC'
    """
    zone = " UTC" if created.endswith(("Z", "+00:00")) else ""
    return clean(created[:16].replace("T", " ") + zone)


def first_up(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def axis_number(value: float) -> str:
    """A number at the tick of an axis."""
    value = round(value, 6) or 0.0
    return typeset(f"{value:g}")


def number(value: float) -> str:
    """A number of any size with about four digits, thousands apart.

    >>> number(91000.0), number(-4210.4), number(0.000677), number(12.34)
    ('91,000', '−4,210', '6.8e−4', '12.34')
    """
    if abs(value) >= 1000:
        return typeset(f"{value:,.0f}")
    return typeset(f"{value:.4g}" if abs(value) >= 0.01 else sigma(value))


def scientific(value: float) -> str:
    """A small number with two significant digits.

    >>> scientific(0.0), scientific(0.00031), scientific(0.25)
    ('0', '3.1e-04', '0.25')
    """
    if value == 0:
        return "0"
    return f"{value:.2g}" if abs(value) >= 0.01 else f"{value:.1e}"


def passed_at(scale: float | None, below: float | None, reach: float) -> str:
    """Where a bound was passed; an end that was not measured is said in words.

    >>> passed_at(0.02, None, 0.1), passed_at(None, 0.01, 0.1), passed_at(None, None, 0.1)
    ('0.02', 'below 0.01', 'beyond 0.1')
    """
    if scale is not None:
        return scientific(scale)
    return f"beyond {scientific(reach)}" if below is None else f"below {scientific(below)}"


def share(value: float) -> str:
    """A share as percent that does not hide a small change behind zero.

    >>> share(0.0), share(0.00004), share(0.031)
    ('0%', '0.004%', '3.1%')
    """
    if value == 0:
        return "0%"
    return f"{100 * value:.1f}%" if value >= 0.001 else f"{100 * value:.1g}%"
