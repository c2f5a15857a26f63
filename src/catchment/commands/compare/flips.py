"""Which flipped items are shown: the most telling ones in the terminal, as many as fit on the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

from catchment.commands.compare.record import Comparison
from catchment.pages import clean
from catchment.records import Flip

LONGEST_TEXT = 4000
MARKUP_BYTES = 1400


@dataclass(frozen=True)
class Selection:
    """The flips that are on the page, the number in the record, and the number among all scored items."""

    flips: tuple[Flip, ...]
    recorded: int
    lost: int
    gained: int


def ranked(comparison: Comparison) -> list[Flip]:
    """Flips by how telling they are: losses first; within a direction those of tasks whose verdict agrees
    with the flip (the rest may be noise around a kept score), then by weight."""
    agrees = {("lost", "lost"), ("gained", "gained")}
    verdicts = {task.task: task.verdict for task in comparison.tasks}

    def order(flip: Flip) -> tuple[bool, bool, float]:
        return flip.direction != "lost", (flip.direction, verdicts.get(flip.task)) not in agrees, -flip.weight

    return sorted(comparison.flips, key=order)


def most_telling(comparison: Comparison, count: int = 3) -> list[Flip]:
    """The ``count`` most telling flips, losses first. When both directions occur, the last place is a gain's."""
    flips = ranked(comparison)
    lost = [flip for flip in flips if flip.direction == "lost"]
    gained = [flip for flip in flips if flip.direction == "gained"]
    places = max(count - 1, count - len(gained)) if gained else count
    return (lost[:places] + gained)[:count]


def fitting(comparison: Comparison, budget: int) -> Selection:
    """The flips whose HTML fits into ``budget`` bytes, interleaved over tasks so that each task is represented,
    returned in the order of :func:`ranked`. Texts are cleaned and cut at 4,000 characters."""
    order = ranked(comparison)
    position: dict[tuple[str, str], int] = {}
    turns = []
    for index, flip in enumerate(order):
        key = (flip.task, flip.direction)
        position[key] = position.get(key, -1) + 1
        turns.append((position[key], index))
    chosen: dict[int, Flip] = {}
    used = 0
    for _, index in sorted(turns):
        flip = _shortened(order[index])
        used += _size(flip)
        if used > budget:
            break
        chosen[index] = flip
    return Selection(
        flips=tuple(chosen[index] for index in sorted(chosen)),
        recorded=len(comparison.flips),
        lost=sum(task.flips_lost for task in comparison.tasks),
        gained=sum(task.flips_gained for task in comparison.tasks),
    )


def _shortened(flip: Flip) -> Flip:
    return replace(
        flip,
        prompt=_cut(flip.prompt),
        expected=_cut(flip.expected),
        base_answer=_cut(flip.base_answer),
        tuned_answer=_cut(flip.tuned_answer),
    )


def _cut(text: str) -> str:
    """Keep both ends: few-shot prompts begin alike, and the question stands at the end."""
    text = clean(text)
    left_out = len(text) - LONGEST_TEXT
    if left_out <= 0:
        return text
    head = LONGEST_TEXT // 4
    return f"{text[:head]}\n[… {left_out:,} characters left out …]\n{text[head + left_out :]}"


def _size(flip: Flip) -> int:
    texts: Sequence[str] = (flip.prompt, flip.expected, flip.base_answer, flip.tuned_answer)
    return MARKUP_BYTES + 2 * sum(len(html.escape(text).encode()) for text in texts)
