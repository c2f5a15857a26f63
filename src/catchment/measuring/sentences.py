"""Verdicts in plain words: the sentence over all tasks of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from catchment.errors import InputError
from catchment.measuring.headlines import Headline, headline_of
from catchment.pages import NAMED_AT_MOST, interval_points, join, level, named, points
from catchment.records import Interval, TaskResult, Verdict


def with_verdict(tasks: Sequence[TaskResult], verdict: Verdict) -> list[TaskResult]:
    """The tasks with this verdict, the largest difference first (undecided and the rest in the given order)."""
    chosen = [task for task in tasks if task.verdict == verdict]
    if verdict in ("gained", "lost"):
        chosen.sort(key=lambda task: -abs(task.difference.estimate))
    return chosen


def family(tasks: Sequence[TaskResult]) -> int:
    """How many intervals hold together: the largest family that any task's interval was corrected for."""
    return max((task.difference.family for task in tasks), default=1)


def verdict_sentence(
    tasks: Sequence[TaskResult],
    margin: float,
    alpha: float,
    subject: str = "This fine-tune",
    unmeasured: Sequence[str] = (),
) -> tuple[Headline, str]:
    """The verdict over all tasks in plain words.

    What is undecided is never counted as kept, the intervals are named as simultaneous, and the statement is
    limited to the two models that were measured.

    Args:
        tasks: Results of one comparison, at least one.
        margin: The largest drop that still counts as kept, as a fraction of the score scale.
        alpha: Error rate over all intervals together.
        subject: What the sentence is about; begins it.
        unmeasured: Tasks that a budget left without an item.

    Returns:
        The headline (see :func:`headline_of`) and one to four sentences.

    Raises:
        InputError: ``tasks`` is empty.
    """
    if not tasks:
        raise InputError("a verdict needs results, got 0 tasks; expected at least 1. Was every task skipped?")
    changes = _changes(tasks, alpha)
    kept = [task.task for task in tasks if task.verdict == "kept"]
    lower = [task.task for task in tasks if task.verdict == "kept" and task.difference.high < 0]
    though = f"; {named(lower)} measurably lower within that" if lower else ""
    within = f"(no drop of {_margin(margin)} or more{though})"
    clauses = [f"{subject} {changes}"] if changes else []
    if kept:
        clauses.append(f"{'it' if changes else subject} kept {named(kept)} {within}")
    clauses += [clause for clause in (_undecided(tasks), _unmeasurable(tasks)) if clause]
    if not changes and not kept:
        clauses.insert(0, f"For {subject[:1].lower()}{subject[1:]} neither a gain nor a loss was shown")
    sentence = "; ".join(clauses)
    missing = f" Not measured within the budget: {named(unmeasured)}." if unmeasured else ""
    text = f"{sentence[:1].upper()}{sentence[1:]}.{missing} {_caveat(tasks, alpha)}"
    return headline_of(tasks, unmeasured), text


def decide_note(task: TaskResult) -> str:
    """How many items would decide an undecided task, or an empty string."""
    return f"about {task.decide_n:,} items would decide" if task.verdict == "undecided" and task.decide_n else ""


def short_note(task: TaskResult) -> str:
    """What a reader must know beside the verdict, in one clause; empty for a plain one."""
    return task.note or decide_note(task)


def _changes(tasks: Sequence[TaskResult], alpha: float) -> str:
    """``gained a (+31 points, 95% interval +27 to +35) and lost b (-12 points, -16 to -8)``."""
    clauses, first = [], True
    for verdict in ("gained", "lost"):
        named = with_verdict(tasks, verdict)
        quoted = []
        for task in named[:NAMED_AT_MOST]:
            digits = _digits(task.difference)
            what = f"{level(alpha)} interval " if first else ""
            estimate = points(task.difference.estimate, digits)
            quoted.append(f"{task.task} ({estimate} points, {what}{interval_points(task.difference, digits)})")
            first = False
        if len(named) > NAMED_AT_MOST:
            quoted.append(f"{len(named) - NAMED_AT_MOST} more")
        if quoted:
            clauses.append(f"{verdict} {join(quoted)}")
    return " and ".join(clauses)


def _digits(interval: Interval) -> int:
    """Whole points where nothing is lost by rounding: a wide interval whose ends stay clear of zero."""
    wide = interval.high - interval.low >= 0.04
    clear = min(abs(interval.low), abs(interval.high)) >= 0.01
    return 0 if wide and clear else 1


def _undecided(tasks: Sequence[TaskResult]) -> str:
    undecided = with_verdict(tasks, "undecided")
    if len(undecided) == 1:
        task = undecided[0]
        used = f"{task.n:,} {'was' if task.n == 1 else 'were'} used"
        note = decide_note(task)
        return f"{task.task} is undecided" + (f": {note} ({used})" if note else f" with {task.n:,} items")
    quoted = [f"{task.task} ({decide_note(task) or 'open'}, {task.n:,} used)" for task in undecided[:NAMED_AT_MOST]]
    if len(undecided) > NAMED_AT_MOST:
        quoted.append(f"{len(undecided) - NAMED_AT_MOST} more")
    return f"{join(quoted)} are undecided" if quoted else ""


def _unmeasurable(tasks: Sequence[TaskResult]) -> str:
    """What has no verdict, by its reason."""
    by_note: dict[str, list[str]] = {}
    for task in with_verdict(tasks, "not measurable"):
        by_note.setdefault(task.note, []).append(task.task)
    clauses = [
        f"{named(names)} {'is' if len(names) == 1 else 'are'} not measurable {f'({note})' if note else 'on this base'}"
        for note, names in by_note.items()
    ]
    return "; ".join(clauses)


def _caveat(tasks: Sequence[TaskResult], alpha: float) -> str:
    size = family(tasks)
    together = f"The {level(alpha)} intervals hold for all {size} tasks together; this" if size > 1 else "This"
    verdicts = {task.verdict for task in tasks}
    open_end = "Undecided does not mean kept. " if "undecided" in verdicts and "lost" not in verdicts else ""
    return f"{open_end}{together} is about these two models, not about the method."


def _margin(margin: float) -> str:
    size = f"{100 * margin:.3g}"
    return f"{size} point" if size == "1" else f"{size} points"
