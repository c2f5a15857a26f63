"""What a tune did, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from catchment.records import Against, Companion, TaskResult, TuneRun
from catchment.report.words import interval_points, join, points

Headline = Literal["harmful", "trade", "gain", "clean", "open", "unmeasured"]
FEW = 20
"""Logged losses below which the first and the last tenth of them are a batch each, and say nothing."""
ROSE = 1.05
"""A training loss that ends so many times above where it began did not converge."""


def tune_sentence(
    runs: Sequence[TuneRun], against: Sequence[Against] = (), protected: Sequence[str] = ()
) -> tuple[Headline, str]:
    """The headline and what came of a tune: gained and lost, whether it is harmful, what the protection did.

    Harmful: something was lost and nothing gained, or more was lost than gained, or held-out rows became worse, or the
    training loss rose, or the fence stopped the training. Only losses and gains that were shown count.

    Args:
        runs: The delivered one first.
        against: The protected tune against the plain one.
        protected: Names of the protected tasks.
    """
    run = runs[0]
    lost = [task for task in run.tasks if task.verdict == "lost"]
    gained = [task for task in run.tasks if task.verdict == "gained"]
    better = run.held_out is not None and run.held_out.difference.high < 0
    enough = run.loss is not None and run.logged >= FEW
    diverged = enough and run.loss is not None and run.loss[1] > ROSE * run.loss[0] and not better
    worse = run.held_out is not None and run.held_out.difference.low > 0
    harmful = diverged or (bool(lost) and sum(t.difference.estimate for t in [*lost, *gained]) < 0)
    fenced_off = bool(run.stopped) and bool(run.looks) and run.looks[-1].factor < 1
    harmful = harmful or (worse and not gained) or fenced_off
    headline = _headline(harmful, lost, gained, run)
    parts = [_opening(headline, lost, gained, bool(run.tasks))]
    if harmful and not lost and any(look.factor < 1 for look in run.looks):
        parts = ["This training is harmful; what is delivered was pulled back by the fence."]
    parts += [_held_out(found) for found in (run.held_out, run.accuracy) if found is not None]
    if diverged and run.loss is not None:
        parts.append(
            f"The training loss rose from {run.loss[0]:.3f} to {run.loss[1]:.3f}: the learning rate is too high."
        )
    if run.stopped:
        parts.append(f"The training was stopped: {run.stopped.rstrip('.')}.")
    if against:
        parts.append(_protection(against, protected))
    return headline, " ".join(parts)


def _headline(harmful: bool, lost: Sequence[TaskResult], gained: Sequence[TaskResult], run: TuneRun) -> Headline:
    if harmful:
        return "harmful"
    if lost:
        return "trade"
    if gained:
        return "gain"
    if not run.tasks:
        return "unmeasured"
    return "clean" if any(task.verdict == "kept" for task in run.tasks) else "open"


def _opening(headline: Headline, lost: Sequence[TaskResult], gained: Sequence[TaskResult], compared: bool) -> str:
    said = []
    if gained:
        said.append(f"gained {join([_change(task) for task in gained])}")
    if lost:
        said.append(f"lost {join([_change(task) for task in lost])}")
    what = " and ".join(said)
    if headline == "harmful":
        return f"This tune is harmful: it {what}." if what else "This tune is harmful."
    if headline == "trade":
        return f"This tune is a trade: it {what}."
    if headline == "gain":
        return f"This tune {what}; no loss was shown."
    if not compared:
        return "No task was compared."
    return "No gain and no loss was shown on the tasks." if headline == "open" else "No task was shown to be lost."


def _change(task: TaskResult) -> str:
    return f"{task.task} ({points(task.difference.estimate, 0)} points, {interval_points(task.difference, 0)})"


def _held_out(found: Companion) -> str:
    """The change on rows that were not trained on, with its interval."""
    way = "fell" if found.difference.high < 0 else "rose" if found.difference.low > 0 else "went"
    d = found.difference
    what, _, where = found.name.partition(" on ")
    return (
        f"On {where} {what} {way} from {found.base:.3f} to {found.tuned:.3f} "
        f"({d.estimate:+.3f}, {100 * d.level:.4g}% interval {d.low:+.3f} to {d.high:+.3f})."
    )


def _protection(against: Sequence[Against], protected: Sequence[str]) -> str:
    """The protected tune against the plain one."""
    saved = [a for a in against if a.task in protected and a.difference.low > 0]
    cost = [a for a in against if a.difference.high < 0]
    parts = []
    if saved:
        named = join([f"{a.task} by {points(a.difference.estimate, 0).lstrip('+')} points" for a in saved])
        parts.append(f"Against the plain tune of the same settings the protection saved {named}")
    else:
        parts.append("Against the plain tune of the same settings no saving of a protected task was shown")
    if cost:
        named = join([f"{a.task} ({points(a.difference.estimate, 0)} points)" for a in cost])
        parts.append(f"it cost {named}")
    else:
        parts.append("no cost on the other tasks was shown")
    return "; ".join(parts) + "."
