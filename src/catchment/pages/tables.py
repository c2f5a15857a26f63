"""What every table in the terminal needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catchment.pages.words import clean

if TYPE_CHECKING:
    from rich.text import Text


def plain_text(text: str, style: str = "") -> Text:
    """Text that is never read as markup, without control characters."""
    from rich.text import Text

    return Text(clean(text), style=style)
