"""Reference text for bits per byte: short passages of several kinds, written for this purpose."""

from __future__ import annotations

from catchment.capabilities.packs._draw import read_lines
from catchment.capabilities.tasks import Format, Item, Task


def build() -> Task:
    """The task: more than 40 passages of 300 to 600 bytes."""
    return Task(
        name="text",
        items=tuple(Item(row["text"], meta={"kind": row["kind"]}) for row in read_lines("text")),
        scorer="text",
        formats=(Format("plain"),),
        style="continue",
        description="plain English prose and code, for bits per byte",
    )
