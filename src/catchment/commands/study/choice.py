"""Which of several tunings of one base to take, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from catchment.commands.study.record import Verdicts
from catchment.measuring import with_verdict
from catchment.pages import named, points
from catchment.records import TaskResult, Verdict


def choice(verdicts: Sequence[Verdicts]) -> str:
    """Which tuning to take: among those without a shown loss, the one with the largest sum of shown gains.

    Tunings whose intervals overlap with those of the first on every task are named, for they cannot be told from it.
    """
    if not any(one.tasks for one in verdicts):
        return ""
    order = ranked(verdicts)
    first, equal = order[0], _equal(order)
    if _with(first, "lost"):
        return f"Every tuning lost something. {first.tuning} has the largest sum of changes: {outcome(first)}."
    if not _with(first, "gained"):
        others = _names([one for one in order if _with(one, "gained")])
        also = f" {others} gained, and lost elsewhere: which to take depends on the task." if others else ""
        without = " without a shown loss" if others else ""
        return f"No tuning{without} was shown to gain anything.{also}"
    also = f" {_names(equal)} cannot be told from it: the intervals overlap on every task." if equal else ""
    rest = [one for one in order[1:] if one not in equal]
    return f"Take {first.tuning}: {outcome(first)}.{also}" + (
        f" Next is {rest[0].tuning}: {outcome(rest[0])}." if rest else ""
    )


def choice_title(verdicts: Sequence[Verdicts]) -> str:
    """The same as a title of a few words."""
    order = ranked(verdicts)
    if _with(order[0], "lost"):
        return "Every tuning lost something"
    if not any(one.tasks for one in verdicts):
        return "No tuning is measured yet"
    if not _with(order[0], "gained"):
        several = any(_with(one, "gained") for one in order)
        return "No tuning to take without a loss" if several else "No tuning was shown to gain"
    return f"Take {' or '.join(one.tuning for one in [order[0], *_equal(order)][:3])}"


def ranked(verdicts: Sequence[Verdicts]) -> list[Verdicts]:
    """Without a shown loss first, by the sum of shown gains; then those with one, by the sum of all changes."""
    return sorted(verdicts, key=_key)


def _key(one: Verdicts) -> tuple[bool, float]:
    lost = bool(_with(one, "lost"))
    return lost, -sum(task.difference.estimate for task in (one.tasks if lost else _with(one, "gained")))


def _equal(order: Sequence[Verdicts]) -> list[Verdicts]:
    """Tunings after the first that gained without a shown loss, and whose intervals overlap with its own."""
    return [one for one in order[1:] if _with(one, "gained") and not _with(one, "lost") and _overlap(order[0], one)]


def _overlap(first: Verdicts, other: Verdicts) -> bool:
    others = {task.task: task.difference for task in other.tasks}
    pairs = [(task.difference, others[task.task]) for task in first.tasks if task.task in others]
    return all(one.low <= two.high and two.low <= one.high for one, two in pairs)


def _with(one: Verdicts, verdict: Verdict) -> list[TaskResult]:
    return with_verdict(one.tasks, verdict)


def _names(verdicts: Sequence[Verdicts]) -> str:
    return named([one.tuning for one in verdicts])


def outcome(one: Verdicts) -> str:
    """``gained a (+3.1); lost b (-2.0); 2 tasks not decided``. No loss shown is never called kept."""
    gained, lost = (
        named([f"{task.task} ({points(task.difference.estimate)})" for task in _with(one, verdict)])
        for verdict in ("gained", "lost")
    )
    open_ones = len(_with(one, "undecided")) + len(_with(one, "not measurable"))
    parts = [
        f"gained {gained}" if gained else "no gain was shown",
        f"lost {lost}" if lost else "no loss was shown",
        f"{open_ones} {'task' if open_ones == 1 else 'tasks'} not decided" if open_ones else "",
    ]
    return "; ".join(part for part in parts if part)


def losses(verdicts: Sequence[Verdicts], bound: float) -> Iterator[str]:
    """Drops that are shown and estimated to be larger than the bound, one sentence each."""
    for v in verdicts:
        for task in v.tasks:
            if task.difference.high < 0 and -task.difference.estimate > bound:
                yield (
                    f"{task.task} dropped by {-task.difference.estimate:.3f} [{-task.difference.high:.3f}, "
                    f"{-task.difference.low:.3f}], more than --fail-if-drop {bound:g}, in {v.tuning}"
                )
