"""What was answered beside what would have been right, label by label: a model that always says the same shows here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from catchment.capabilities.scorers import is_refusal, normalise_answer
from catchment.capabilities.tasks import CHOICE_SCORERS, Item, Task
from catchment.records import Row

SHOWN = 6
"""Labels of a histogram that a sentence shows."""

Labels = tuple[str, str]
"""Of one row: what was answered, and what is right."""


@dataclass(frozen=True)
class Tally:
    """Answers and right answers of some rows, counted.

    Attributes:
        answers, golds: How often each label was answered and is right, the most frequent first.
        score: Mean of the rows.
        chance: Score of guessing.
    """

    answers: Mapping[str, int]
    golds: Mapping[str, int]
    score: float
    chance: float

    @property
    def n(self) -> int:
        """Rows."""
        return sum(self.answers.values())

    @property
    def majority(self) -> float:
        """Score of always giving the most frequent right answer."""
        return max(self.golds.values()) / self.n

    @property
    def histogram(self) -> str:
        """The answers in words: ``"no 400, yes 0"``."""
        counts = {**self.answers, **{label: 0 for label in self.golds if label not in self.answers}}
        shown = [f"{label[:40]!r} {count}" for label, count in list(counts.items())[:SHOWN]]
        return ", ".join([*shown, *([f"{len(counts) - SHOWN} others"] if len(counts) > SHOWN else [])])


def tally(task: Task, rows: Sequence[Row]) -> Tally | None:
    """Count the answers of rows by label; ``None`` where the task has none (text, agreement, unlabelled items).

    Choices that all items share are counted by their text, others by their place; generated answers as they are
    compared; refusals as refusals.

    >>> items = (Item("Wet?", ("no", "yes"), 0), Item("Dry?", ("no", "yes"), 1))
    >>> tally(Task("t", items, "choice"), [Row(i.id, 0.5, "no") for i in items]).histogram
    "'no' 2, 'yes' 0"
    """
    labels = _reader(task)
    items = {item.id: item for item in task.items}
    pairs = [(items[row.item], row) for row in rows if row.item in items]
    if labels is None or not pairs or any(item.gold in (None, "", ()) for item, _ in pairs):
        return None
    read = [labels(item, row) for item, row in pairs]
    answers, golds = (Counter(side) for side in zip(*read, strict=True))
    chance = task.chance_level
    if task.scorer == "classify" and task.chance is None:
        chance = 1 / max(len(pairs[0][1].logprobs), 1)
    score = sum(row.score for _, row in pairs) / len(pairs)
    return Tally(dict(answers.most_common()), dict(golds.most_common()), score, chance)


def _reader(task: Task) -> Callable[[Item, Row], Labels] | None:
    if task.scorer in CHOICE_SCORERS:
        return _label if len({item.choices for item in task.items}) == 1 else _place
    whole = dict.fromkeys(("regex", "rouge_l", "callable"), _whole)
    return {"exact": _line, "classify": _class, "refusal": _refusal, **whole}.get(task.scorer)


def _label(item: Item, row: Row) -> Labels:
    assert isinstance(item.gold, int)
    return row.prediction, item.choices[item.gold]


def _place(item: Item, row: Row) -> Labels:
    place = item.choices.index(row.prediction) if row.prediction in item.choices else -1
    assert isinstance(item.gold, int)
    return f"choice {place + 1}", f"choice {item.gold + 1}"


def _class(item: Item, row: Row) -> Labels:
    best = max(range(len(row.logprobs)), key=row.logprobs.__getitem__, default=-1)
    return f"class {best}", f"class {item.gold}"


def _refusal(item: Item, row: Row) -> Labels:
    return "refuse" if is_refusal(row.prediction) else "comply", str(item.gold)


def _line(item: Item, row: Row) -> Labels:
    return normalise_answer(row.prediction), normalise_answer(_first(item))


def _whole(item: Item, row: Row) -> Labels:
    """All lines: many answers begin with the same one."""
    return " ".join(row.prediction.lower().split()), " ".join(_first(item).lower().split())


def _first(item: Item) -> str:
    return str(item.gold[0] if isinstance(item.gold, tuple) else item.gold)
