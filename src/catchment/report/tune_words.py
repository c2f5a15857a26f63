"""What a tune did, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from catchment.records import Against, TaskResult, TuneRun
from catchment.report.words import interval_points, join, points

Headline = Literal["harmful", "trade", "gain", "clean", "open", "unmeasured"]
ROSE = 1.05
"""A training loss that ends so many times above where it began did not converge."""


def tune_sentence(
    runs: Sequence[TuneRun], tasks: Sequence[TaskResult], against: Sequence[Against], protected: Sequence[str],
    alpha: float = 0.05,
) -> tuple[Headline, str]:  # fmt: skip
    """The headline and what came of a tune: gained and lost, whether it is harmful, what the protection did.

    Harmful: something was lost and nothing gained, or more was lost than gained, or the training loss rose. Only
    losses and gains that were shown count.
    """
    run = runs[0]
    lost = [task for task in tasks if task.verdict == "lost"]
    gained = [task for task in tasks if task.verdict == "gained"]
    diverged = run.loss is not None and run.loss[1] > ROSE * run.loss[0]
    worse = run.held_out is not None and run.held_out.difference.low > 0
    parts = []
    if not tasks and run.held_out is None:
        headline: Headline = "unmeasured"
        parts.append("Nothing was compared.")
    else:
        balance = sum(task.difference.estimate for task in [*lost, *gained])
        harmful = diverged or (bool(lost) and balance < 0) or (worse and not gained)
        headline = _headline(harmful, lost, gained, tasks)
        parts.append(_opening(headline, lost, gained))
    if run.held_out is not None:
        parts.append(_held_out(run))
    if diverged and run.loss is not None:
        parts.append(
            f"The training loss rose from {run.loss[0]:.3f} to {run.loss[1]:.3f}: the learning rate is too high."
        )
    if run.stopped:
        parts.append(f"The training was stopped: {run.stopped.rstrip('.')}.")
    if against:
        parts.append(_protection(against, protected))
    return headline, " ".join(parts)


def _headline(
    harmful: bool, lost: Sequence[TaskResult], gained: Sequence[TaskResult], tasks: Sequence[TaskResult]
) -> Headline:
    if harmful:
        return "harmful"
    if lost:
        return "trade"
    if gained:
        return "gain"
    return "clean" if any(task.verdict == "kept" for task in tasks) else "open"


def _opening(headline: Headline, lost: Sequence[TaskResult], gained: Sequence[TaskResult]) -> str:
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
    return "No gain and no loss was shown on the tasks." if headline == "open" else "This tune lost nothing it had."


def _change(task: TaskResult) -> str:
    return f"{task.task} ({points(task.difference.estimate, 0)} points, {interval_points(task.difference, 0)})"


def _held_out(run: TuneRun) -> str:
    assert run.held_out is not None
    found = run.held_out
    way = "fell" if found.difference.high < 0 else "rose" if found.difference.low > 0 else "went"
    return f"On rows that were not trained on the loss {way} from {found.base:.3f} to {found.tuned:.3f} nats per token."


def _protection(against: Sequence[Against], protected: Sequence[str]) -> str:
    """The protected tune against the plain one."""
    saved = [a for a in against if a.task in protected and a.difference.low > 0]
    cost = [a for a in against if a.task not in protected and a.difference.high < 0]
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
