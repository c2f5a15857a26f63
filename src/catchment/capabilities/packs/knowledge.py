"""Common knowledge as sentences to complete; the facts and their distractors are written by hand in a file."""

from __future__ import annotations

from catchment.capabilities.packs._draw import Draft, choice_items, read_lines, seeded
from catchment.capabilities.tasks import Format, Task

FORMATS = (
    Format("plain"),
    Format("fact", "Fact: {prompt}"),
    Format("complete", "Complete the sentence correctly.\n\n{prompt}"),
)


def drafts() -> list[Draft]:
    """One draft per written fact; the distractors are of the same category as the answer."""
    return [Draft(f["prompt"], f["answer"], tuple(f["wrong"]), f["kind"]) for f in read_lines("facts")]


def build() -> Task:
    """The task: more than 800 facts, three or four choices each."""
    return Task(
        name="knowledge",
        items=choice_items(seeded("knowledge order"), drafts()),
        scorer="choice",
        formats=FORMATS,
        style="continue",
        description="common knowledge, as a sentence to complete",
    )
